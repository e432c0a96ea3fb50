"""Mail by real workers to a real server that misbehaves, and what can be seen of it where."""

from collections.abc import Iterator
from datetime import timedelta
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from nightshift.component import Status
from nightshift.jobs import enqueue
from nightshift.jobs.models import Job
from nightshift.observe.metrics import render_metrics
from nightshift.observe.probes import examine
from servers import free_port
from sqlalchemy import func, select, text

from project.mail.cli import mail as command
from services.mail import outbox
from services.mail.jobs import DeliverMail, SweepMail
from services.mail.models import Mail, MailServer, MailState
from tests.conftest import metric
from tests.mail_accounting import (
    EVERYTHING,
    account,
    count_open,
    mail_settings,
    make_numbered,
    put_many,
    send_while_killing,
)
from tests.smtp import ServerProcess

pytestmark = pytest.mark.worker


@pytest.fixture
def server(tmp_path) -> Iterator[ServerProcess]:
    """Yield a server that does everything that servers do."""
    server = ServerProcess(free_port(), tmp_path / "journal", EVERYTHING)
    yield server
    server.stop()


def examine_mail(runtime):
    (finding,) = (finding for finding in examine(runtime) if finding.probe == "mail")
    return finding.status


def read_metric(runtime, name):
    lines = render_metrics(runtime).decode().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{name}{{"))
    return float(line.rpartition(" ")[2])


@pytest.mark.timeout(400)
@pytest.mark.parametrize("kind", ["embedded", "servers"])
def test_every_message_is_accounted_for(install, server, tmp_path, kind):
    with install(kind, tmp_path, **mail_settings(server)) as installation:
        print(send_while_killing(installation, server, 300, 3))


@pytest.fixture
def away(tmp_path) -> Iterator[ServerProcess]:
    """Yield a server that takes everything once it is started."""
    server = ServerProcess(free_port(), tmp_path / "journal")
    server.stop()
    yield server
    server.stop()


@pytest.mark.parametrize("kind", ["servers"])
def test_server_that_is_away_loses_nothing(install, away, tmp_path, kind):
    """An hour, compressed: a retry after 0.1 s instead of a minute."""
    settings = mail_settings(away, timeout=60, mail_retry_after="PT0.1S")
    with install(kind, tmp_path, **settings) as installation:
        runtime = installation.runtime
        installation.worker()
        put_many(installation, 120)
        short_lived = make_numbered(installation, 999, expires_in=timedelta(seconds=3))
        with runtime.unit_of_work() as session:
            late = outbox.queue(session, short_lived, now=runtime.now())

        def read(statement):
            with runtime.read_only() as session:
                return session.execute(statement).scalar()

        def count_failures():
            return read(select(MailServer.failures)) or 0

        installation.until(lambda: count_failures() >= 8)
        assert examine_mail(runtime) == Status.FAIL
        assert read_metric(runtime, metric("mail_server_failing_seconds")) > 0

        # Its deadline passes while the server is away.
        state = select(Mail.state).where(Mail.id == late)
        installation.until(lambda: read(state) == MailState.FAILED)
        deliveries = select(func.count()).where(Job.kind == DeliverMail.policy.kind)
        # The one that is tried just now has counted its attempt, and gives it back.
        tried = select(func.max(Mail.attempt)).where(Mail.state != MailState.SENDING)
        jobs, attempts = read(deliveries), read(tried)
        assert attempts == 0
        # One lane asked, once for each pause: no other job ran in vain.
        assert jobs <= 2 * count_failures() + 10

        away.start()
        installation.until(lambda: count_open(installation) == 0)
        figures = account(installation, away)
        found = (figures["sent"], figures["failed"], figures["received"], count_failures())
        assert found == (120, 1, 120, 0)
        assert examine_mail(runtime) == Status.OK


def run_command(app, *words):
    ran = CliRunner().invoke(command, words, obj=SimpleNamespace(app=app))
    assert ran.exit_code == 0, ran.output
    return ran.output


@pytest.mark.timeout(300)
def test_nothing_personal_is_to_be_seen(install, server, tmp_path):
    """Logs, arguments and results of jobs name no address, no body, no key."""
    key = "k3y-that-nobody-may-see"
    settings = mail_settings(server, log_level="DEBUG")
    with install("servers", tmp_path, **settings) as installation:
        runtime = installation.runtime
        installation.worker("--loglevel=DEBUG")
        put_many(installation, 100, sensitive=True, key=key)
        # Now and then one in a hundred is put off four times in a row; each wait is twice as long.
        installation.until(lambda: count_open(installation) == 0)
        with runtime.unit_of_work() as session:
            enqueue(session, SweepMail(), now=runtime.now())
        installation.until(lambda: installation.open_jobs() == 0)

        with runtime.read_only() as session:
            rows = [
                str(tuple(row))
                for table in ("job", "job_log", "mail_server")
                for row in session.execute(text(f"select * from {table}"))
            ]
            states = session.execute(select(Mail.state).where(Mail.body.is_not(None))).scalars()
            # An unknown message waits for a person, who may send it again.
            assert set(states) <= {MailState.UNKNOWN}
            replies = session.execute(select(Mail.reply)).scalars().all()
        logs = "\n".join(path.read_text(errors="replace") for path in tmp_path.glob("*.log"))
        assert "mail.deliver" in "".join(rows)
        assert "mail 1: " in logs
        found = [*map(str, replies), render_metrics(runtime).decode(), *map(str, examine(runtime))]
        seen = "\n".join([logs, *rows, *found])
        secrets = ("recipient", "@school.example", "What is said", key)
        assert [word for word in secrets if word in seen] == []
        shown = run_command(installation.app, "list") + run_command(installation.app, "show", "1")
        assert key not in shown
