import re
from pathlib import Path
from uuid import uuid4

from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families

from project.cli.metrics import metrics as command
from project.metrics import exposition
from project.testing import run_due
from services.calendars.jobs import SyncCalendars
from services.calendars.models import Feed
from services.jobs import enqueue, rescue

DOCS = Path(__file__).parent.parent.parent / "docs" / "metrics.md"


def samples(text):
    families = text_string_to_metric_families(text)
    return {(one.name, *sorted(one.labels.items())): one.value for family in families for one in family.samples}


def sync(boot):
    with boot.unit_of_work() as session:
        enqueue(session, SyncCalendars(), now=boot.now())


def test_exposition_holds_what_the_ledger_holds(job_boot):
    sync(job_boot)
    run_due(job_boot)
    sync(job_boot)
    with job_boot.unit_of_work() as session:
        session.add_all(
            Feed(kind="class", owner_id=n, token=str(n), error=error) for n, error in ((1, None), (2, "the disk is full"))
        )
        rescue.heartbeat(session, uuid4(), name="one", queues="default,mail", pid=1)
    found = samples(exposition(job_boot).decode())
    job = (("kind", "calendars.sync"), ("queue", "calendars"))
    assert found["nightshift_jobs", *job, ("state", "succeeded")] == 1
    assert found["nightshift_jobs", *job, ("state", "queued")] == 1
    assert found["nightshift_jobs", *job, ("state", "failed")] == 0
    assert found["nightshift_workers", ("queue", "mail")] == 1
    assert found["nightshift_workers", ("queue", "calendars")] == 0
    assert {name: found[f"nightshift_{name}", ("kind", "class")] for name in ("feeds", "failed_feeds")} == {
        "feeds": 2,
        "failed_feeds": 1,
    }
    assert found["nightshift_failed_feeds", ("kind", "user")] == 0
    assert found["nightshift_oldest_due_job_seconds", ("queue", "mail")] == 0
    assert abs(found["nightshift_last_success_timestamp_seconds", ("kind", "calendars.sync")] - job_boot.now().timestamp()) < 60
    for name in ("wait", "run"):
        assert found[f"nightshift_job_{name}_seconds_bucket", ("kind", "calendars.sync"), ("le", "+Inf")] == 1
        assert found[f"nightshift_job_{name}_seconds_gcount", ("kind", "calendars.sync")] == 1


def test_documentation_names_every_metric_and_no_other(job_boot):
    there = set(re.findall(r"^# TYPE (nightshift_\w+?)(?:_gcount|_gsum)? ", exposition(job_boot).decode(), re.MULTILINE))
    named = set(re.findall(r"^\| `(nightshift_\w+)`", DOCS.read_text(), re.MULTILINE))
    assert named == there


def test_command_prints_the_same(job_boot):
    ran = CliRunner().invoke(command)
    assert (ran.exit_code, samples(ran.stdout)) == (0, samples(exposition(job_boot).decode()))


def test_command_says_when_the_database_is_away(job_boot):
    job_boot.disconnect()
    Path(job_boot.engine.url.database).unlink()
    ran = CliRunner().invoke(command)
    assert (ran.exit_code, ran.stdout) == (1, "")
    assert ran.stderr.startswith("the ledger cannot be read: ")
    assert ran.stderr.count("\n") == 1
