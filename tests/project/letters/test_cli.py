"""`celery -A project letters …`, on an installation of the test's own."""

import webbrowser
from email import message_from_bytes
from email.policy import default
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from nightshift.jobs.models import Job
from sqlalchemy import select

from project.letters.cli import letters
from services.letters.examples import EXAMPLES
from services.mail.models import Mail


@pytest.mark.parametrize("kind", EXAMPLES)
def test_preview_writes_a_mail_and_its_page_and_sends_nothing(job_app, tmp_path, kind):
    out = tmp_path / "preview"
    words = ["preview", kind, "--locale", "de", "--no-open", "--out", str(out)]

    ran = CliRunner().invoke(letters, words, obj=SimpleNamespace(app=job_app))

    files = [out / f"{kind}.de.eml", out / f"{kind}.de.html"]
    assert (ran.exit_code, ran.output.splitlines()) == (0, [str(file) for file in files])
    content = message_from_bytes(files[0].read_bytes(), policy=default)
    assert content.get_body(("html",)).get_content().replace("\r\n", "\n") == files[1].read_text()
    with job_app.runtime.read_only() as session:
        queued = [session.scalars(select(table)).all() for table in (Mail, Job)]
    assert queued == [[], []]


def test_preview_without_a_browser_says_so_in_a_line(job_app, tmp_path, monkeypatch):
    monkeypatch.setattr(webbrowser, "_tryorder", [])
    context = SimpleNamespace(app=job_app)

    ran = CliRunner().invoke(letters, ["preview", "welcome", "--out", str(tmp_path)], obj=context)

    assert (ran.exit_code, ran.stderr.count("\n")) == (0, 1)
    assert "no browser" in ran.stderr
