"""When recurring jobs are due, and that each slot is started once."""

import threading
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import delete, func, select, update

from project.bootstrap import make_engine
from services.database import Base, Session
from services.jobs import JobArgs, schedule
from services.jobs.models import Job, JobState, ScheduleEntry
from services.jobs.schedule import Entry
from tests.conftest import NOW, ZONE, make_settings


class Tick(JobArgs, kind="schedule.tick"):
    pass


def utc(*when):
    return datetime(*when, tzinfo=UTC)


def entry(when, *, name="tick", zone=ZONE, **options):
    return Entry(name, Tick(), when, zone, **options)


def slots_after(an_entry, instant, number):
    """Walk forward as a beat that is always there does, and agree with the walk backward."""
    slots = []
    while len(slots) < number:
        instant = an_entry.after(instant)
        slots.append(instant)
    assert [slot.astimezone(UTC) for slot in islice(an_entry.before(slots[-1]), number)] == [
        slot.astimezone(UTC) for slot in slots[::-1]
    ]
    return [slot.astimezone(UTC) for slot in slots]


def jobs(session):
    return session.execute(select(func.count()).where(Job.kind == "schedule.tick")).scalar_one()


# --- slots ---


def test_wall_clock_stays_the_same_over_both_changes():
    daily = entry("30 6 * * *")
    assert slots_after(daily, utc(2026, 3, 28), 3) == [utc(2026, 3, 28, 5, 30), utc(2026, 3, 29, 4, 30), utc(2026, 3, 30, 4, 30)]
    assert slots_after(daily, utc(2026, 10, 24), 3) == [
        utc(2026, 10, 24, 4, 30),
        utc(2026, 10, 25, 5, 30),
        utc(2026, 10, 26, 5, 30),
    ]


def test_time_that_spring_skips_runs_right_after_the_gap():
    assert slots_after(entry("30 2 * * *"), utc(2026, 3, 28, 12), 2) == [utc(2026, 3, 29, 1, 0), utc(2026, 3, 30, 0, 30)]


def test_time_that_autumn_repeats_runs_once():
    assert slots_after(entry("30 2 * * *"), utc(2026, 10, 24, 12), 2) == [utc(2026, 10, 25, 0, 30), utc(2026, 10, 26, 1, 30)]


def test_every_quarter_of_an_hour_goes_on_over_both_changes():
    quarters = entry("*/15 * * * *")
    for start in (utc(2026, 3, 28, 23, 50), utc(2026, 10, 24, 22, 50)):
        slots = slots_after(quarters, start, 16)
        assert {later - earlier for earlier, later in pairwise(slots)} == {timedelta(minutes=15)}


@pytest.mark.parametrize(("when", "minutes"), [("*/30 * * * *", 30), ("15 */1 * * *", 60)])
def test_beat_that_looks_in_the_repeated_hour_finds_its_slots(when, minutes):
    often, last = entry(when), utc(2026, 10, 24, 23, 20)
    fired = []
    for number in range(4 * 60):
        newest, chosen = often.due(last, last := utc(2026, 10, 24, 23, 20, 30) + timedelta(minutes=number))
        assert (newest is not None) == bool(chosen)
        fired += [slot.astimezone(UTC) for slot in chosen]
    assert {later - earlier for earlier, later in pairwise(fired)} == {timedelta(minutes=minutes)}


def test_third_tuesday_at_noon_utc():
    third = entry("0 12 * * 2#3", zone=ZoneInfo("UTC"))
    expected = [utc(2026, 12, 15, 12), utc(2027, 1, 19, 12), utc(2027, 2, 16, 12), utc(2027, 3, 16, 12)]
    assert slots_after(third, NOW, 4) == expected


@pytest.mark.parametrize("hours", [1, 6, 7])
def test_intervals_are_counted_from_the_epoch(hours):
    slots = slots_after(entry(timedelta(hours=hours)), NOW, 5)
    assert [slot.timestamp() % (hours * 3600) for slot in slots] == [0] * 5
    assert slots[0] > NOW >= slots[0] - timedelta(hours=hours)


def test_slot_of_this_very_second_is_due_and_not_next():
    every = entry(timedelta(hours=1))
    assert (next(every.before(NOW)), every.after(NOW)) == (NOW, NOW + timedelta(hours=1))
    daily = entry("0 12 * * *", zone=UTC)
    assert (next(daily.before(NOW)), daily.after(NOW)) == (NOW, NOW + timedelta(days=1))


@pytest.mark.parametrize("when", ["", "0 6 * *", "61 * * * *", "0 0 30 2 *", timedelta(), timedelta(hours=-1)])
def test_entry_that_can_never_be_due_is_refused_by_name(when):
    with pytest.raises(ValueError, match="'backup'"):
        entry(when, name="backup")


# --- what was missed ---


@pytest.mark.parametrize("when", [timedelta(hours=1), "0 * * * *"])
@pytest.mark.parametrize(
    ("options", "hours"),
    [
        ({"missed": "skip"}, []),
        ({"missed": "latest"}, [0]),
        ({"missed": "all"}, [5, 4, 3, 2, 1, 0]),
        ({"missed": "all", "window": timedelta(hours=2, minutes=45)}, [2, 1, 0]),
    ],
)
def test_missed_slots_follow_the_policy(session, when, options, hours):
    entries = [entry(when, **options)]
    schedule.register(session, entries, now=NOW - timedelta(hours=5, minutes=30))
    late = NOW + timedelta(minutes=30)
    fired = schedule.fire(session, entries, now=late)
    assert [(name, slot.astimezone(UTC)) for name, slot in fired] == [("tick", NOW - timedelta(hours=hour)) for hour in hours]
    assert jobs(session) == len(hours)
    assert schedule.fire(session, entries, now=late) == []


@pytest.mark.parametrize("missed", ["skip", "latest", "all"])
def test_slot_that_is_met_in_time_starts_whatever_the_policy(session, missed):
    entries = [entry(timedelta(hours=1), missed=missed)]
    schedule.register(session, entries, now=NOW - timedelta(minutes=10))
    assert schedule.fire(session, entries, now=NOW - timedelta(seconds=1)) == []
    assert len(schedule.fire(session, entries, now=NOW + timedelta(seconds=1))) == 1
    assert schedule.fire(session, entries, now=NOW + timedelta(minutes=59)) == []
    assert len(schedule.fire(session, entries, now=NOW + timedelta(minutes=60))) == 1


# --- the table ---


def test_new_entry_does_not_run_at_once(session):
    entries = [entry(timedelta(hours=6), missed="all", window=timedelta(days=9))]
    assert schedule.register(session, entries, now=NOW + timedelta(minutes=1)) == []
    assert schedule.fire(session, entries, now=NOW + timedelta(minutes=2)) == []
    assert jobs(session) == 0


def test_registering_again_keeps_what_was_missed(session):
    entries = [entry(timedelta(hours=1))]
    schedule.register(session, entries, now=NOW - timedelta(hours=3))
    schedule.register(session, entries, now=NOW + timedelta(minutes=5))
    assert len(schedule.fire(session, entries, now=NOW + timedelta(minutes=5))) == 1


def test_removed_entry_is_gone(session):
    both = [entry(timedelta(hours=1)), entry(timedelta(hours=1), name="other")]
    schedule.register(session, both, now=NOW)
    schedule.register(session, both[:1], now=NOW)
    assert list(session.execute(select(ScheduleEntry.entry)).scalars()) == ["tick"]
    # A beat that still knows the old entry starts nothing for it.
    assert [name for name, _ in schedule.fire(session, both, now=NOW + timedelta(hours=1))] == ["tick"]
    schedule.register(session, [], now=NOW)
    assert session.execute(select(func.count()).select_from(ScheduleEntry)).scalar_one() == 0


@pytest.mark.parametrize(("hours_ago", "started"), [(None, 1), (7, 1), (5, 0)])
def test_overdue_at_start_runs_when_no_run_succeeded_for_an_interval(session, hours_ago, started):
    entries = [entry(timedelta(hours=6), overdue_at_start=True)]
    if hours_ago is not None:
        schedule.register(session, [entry(timedelta(hours=6))], now=NOW - timedelta(hours=7))
        schedule.fire(session, entries, now=NOW)
        done = {"state": JobState.SUCCEEDED, "finished_at": NOW - timedelta(hours=hours_ago)}
        session.execute(update(Job).where(Job.kind == "schedule.tick").values(done))
    before = jobs(session)
    assert len(schedule.register(session, entries, now=NOW)) == started
    assert jobs(session) == before + started


def test_failed_run_is_no_reason_to_skip_an_overdue_one(session):
    entries = [entry(timedelta(hours=6), overdue_at_start=True)]
    schedule.register(session, entries, now=NOW)
    session.execute(update(Job).where(Job.kind == "schedule.tick").values(state=JobState.FAILED, finished_at=NOW))
    assert len(schedule.register(session, entries, now=NOW)) == 1


# --- two beats ---


@pytest.fixture
def beats(postgres_url):
    """Give sessions of two beats on Postgres, and remove what they wrote."""
    engine = make_engine(make_settings(database_url=postgres_url))
    Base.metadata.create_all(engine)
    yield lambda: Session(engine)
    with Session(engine) as session, session.begin():
        session.execute(delete(Job))
        session.execute(delete(ScheduleEntry))
    engine.dispose()


def test_two_beats_that_saw_the_same_start_a_slot_once(beats):
    entries = [entry(timedelta(hours=1))]
    with beats() as session, session.begin():
        schedule.register(session, entries, now=NOW - timedelta(minutes=30))
    late = []

    def second():
        with beats() as session, session.begin():
            late.extend(schedule.fire(session, entries, now=NOW))

    with beats() as session, session.begin():
        assert len(schedule.fire(session, entries, now=NOW)) == 1
        # It reads the same mark, and waits for our transaction in its compare-and-set.
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.5)
        assert thread.is_alive()
    thread.join(10)
    with beats() as session:
        assert (late, jobs(session)) == ([], 1)


def test_slot_of_a_beat_that_died_before_its_commit_is_started_by_the_other(beats):
    entries = [entry(timedelta(hours=1))]
    with beats() as session, session.begin():
        schedule.register(session, entries, now=NOW - timedelta(minutes=30))
    with beats() as session:
        assert len(schedule.fire(session, entries, now=NOW)) == 1
    with beats() as session, session.begin():
        assert len(schedule.fire(session, entries, now=NOW)) == 1
        assert jobs(session) == 1


def test_many_slots_under_four_beats_are_started_once_each(beats):
    entries = [entry(timedelta(seconds=5), missed="all")]
    with beats() as session, session.begin():
        schedule.register(session, entries, now=NOW)
    fired = []

    def beat():
        for seconds in range(1, 601):
            with beats() as session, session.begin():
                fired.extend(schedule.fire(session, entries, now=NOW + timedelta(seconds=seconds)))

    threads = [threading.Thread(target=beat) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    with beats() as session:
        slots = [slot for _, slot in fired]
        assert len(slots) == len(set(slots)) == jobs(session) == 120
