"""The engine's own probes of the database, the ledger and the machine."""

import sqlite3
from datetime import UTC, datetime, timedelta

import pytest
from health import findings, make_healthy, make_job, troubles
from job_rows import beat
from nightshift.celery.app import App
from nightshift.component import Composition
from nightshift.database import Base
from nightshift.jobs import schedule
from nightshift.jobs.models import Job, JobState, PausedQueue, ScheduleEntry, Worker
from nightshift.ledger import ledger
from nightshift.observe.checks import show_time
from servers import postgres_database
from sqlalchemy import create_engine, make_url, text, update


def now():
    return datetime.now(UTC)


def long_ago(session, entries):
    """Make the last slots be started, and nothing of them have succeeded for years."""
    for entry in entries:
        slot = next(entry.before(now()))
        session.execute(
            update(ScheduleEntry).where(ScheduleEntry.entry == entry.name).values(last_fire_at=slot)
        )
    session.execute(update(Job).values(finished_at=datetime(2020, 1, 1, tzinfo=UTC)))


ERRORS = [{"attempt": 1, "type": "Unsendable", "message": "no", "traceback": ""}]

TROUBLES = {
    "workers": (lambda session, _: session.execute(text("delete from worker")), "fail"),
    "beat": (lambda session, _: session.execute(text("delete from schedule")), "fail"),
    "migrations": (lambda session, _: session.execute(text("delete from alembic_version")), "fail"),
    "recurring jobs": (long_ago, "warn"),
    "failed in a day": (
        lambda session, _: session.add(make_job("a", JobState.FAILED, now())),
        "warn",
    ),
    "paused queues": (
        lambda session, _: session.add(PausedQueue(queue="mail", paused_at=now())),
        "warn",
    ),
    "stuck jobs": (
        lambda session, _: session.add(
            make_job("a", JobState.RUNNING, now() - timedelta(minutes=9))
        ),
        "fail",
    ),
    "overdue jobs": (
        lambda session, _: session.add(
            make_job("a", JobState.QUEUED, now() - timedelta(minutes=9))
        ),
        "warn",
    ),
    "unknown kinds": (
        lambda session, _: session.add(make_job("a", JobState.HELD, now(), finished_at=None)),
        "warn",
    ),
    "hung workers": (
        lambda session, _: session.execute(update(Worker).values(hung_at=now())),
        "fail",
    ),
    "unsendable jobs": (
        lambda session, _: session.add(
            make_job("jobs.prune", JobState.HELD, now(), finished_at=None, errors=ERRORS)
        ),
        "warn",
    ),
}


def test_healthy_installation_has_nothing_to_say(healthy):
    assert troubles(healthy) == {}


@pytest.mark.parametrize("name", TROUBLES)
def test_trouble_in_the_ledger_is_found_and_touches_no_other_probe(healthy, name):
    trouble, status = TROUBLES[name]
    with healthy.runtime.unit_of_work() as session:
        trouble(session, healthy.composition.schedule(healthy.runtime))

    assert troubles(healthy) == {name: status}
    assert findings(healthy)[name].remedy != ""


def test_missing_migration_is_named(healthy):
    with healthy.runtime.unit_of_work() as session:
        head = session.execute(text("select version_num from alembic_version")).scalar_one()
        session.execute(text("delete from alembic_version"))

    assert findings(healthy)["migrations"].detail == f"at none, missing {head}"


def test_migrations_cannot_be_compared_outside_of_the_project_folder(healthy, engine_folder):
    (engine_folder / "alembic.ini").unlink()

    assert troubles(healthy) == {"migrations": "warn"}


def test_entry_of_another_release_is_not_ours_to_judge(healthy):
    """Its beat may have stopped long ago."""
    with healthy.runtime.unit_of_work() as session:
        session.add(ScheduleEntry(entry="theirs", last_fire_at=now() - timedelta(days=99)))
    found = findings(healthy)
    assert [found[name].status for name in ("beat", "recurring jobs")] == ["ok", "ok"]
    assert "theirs" not in found["beat"].detail


def test_beat_is_missed_when_a_slot_has_passed(healthy):
    with healthy.runtime.unit_of_work() as session:
        session.execute(update(ScheduleEntry).values(last_fire_at=now() - timedelta(days=2)))

    assert findings(healthy)["beat"].status == "fail"


def test_beat_without_a_sign_of_life_is_missed_before_its_next_slot(healthy):
    with healthy.runtime.unit_of_work() as session:
        seen = now() - timedelta(seconds=40)
        session.execute(update(ScheduleEntry).values(seen_at=seen))
        # A beat of another release lives.
        session.add(ScheduleEntry(entry="theirs", last_fire_at=now(), seen_at=now()))

    found = findings(healthy)["beat"]
    assert (found.status, found.detail) == ("fail", f"no sign of life since {show_time(seen)}")


def test_recurring_job_that_was_never_due_need_not_have_succeeded(healthy):
    with healthy.runtime.unit_of_work() as session:
        session.execute(text("delete from job"))

    found = findings(healthy)["recurring jobs"]
    assert (found.status, found.detail) == ("ok", "jobs.prune: last good run never")


def test_held_job_that_could_be_sent_is_not_unsendable(healthy):
    with healthy.runtime.unit_of_work() as session:
        session.add(make_job("jobs.prune", JobState.HELD, now(), finished_at=None))

    assert troubles(healthy) == {}


def test_paused_queue_is_not_overdue_too(healthy):
    with healthy.runtime.unit_of_work() as session:
        session.add(make_job("a", JobState.QUEUED, now() - timedelta(minutes=9)))
        session.add(PausedQueue(queue="default", paused_at=now()))

    assert findings(healthy)["overdue jobs"].status == "ok"


def test_queue_with_due_jobs_that_no_component_declares_is_named(healthy):
    with healthy.runtime.unit_of_work() as session:
        session.add(make_job("a", JobState.QUEUED, now(), queue="orphans"))
        session.add(make_job("a", JobState.QUEUED, now()))

    found = findings(healthy)["workers"]
    assert (found.status, found.detail) == (
        "fail",
        "default: 1; orphans has due jobs and no worker, and no component declares it",
    )


def test_queue_of_a_removed_component_that_a_worker_still_serves_is_no_trouble(healthy):
    with healthy.runtime.unit_of_work() as session:
        session.add(make_job("a", JobState.QUEUED, now(), queue="orphans"))
        beat(session, name="old", queues="orphans", pid=2)

    assert findings(healthy)["workers"].status == "ok"


def test_embedded_database_outside_of_wal_is_noticed(tmp_path):
    path = tmp_path / "nightshift.db"
    connection = sqlite3.connect(path)
    connection.execute("create table one (two)")
    connection.close()
    app = App("probe_app", Composition([ledger]), database_url=f"sqlite:///{path}", _env_file=None)

    found = findings(app)["database"]

    assert (found.status, found.detail.partition(", ")[2]) == ("warn", "journal mode delete")


def test_database_of_another_encoding_is_noticed():
    with postgres_database() as url:
        engine = create_engine(url, isolation_level="AUTOCOMMIT")
        name = f"{make_url(url).database}_ascii"
        with engine.connect() as connection:
            how = "TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'"
            connection.execute(text(f"CREATE DATABASE {name} {how}"))
        try:
            ascii_url = make_url(url).set(database=name).render_as_string(hide_password=False)
            composition = Composition([ledger])
            app = App("probe_app", composition, database_url=ascii_url, _env_file=None)
            found = findings(app)["database"]
            app.runtime.close()
        finally:
            with engine.connect() as connection:
                connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
            engine.dispose()

    assert found.status == "warn"
    assert "its encoding is SQL_ASCII, which cannot hold every text" in found.detail


def test_clocks_that_agree_are_no_trouble(healthy):
    found = findings(healthy)["clock"]

    assert (found.status, found.detail) == ("ok", "0.0 s between the database's and ours")


def test_postgres_installation_has_nothing_to_say(engine_folder, project_app):
    with postgres_database() as url:
        broker = f"filesystem://{engine_folder}/broker"
        app = App(
            "probe_app",
            project_app.composition,
            _env_file=None,
            database_url=url,
            broker_url=broker,
        )
        tables = [Base.metadata.tables[name] for name in app.composition.table_branches()]
        Base.metadata.create_all(app.runtime.engine, tables=tables)
        make_healthy(app)

        found, trouble = findings(app), troubles(app)
        app.runtime.close()

    assert trouble == {}
    assert found["database"].detail.startswith("postgresql ")


def test_paused_recurring_job_is_named(healthy):
    with healthy.runtime.unit_of_work() as session:
        schedule.pause_entry(session, "jobs.prune", now=healthy.runtime.now())

    found = findings(healthy)["recurring jobs"]

    assert found.status == "warn"
    assert "jobs.prune: paused since" in found.detail
