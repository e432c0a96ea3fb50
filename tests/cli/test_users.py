"""`school user` and `mail preview`, on an SQLite database of the test's own; what is enqueued is left in the ledger."""

from email import message_from_bytes
from email.policy import default

import pytest
from click.testing import CliRunner
from sqlalchemy import select

from project.bootstrap import bootstrap
from project.cli.mail import mail
from project.cli.school import school
from services.database import Base
from services.jobs.models import Job
from services.mail import accounts
from services.mail.examples import EXAMPLES
from services.mail.models import Mail
from services.school.models import KeyPurpose, User

ADD = ("user", "add", "anna@school.example", "--first", "Anna", "--last", "Müller", "--role", "teacher")


@pytest.fixture
def boot(tmp_path, monkeypatch):
    settings = {"DATABASE_URL": f"sqlite:///{tmp_path}/nightshift.db", "BROKER_URL": f"filesystem://{tmp_path}/broker"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    bootstrap.cache_clear()
    Base.metadata.create_all(bootstrap().engine)
    yield bootstrap()
    bootstrap().disconnect()
    bootstrap.cache_clear()


def run(*arguments, command=school, given=None):
    result = CliRunner().invoke(command, arguments, input=given)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def jobs(boot):
    with boot.read_only() as session:
        return [(job.kind, job.args) for job in session.scalars(select(Job).order_by(Job.kind, Job.created_at))]


def test_user_is_added_once(boot):
    assert run(*ADD) == (0, "user 1 added; the welcome is on its way\n")
    assert run(*ADD) == (1, "somebody has this address or this untis_id already\n")
    assert jobs(boot) == [("mail.send_welcome", {"user_id": 1})]


@pytest.mark.parametrize(("command", "purpose"), [("verify", "verify_address"), ("reset", "reset_password")])
def test_key_is_asked_for(boot, command, purpose):
    run(*ADD)
    assert run("user", command, "Anna@school.example") == (0, "on its way\n")
    assert jobs(boot)[0] == ("mail.send_key", {"user_id": 1, "purpose": purpose})


def test_all_are_welcomed_or_nobody(boot):
    with boot.unit_of_work() as session:
        for name in ("anna", "beat"):
            values = {"first_name": name, "last_name": "", "role": "teacher", "locale": "de", "created_at": boot.now()}
            session.add(User(email=f"{name}@school.example", **values))
    assert run("user", "welcome", "anna@school.example", "nobody@school.example") == (1, "nobody has this address\n")
    assert jobs(boot) == []
    assert run("user", "welcome", "anna@school.example", "beat@school.example") == (0, "on their way: 2\n")
    assert jobs(boot) == [("mail.send_welcome", {"user_id": number}) for number in (1, 2)]


def test_key_is_redeemed_from_standard_input(boot):
    run(*ADD)
    with boot.unit_of_work() as session:
        key, _ = accounts.issue(session, session.get(User, 1), KeyPurpose.RESET_PASSWORD, now=boot.now())
    assert run("user", "redeem", "verify", given=key)[0] == 1
    assert run("user", "redeem", "reset", given=f"{key}\n") == (0, "anna@school.example\n")
    assert run("user", "redeem", "reset", given=key) == (1, "this key does not work, or does not any more: ask for a new one\n")


@pytest.mark.parametrize("kind", EXAMPLES)
def test_preview_writes_a_mail_and_its_page_and_sends_nothing(boot, tmp_path, kind):
    out = tmp_path / "preview"

    code, output = run("preview", kind, "--locale", "de", "--no-open", "--out", str(out), command=mail)

    files = [out / f"{kind}.de.eml", out / f"{kind}.de.html"]
    assert (code, output.splitlines()) == (0, [str(file) for file in files])
    content = message_from_bytes(files[0].read_bytes(), policy=default)
    assert content.get_body(("html",)).get_content().replace("\r\n", "\n") == files[1].read_text()
    with boot.read_only() as session:
        assert (list(session.scalars(select(Mail))), jobs(boot)) == ([], [])
