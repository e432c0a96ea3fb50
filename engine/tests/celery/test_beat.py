"""The scheduler behind `celery -A project beat`."""

from datetime import UTC, datetime, timedelta

import probe_app as probe
import pytest
from nightshift.celery.beat import TICK_SECONDS, Scheduler
from nightshift.component import Component
from nightshift.jobs.models import Job, ScheduleEntry
from nightshift.jobs.schedule import Entry
from sqlalchemy import delete, select, text, update

LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def app(make_app):
    entry = Entry("probe.hourly", probe.Leave(number=5), "0 * * * *", UTC)
    return make_app(Component(name="schedule", schedule=lambda _runtime: [entry]))


def find_marks(app):
    with app.runtime.read_only() as session:
        rows = session.execute(select(ScheduleEntry)).scalars()
        return {row.entry: row.last_fire_at for row in rows}


def miss_slots(app):
    with app.runtime.unit_of_work() as session:
        missed = update(ScheduleEntry).where(ScheduleEntry.entry == "probe.hourly")
        session.execute(missed.values(last_fire_at=LONG_AGO))


def find_started(app):
    with app.runtime.read_only() as session:
        return [(row.kind, row.args) for row in session.execute(select(Job)).scalars()]


def test_first_tick_registers_the_entries_of_all_components(app):
    Scheduler(app).tick()
    assert sorted(find_marks(app)) == ["jobs.prune", "probe.hourly"]
    assert find_started(app) == []


def test_slot_that_has_come_is_started_once_by_two_beats(app):
    one, two = Scheduler(app), Scheduler(app)
    one.tick()
    two.tick()
    miss_slots(app)
    # Beats that were down meanwhile: one that runs puts back the slot that it has seen.
    one, two = Scheduler(app), Scheduler(app)
    one.tick()
    two.tick()
    one.tick()
    assert find_started(app) == [("probe.leave", {"number": 5, "milliseconds": 0})]


def test_entry_that_is_overdue_and_has_missed_a_slot_is_started_once(make_app):
    every = timedelta(hours=1)
    entry = Entry("probe.hourly", probe.Leave(number=5), every, UTC, overdue_at_start=True)
    app = make_app(Component(name="schedule", schedule=lambda _runtime: [entry]))
    with app.runtime.unit_of_work() as session:
        moved = ScheduleEntry(entry="probe.hourly", last_fire_at=LONG_AGO, seen_at=LONG_AGO)
        session.add(moved)
    Scheduler(app).tick()
    assert len(find_started(app)) == 1


def test_start_is_logged(app, caplog):
    Scheduler(app).tick()
    miss_slots(app)
    caplog.set_level("INFO", "nightshift.celery.beat")
    Scheduler(app).tick()
    [line] = caplog.messages
    assert line.startswith("started probe.hourly for 20")


def test_machine_whose_clock_is_wrong_leaves_no_mark_in_the_future(job_app, monkeypatch):
    beat = Scheduler(job_app)
    with monkeypatch.context() as patch:
        patch.setattr(job_app.runtime, "now", lambda: datetime(2086, 1, 1, tzinfo=UTC))
        beat.tick()
    marks = find_marks(job_app).values()
    assert marks
    assert max(marks) <= datetime.now(UTC)


def test_beat_outlives_a_database_that_is_away(app, caplog):
    beat = Scheduler(app)
    with app.runtime.unit_of_work() as session:
        session.execute(text("alter table schedule rename to away"))
    assert beat.tick() == TICK_SECONDS
    [line] = caplog.messages
    assert line.startswith("the schedule cannot be read and is tried again: ")
    with app.runtime.unit_of_work() as session:
        session.execute(text("alter table away rename to schedule"))
    beat.tick()
    assert sorted(find_marks(app)) == ["jobs.prune", "probe.hourly"]


def test_tick_leaves_a_sign_of_life(app, tmp_path, monkeypatch):
    monkeypatch.setenv("HEARTBEAT_FILE", str(tmp_path / "alive"))
    Scheduler(app).tick()
    assert (tmp_path / "alive").exists()


def test_entries_are_listed_at_start(app):
    assert Scheduler(app).info == "    . entries -> jobs.prune, probe.hourly"


# --- a table that others change ---


def test_each_tick_puts_back_what_is_missing_with_the_slot_that_it_had(app):
    Scheduler(app).tick()
    miss_slots(app)
    beat = Scheduler(app)
    beat.tick()
    before = find_marks(app)
    with app.runtime.unit_of_work() as session:
        session.execute(delete(ScheduleEntry))
    beat.tick()
    # The slot's job was enqueued after the slot: its time is known to be dealt with too.
    assert find_marks(app).keys() == before.keys()
    assert all(before[name] <= mark for name, mark in find_marks(app).items())
    assert len(find_started(app)) == 1


def test_table_that_was_restored_starts_no_slot_twice(app):
    Scheduler(app).tick()
    miss_slots(app)
    beat = Scheduler(app)
    beat.tick()
    miss_slots(app)
    beat.tick()
    assert len(find_started(app)) == 1


def test_tick_that_is_undone_is_not_remembered(app, monkeypatch):
    Scheduler(app).tick()
    miss_slots(app)
    beat = Scheduler(app)

    def fail(_session):
        raise ConnectionError("gone")

    with monkeypatch.context() as patch:
        # The last statement before the commit.
        patch.setattr("nightshift.jobs.schedule.read_last_fires", fail)
        beat.tick()
    assert find_started(app) == []
    beat.tick()
    assert len(find_started(app)) == 1
