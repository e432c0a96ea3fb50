"""When recurring jobs are due, and that each slot is started once."""

import threading
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from zoneinfo import ZoneInfo

import pytest
from job_rows import Tick, only_on_postgres
from nightshift.jobs import JobArgs, enqueue, schedule
from nightshift.jobs.models import Job, JobState, ScheduleEntry
from nightshift.jobs.schedule import Entry
from sqlalchemy import delete, func, select, update

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
ZONE = ZoneInfo("Europe/Zurich")


class Measured(JobArgs, kind="test.measured"):
    number: float


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
    return session.execute(select(func.count()).where(Job.kind == "test.tick")).scalar_one()


# --- slots ---


def test_wall_clock_stays_the_same_over_both_changes():
    daily = entry("30 6 * * *")
    assert slots_after(daily, utc(2026, 3, 28), 3) == [
        utc(2026, 3, 28, 5, 30),
        utc(2026, 3, 29, 4, 30),
        utc(2026, 3, 30, 4, 30),
    ]
    assert slots_after(daily, utc(2026, 10, 24), 3) == [
        utc(2026, 10, 24, 4, 30),
        utc(2026, 10, 25, 5, 30),
        utc(2026, 10, 26, 5, 30),
    ]


def test_time_that_spring_skips_runs_right_after_the_gap():
    assert slots_after(entry("30 2 * * *"), utc(2026, 3, 28, 12), 2) == [
        utc(2026, 3, 29, 1, 0),
        utc(2026, 3, 30, 0, 30),
    ]


def test_time_that_autumn_repeats_runs_once():
    assert slots_after(entry("30 2 * * *"), utc(2026, 10, 24, 12), 2) == [
        utc(2026, 10, 25, 0, 30),
        utc(2026, 10, 26, 1, 30),
    ]


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
        newest, chosen = often.due(
            last, last := utc(2026, 10, 24, 23, 20, 30) + timedelta(minutes=number)
        )
        assert (newest is not None) == bool(chosen)
        fired += [slot.astimezone(UTC) for slot in chosen]
    assert {later - earlier for earlier, later in pairwise(fired)} == {timedelta(minutes=minutes)}


def test_third_tuesday_at_noon_utc():
    third = entry("0 12 * * 2#3", zone=ZoneInfo("UTC"))
    expected = [
        utc(2026, 12, 15, 12),
        utc(2027, 1, 19, 12),
        utc(2027, 2, 16, 12),
        utc(2027, 3, 16, 12),
    ]
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


@pytest.mark.parametrize(("name", "number"), [("x" * 101, 1), ("", 1), ("backup", float("nan"))])
def test_entry_that_no_table_can_hold_is_refused_by_name(name, number):
    with pytest.raises(ValueError, match=f"the schedule's entry '{name[:100]}'"):
        Entry(name, Measured(number=number), timedelta(hours=1), UTC)


@pytest.mark.parametrize(
    "when", ["", "0 6 * *", "61 * * * *", "0 0 30 2 *", timedelta(), timedelta(hours=-1)]
)
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
    schedule.register_entries(session, entries, now=NOW - timedelta(hours=5, minutes=30))
    late = NOW + timedelta(minutes=30)
    fired = schedule.enqueue_due(session, entries, now=late)
    assert [(name, slot.astimezone(UTC)) for name, slot in fired] == [
        ("tick", NOW - timedelta(hours=hour)) for hour in hours
    ]
    assert jobs(session) == len(hours)
    assert schedule.enqueue_due(session, entries, now=late) == []


@pytest.mark.parametrize("missed", ["skip", "latest", "all"])
def test_slot_that_is_met_in_time_starts_whatever_the_policy(session, missed):
    entries = [entry(timedelta(hours=1), missed=missed)]
    schedule.register_entries(session, entries, now=NOW - timedelta(minutes=10))
    assert schedule.enqueue_due(session, entries, now=NOW - timedelta(seconds=1)) == []
    assert len(schedule.enqueue_due(session, entries, now=NOW + timedelta(seconds=1))) == 1
    assert schedule.enqueue_due(session, entries, now=NOW + timedelta(minutes=59)) == []
    assert len(schedule.enqueue_due(session, entries, now=NOW + timedelta(minutes=60))) == 1


# --- the table ---


def test_new_entry_does_not_run_at_once(session):
    entries = [entry(timedelta(hours=6), missed="all", window=timedelta(days=9))]
    schedule.register_entries(session, entries, now=NOW + timedelta(minutes=1))
    assert schedule.enqueue_due(session, entries, now=NOW + timedelta(minutes=2)) == []
    assert jobs(session) == 0


def test_table_tells_when_each_entry_was_started_last(session):
    entries = [entry(timedelta(hours=1)), entry(timedelta(days=9), name="other")]
    started = NOW - timedelta(minutes=90)
    schedule.register_entries(session, entries, now=started)
    schedule.enqueue_due(session, entries, now=NOW + timedelta(minutes=5))
    assert schedule.read_last_fires(session) == {"tick": NOW, "other": started}


def test_registering_again_keeps_what_was_missed(session):
    entries = [entry(timedelta(hours=1))]
    schedule.register_entries(session, entries, now=NOW - timedelta(hours=3))
    schedule.register_entries(session, entries, now=NOW + timedelta(minutes=5))
    assert len(schedule.enqueue_due(session, entries, now=NOW + timedelta(minutes=5))) == 1


def names(session):
    return sorted(session.execute(select(ScheduleEntry.entry)).scalars())


def test_entry_of_another_release_stays_for_seven_days(session):
    theirs, ours = entry(timedelta(hours=1), name="theirs"), entry(timedelta(hours=1))
    schedule.register_entries(session, [theirs], now=NOW)
    for days in (0, 3, 7):
        schedule.register_entries(session, [ours], now=NOW + timedelta(days=days))
        assert names(session) == ["theirs", "tick"]
    schedule.register_entries(session, [ours], now=NOW + timedelta(days=7, seconds=1))
    assert names(session) == ["tick"]


def test_entry_that_a_beat_declares_now_and_then_stays(session):
    theirs, ours = entry(timedelta(hours=1), name="theirs"), entry(timedelta(hours=1))
    for day in range(0, 30, 3):
        schedule.register_entries(session, [theirs], now=NOW + timedelta(days=day))
        schedule.register_entries(session, [ours], now=NOW + timedelta(days=day, hours=1))
    assert names(session) == ["theirs", "tick"]


def test_entry_of_the_release_before_has_seven_days_from_now(session):
    """Its beats do not record when they declared an entry."""
    session.add(ScheduleEntry(entry="old", last_fire_at=NOW - timedelta(days=90)))
    session.flush()
    for days, left in ((0, ["old", "tick"]), (7, ["old", "tick"]), (8, ["tick"])):
        now = NOW + timedelta(days=days)
        schedule.register_entries(session, [entry(timedelta(hours=1))], now=now)
        assert names(session) == left


def test_entry_is_recorded_as_seen_every_ten_seconds(session):
    entries, seen = [entry(timedelta(hours=1))], select(ScheduleEntry.seen_at)
    for seconds, at in ((0, 0), (9, 0), (11, 11), (20, 11)):
        now = NOW + timedelta(seconds=seconds)
        schedule.register_entries(session, entries, now=now)
        assert session.execute(seen).scalar_one() == NOW + timedelta(seconds=at)
        assert schedule.read_last_sign(session, entries) == NOW + timedelta(seconds=at)


def test_beat_without_entries_removes_none(session):
    schedule.register_entries(session, [entry(timedelta(hours=1))], now=NOW)
    schedule.register_entries(session, [], now=NOW)
    assert names(session) == ["tick"]


@pytest.mark.parametrize("harm", ["truncated", "restored"])
def test_beat_puts_back_the_slot_that_it_has_seen(session, harm):
    entries = [entry(timedelta(hours=1), missed="all")]
    schedule.register_entries(session, entries, now=NOW - timedelta(hours=3))
    remembered = {"tick": NOW - timedelta(hours=1)}
    if harm == "truncated":
        session.execute(delete(ScheduleEntry))
    # Without a beat's memory, three slots would start again, or none.
    schedule.register_entries(session, entries, now=NOW, remembered=remembered)
    assert schedule.read_last_fires(session) == remembered
    fired = schedule.enqueue_due(session, entries, now=NOW)
    assert [slot.astimezone(UTC) for _, slot in fired] == [NOW]


def test_slot_that_another_beat_has_started_is_not_put_back(session):
    """The table was emptied before this beat saw what the other one did."""
    entries = [entry(timedelta(hours=1)), entry(timedelta(hours=1), name="only registered")]
    remembered = dict.fromkeys(("tick", "only registered"), NOW - timedelta(hours=1))
    enqueue(session, Tick(), now=NOW + timedelta(seconds=1))
    schedule.register_entries(
        session, entries, now=NOW + timedelta(seconds=2), remembered=remembered
    )
    assert schedule.enqueue_due(session, entries, now=NOW + timedelta(seconds=2)) == []


def test_table_that_is_restored_within_a_tick_starts_nothing(session):
    entries = [entry(timedelta(hours=1), missed="all")]
    schedule.register_entries(session, entries, now=NOW - timedelta(hours=9))
    assert schedule.enqueue_due(session, entries, now=NOW, remembered={"tick": NOW}) == []


def test_entry_whose_slot_is_far_ahead_counts_from_now_again(session):
    """The database's clock was ahead for a moment, and two beats have seen it."""
    entries, ahead = [entry(timedelta(hours=1))], NOW + timedelta(days=900)
    schedule.register_entries(session, entries, now=ahead)
    for _ in range(2):
        schedule.register_entries(session, entries, now=NOW, remembered={"tick": ahead})
        assert schedule.read_last_fires(session) == {"tick": NOW}
    later = NOW + timedelta(hours=1)
    fired = schedule.enqueue_due(session, entries, now=later, remembered={"tick": ahead})
    assert [name for name, _ in fired] == ["tick"]


def test_clock_that_is_corrected_a_little_starts_no_slot_again(session):
    entries = [entry(timedelta(minutes=1))]
    schedule.register_entries(session, entries, now=NOW)
    schedule.register_entries(session, entries, now=NOW - timedelta(minutes=5))
    assert schedule.read_last_fires(session) == {"tick": NOW}


def test_newer_slot_in_the_table_is_kept(session):
    entries = [entry(timedelta(hours=1))]
    schedule.register_entries(session, entries, now=NOW)
    schedule.register_entries(
        session, entries, now=NOW, remembered={"tick": NOW - timedelta(hours=1)}
    )
    assert schedule.read_last_fires(session) == {"tick": NOW}


def test_many_missed_slots_are_started_in_bounded_transactions(session, monkeypatch):
    monkeypatch.setattr(schedule, "MOST_SLOTS", 2)
    entries = [entry(timedelta(hours=1), missed="all")]
    schedule.register_entries(session, entries, now=NOW - timedelta(hours=5))
    fired = [schedule.enqueue_due(session, entries, now=NOW) for _ in range(4)]
    assert [[round((slot - NOW) / timedelta(hours=1)) for _, slot in some] for some in fired] == [
        [-4, -3],
        [-2, -1],
        [0],
        [],
    ]


@pytest.mark.parametrize(("hours_ago", "started"), [(None, 1), (7, 1), (5, 0)])
def test_overdue_at_start_runs_when_no_run_succeeded_for_an_interval(session, hours_ago, started):
    entries = [entry(timedelta(hours=6), overdue_at_start=True)]
    if hours_ago is not None:
        schedule.register_entries(
            session, [entry(timedelta(hours=6))], now=NOW - timedelta(hours=7)
        )
        schedule.enqueue_due(session, entries, now=NOW)
        done = {"state": JobState.SUCCEEDED, "finished_at": NOW - timedelta(hours=hours_ago)}
        session.execute(update(Job).where(Job.kind == "test.tick").values(done))
    before = jobs(session)
    assert len(schedule.enqueue_overdue(session, entries, now=NOW)) == started
    assert jobs(session) == before + started


def test_failed_run_is_no_reason_to_skip_an_overdue_one(session):
    entries = [entry(timedelta(hours=6), overdue_at_start=True)]
    schedule.enqueue_overdue(session, entries, now=NOW)
    session.execute(
        update(Job).where(Job.kind == "test.tick").values(state=JobState.FAILED, finished_at=NOW)
    )
    assert len(schedule.enqueue_overdue(session, entries, now=NOW)) == 1


def test_overdue_entry_is_started_by_one_of_two_beats_that_start_at_once(runtime):
    entries = [entry(timedelta(hours=6), overdue_at_start=True)]
    with runtime.unit_of_work() as session:
        schedule.register_entries(session, entries, now=NOW)
    late = []

    def second():
        with runtime.unit_of_work() as session:
            late.extend(schedule.enqueue_overdue(session, entries, now=NOW))

    with runtime.unit_of_work() as session:
        assert len(schedule.enqueue_overdue(session, entries, now=NOW)) == 1
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.5)
        assert thread.is_alive()
    thread.join(100)
    with runtime.read_only() as session:
        assert (late, jobs(session)) == ([], 1)


def test_last_good_run_is_the_last_that_succeeded(session):
    for state, ago in ((JobState.SUCCEEDED, 1), (JobState.SUCCEEDED, 5), (JobState.FAILED, 0)):
        enqueue(session, Tick(), now=NOW)
        done = {"state": state, "finished_at": NOW - timedelta(hours=ago)}
        session.execute(update(Job).where(Job.state == JobState.QUEUED).values(done))

    hourly = entry(timedelta(hours=1))
    assert schedule.find_last_good(session, hourly) == NOW - timedelta(hours=1)
    session.execute(delete(Job))
    assert schedule.find_last_good(session, hourly) is None


def test_entry_that_says_which_runs_are_good_is_asked(session):
    enqueue(session, Tick(), now=NOW)
    session.execute(update(Job).values(state=JobState.SUCCEEDED, finished_at=NOW))
    at = NOW - timedelta(hours=7)
    partial = entry(timedelta(hours=6), overdue_at_start=True, find_last_good=lambda _session: at)

    assert schedule.find_last_good(session, partial) == at
    assert len(schedule.enqueue_overdue(session, [partial], now=NOW)) == 1


# --- two beats ---


def test_two_beats_that_saw_the_same_start_a_slot_once(runtime):
    entries = [entry(timedelta(hours=1))]
    with runtime.unit_of_work() as session:
        schedule.register_entries(session, entries, now=NOW - timedelta(minutes=30))
    late = []

    def second():
        with runtime.unit_of_work() as session:
            late.extend(schedule.enqueue_due(session, entries, now=NOW))

    with runtime.unit_of_work() as session:
        assert len(schedule.enqueue_due(session, entries, now=NOW)) == 1
        # It reads the same mark, and waits for our transaction in its compare-and-set.
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.5)
        assert thread.is_alive()
    thread.join(100)
    with runtime.read_only() as session:
        assert (late, jobs(session)) == ([], 1)


def test_slot_of_a_beat_that_died_before_its_commit_is_started_by_the_other(runtime):
    entries = [entry(timedelta(hours=1))]
    with runtime.unit_of_work() as session:
        schedule.register_entries(session, entries, now=NOW - timedelta(minutes=30))

    def die_before_the_commit():
        with runtime.unit_of_work() as session:
            assert len(schedule.enqueue_due(session, entries, now=NOW)) == 1
            raise ConnectionError

    with pytest.raises(ConnectionError):
        die_before_the_commit()
    with runtime.unit_of_work() as session:
        assert len(schedule.enqueue_due(session, entries, now=NOW)) == 1
        assert jobs(session) == 1


@only_on_postgres
def test_many_slots_under_four_beats_are_started_once_each(runtime):
    entries = [entry(timedelta(seconds=5), missed="all")]
    with runtime.unit_of_work() as session:
        schedule.register_entries(session, entries, now=NOW)
    fired = []

    def beat():
        for seconds in range(1, 601):
            with runtime.unit_of_work() as session:
                fired.extend(
                    schedule.enqueue_due(session, entries, now=NOW + timedelta(seconds=seconds))
                )

    threads = [threading.Thread(target=beat) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    with runtime.read_only() as session:
        slots = [slot for _, slot in fired]
        assert len(slots) == len(set(slots)) == jobs(session) == 120


@pytest.mark.parametrize(
    ("when", "words"),
    [
        ("0 6 * * mon", "every Monday at 06:00"),
        ("17 3 * * *", "every day at 03:17"),
        ("0 12 * * 2#3", "at 12:00 on the third Tuesday of the month"),
        ("*/5 * * * *", "every fifth minute of every hour"),
        (timedelta(minutes=5), "every 5 minutes"),
        (timedelta(hours=1), "every hour"),
        (timedelta(days=2), "every 2 days"),
        (timedelta(seconds=90), "every 90 seconds"),
        (timedelta(seconds=0.5), "every 0.5 seconds"),
    ],
)
def test_rule_is_told_in_words(when, words):
    assert schedule.describe_rule(when) == words


def test_paused_entry_is_not_started_as_overdue(session):
    entry = make_overdue()
    schedule.pause_entry(session, entry.name, now=NOW)

    assert schedule.enqueue_overdue(session, [entry], now=NOW) == []
    assert schedule.pause_entry(session, entry.name, now=NOW) is False
    assert schedule.resume_entry(session, entry.name) is True
    assert schedule.resume_entry(session, entry.name) is False
    assert [name for name, _ in schedule.enqueue_overdue(session, [entry], now=NOW)] == [entry.name]


def test_pause_of_an_entry_that_is_gone_is_removed_with_it(session):
    long_ago = NOW - schedule.UNDECLARED_FOR - timedelta(days=1)
    session.add(ScheduleEntry(entry="gone", last_fire_at=long_ago, seen_at=long_ago))
    session.flush()
    schedule.pause_entry(session, "gone", now=NOW)

    schedule.register_entries(session, [make_overdue()], now=NOW)

    assert schedule.find_paused_entries(session) == {}


def make_overdue():
    return Entry("tick", Tick(), timedelta(hours=1), UTC, overdue_at_start=True)
