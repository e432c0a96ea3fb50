"""Beats of two releases side by side: each slot is started once, whatever becomes of the table."""

from datetime import timedelta

import pytest
from installations import any_installation
from nightshift.database import read_clock
from nightshift.jobs.models import Job, ScheduleEntry
from sqlalchemy import delete, select
from two_releases import EVERY, NUMBERS

OLDER, NEWER = "common,older", "common,newer"


@pytest.fixture(params=["embedded", pytest.param("servers", marks=pytest.mark.faults)])
def installation(request, tmp_path):
    with any_installation(request.param, "two_releases", tmp_path) as installation:
        yield installation


def write(installation, *statements):
    with installation.runtime.unit_of_work() as session:
        for statement in statements:
            session.execute(statement)


def begin(installation):
    """Write all entries, and return the second before the first slot of each."""
    with installation.runtime.unit_of_work() as session:
        began = read_clock(session).replace(microsecond=0)
        session.add_all(ScheduleEntry(entry=name, last_fire_at=began) for name in NUMBERS)
    return began


def count_jobs(installation):
    """Return by entry how many of its slots were started."""
    with installation.runtime.read_only() as session:
        kept = select(Job.args).where(Job.kind == "probe.leave")
        numbers = [args["number"] for args in session.execute(kept).scalars()]
    return {name: numbers.count(number) for name, number in NUMBERS.items()}


def wait_for_slots(installation, more=2):
    """Wait until so many slots more of each entry were started."""
    before = count_jobs(installation)

    def is_done():
        now = count_jobs(installation)
        return all(now[name] >= before[name] + more for name in NUMBERS)

    installation.until(is_done)


def stop(process):
    process.terminate()
    process.wait(100)


def test_no_slot_is_lost_or_doubled(installation):
    began = begin(installation)
    older = installation.start("beat", ENTRIES=OLDER)
    newer = installation.start("beat", ENTRIES=NEWER)
    wait_for_slots(installation)

    # As the release before does when its beat starts: it deletes every entry that is not its own.
    write(installation, delete(ScheduleEntry).where(ScheduleEntry.entry == "newer"))
    wait_for_slots(installation)

    write(installation, delete(ScheduleEntry))
    wait_for_slots(installation)

    hour = timedelta(hours=1)
    with installation.runtime.unit_of_work() as session:
        for row in session.execute(select(ScheduleEntry)).scalars():
            row.last_fire_at -= hour
    wait_for_slots(installation)

    # Restarted in any order: what is not declared meanwhile is made up for.
    stop(older)
    stop(newer)
    newer = installation.start("beat", ENTRIES=NEWER)
    installation.start("beat", ENTRIES=OLDER)
    wait_for_slots(installation)
    stop(newer)
    newer = installation.start("beat", ENTRIES=NEWER)
    wait_for_slots(installation)
    for process in installation.processes:
        stop(process)

    with installation.runtime.read_only() as session:
        ended = dict(session.execute(select(ScheduleEntry.entry, ScheduleEntry.last_fire_at)).all())
    passed = {name: (ended[name] - began) // EVERY for name in NUMBERS}
    assert count_jobs(installation) == passed


def test_entry_that_no_beat_declares_is_removed(installation):
    with installation.runtime.unit_of_work() as session:
        now = read_clock(session)
        week = timedelta(days=7)
        for name, seen_at in (("gone", now - 2 * week), ("theirs", now - week / 2)):
            session.add(ScheduleEntry(entry=name, last_fire_at=now, seen_at=seen_at))
    installation.start("beat", ENTRIES="common")
    find = select(ScheduleEntry.entry).order_by(ScheduleEntry.entry)

    def find_entries():
        with installation.runtime.read_only() as session:
            return list(session.execute(find).scalars())

    installation.until(lambda: find_entries() == ["common", "jobs.prune", "theirs"])
