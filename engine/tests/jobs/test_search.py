"""Find jobs: filters, pages by key, and counts."""

from datetime import timedelta

import pytest
from job_rows import KINDS, NOW, Only, Parent, Plain, Side, change, put
from nightshift.errors import InvalidInput
from nightshift.jobs import care, search
from nightshift.jobs.actions import read_filter, write_filter
from nightshift.jobs.models import JobState
from nightshift.jobs.search import Cursor, Filter, count_matches, find_page

MINUTE = timedelta(minutes=1)


def ended(session, minutes, *, args=None, state=JobState.SUCCEEDED, **values):
    """Write a job that ended so many minutes after NOW."""
    job_id = put(session, args)
    at = NOW + minutes * MINUTE
    change(session, job_id, state=state, started_at=at - MINUTE, finished_at=at, **values)
    return job_id


def ids(page):
    return [job.id for job, _ in page.jobs]


def find(session, limit=50, after=None, oldest_first=False, **wanted):
    return find_page(session, Filter(**wanted), limit=limit, after=after, oldest_first=oldest_first)


def test_list_is_in_the_order_of_what_happened_last(session):
    first, third = ended(session, 1), ended(session, 3, state=JobState.FAILED)
    running = put(session)
    change(session, running, state=JobState.RUNNING, started_at=NOW + 2 * MINUTE)
    waiting = put(session)
    scheduled = put(session, run_at=NOW + 10 * MINUTE)

    newest = [scheduled, third, running, first, waiting]
    assert ids(find(session)) == newest
    assert ids(find(session, oldest_first=True)) == newest[::-1]


@pytest.mark.parametrize("state", JobState)
def test_each_state_is_found_by_itself(session, state):
    there = {}
    for one in JobState:
        there[one] = put(session)
        times = {"started_at": NOW, "finished_at": NOW}
        if one in (JobState.SCHEDULED, JobState.QUEUED, JobState.HELD):
            times = {}
        elif one in (JobState.RUNNING, JobState.WAITING):
            times = {"started_at": NOW}
        change(session, there[one], state=one, **times)

    assert ids(find(session, states=(state,))) == [there[state]]
    assert count_matches(session, Filter(states=(state,))) == {state: 1}
    assert set(ids(find(session))) == set(there.values())


def test_sent_jobs_are_found_as_others(session):
    job_id = put(session)
    change(session, job_id, sent_at=NOW)

    assert ids(find(session, states=(JobState.QUEUED,))) == [job_id]


def test_filters_combine(session):
    wanted = ended(session, 2, args=Side(number=7))
    ended(session, 2, args=Side(number=8))
    ended(session, 2, args=Plain(number=7))
    ended(session, 9, args=Side(number=7))
    ended(session, 2, args=Side(number=7), state=JobState.FAILED)

    found = find(
        session,
        states=(JobState.SUCCEEDED,),
        kind="test.side",
        queue="side",
        terms=("number=7",),
        since=NOW,
        until=NOW + 5 * MINUTE,
    )

    assert ids(found) == [wanted]


@pytest.mark.parametrize(
    ("term", "matches"),
    [
        ("number=7", True),
        ("number=8", False),
        ("text=Müller", True),
        ("text=Müll", False),
        ("Müll", True),
        ('"7"', False),
        ("%", False),
        ("it's", True),
        ("missing=7", False),
        ('a"b=7', False),
        ("number=7; drop table job", False),
    ],
)
def test_values_of_arguments_are_found(session, term, matches):
    put(session, Only(number=7, text="Müller"))
    if term == "it's":
        put(session, Only(number=9, text="it's"))

    assert bool(ids(find(session, terms=(term,)))) is matches


def test_pages_join_without_a_gap_or_a_double_where_times_are_equal(session):
    there = {ended(session, number // 4) for number in range(11)}

    for oldest_first in (False, True):
        seen, cursor = [], None
        while True:
            page = find(session, limit=3, after=cursor, oldest_first=oldest_first)
            seen += ids(page)
            cursor = page.next and Cursor.parse(str(page.next))
            if cursor is None:
                break
        assert len(seen) == 11
        assert set(seen) == there


@pytest.mark.parametrize("oldest_first", [False, True])
def test_look_without_an_index_ends_early_and_goes_on(session, monkeypatch, oldest_first):
    monkeypatch.setattr(search, "MOST_EXAMINED", 4)
    wanted = {ended(session, number, args=Side()) for number in (0, 9)}
    for number in range(1, 9):
        ended(session, number)
    wanted |= {put(session, Side()), put(session, Side(), run_at=NOW + 90 * MINUTE)}

    seen, cursor, looks = [], None, 0
    while True:
        page = find(session, queue="side", limit=50, after=cursor, oldest_first=oldest_first)
        assert (page.examined_to is None) is (page.next is None)
        seen, looks, cursor = seen + ids(page), looks + 1, page.next
        if cursor is None:
            break

    assert looks > 1
    assert sorted(seen) == sorted(wanted)


def test_children_of_a_parent_are_found(session):
    parent = put(session, Parent())
    child = put(session, parent_id=parent)

    assert ids(find(session, parent_id=parent)) == [child]


def test_count_ends_after_the_most(session, monkeypatch):
    monkeypatch.setattr(search, "MOST_COUNTED", 3)
    for number in range(4):
        ended(session, number)
    for _ in range(2):
        put(session)

    assert sum(count_matches(session, Filter()).values()) == 4
    assert sum(count_matches(session, Filter(states=(JobState.QUEUED,))).values()) == 2


def test_what_came_later_is_left_out(session):
    early, late = ended(session, 1), ended(session, 5)
    change(session, late, created_at=NOW)
    later = put(session)
    change(session, later, created_at=NOW + 5 * MINUTE)

    assert ids(find(session, known_by=NOW + 2 * MINUTE)) == [early]


def test_filter_in_an_address_is_read_as_it_was_written():
    query = (
        "state=failed&state=discarded&kind=a.b&args=user_id%3D7+%22two+words%22&from=x&order=oldest"
    )

    written = write_filter(query)

    assert "from" not in written
    assert read_filter(written) == read_filter(query)
    assert read_filter(query) == Filter(
        states=(JobState.FAILED, JobState.DISCARDED),
        kind="a.b",
        terms=("user_id=7", "two words"),
    )


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("state=lost", "state: 'lost'"),
        ("since=yesterday", "since: 'yesterday'"),
        ("since=9999-99-99", "since:"),
        ("worker=7", "worker: '7'"),
        ("parent=%00", "parent:"),
        ("args=" + "+".join("x" * 11), "arguments: at most 10"),
    ],
)
def test_bad_filter_is_refused_by_its_name(query, named):
    with pytest.raises(InvalidInput, match=named):
        read_filter(query)


@pytest.mark.parametrize("text", ["", "~", "20261128T061500.0~x", "x" * 1000])
def test_bad_place_in_a_list_is_refused(text):
    with pytest.raises(InvalidInput):
        Cursor.parse(text)


def test_run_now_makes_scheduled_jobs_due(session):
    scheduled, queued = put(session, run_at=NOW.replace(year=2120)), put(session)

    assert care.run_now(session, [scheduled, queued]) == [scheduled]
    assert ids(find(session, states=(JobState.QUEUED,)))[0] == scheduled


def test_retry_of_many_names_why_some_are_skipped(session):
    good = ended(session, 1, args=Only(number=1), state=JobState.FAILED, unique_key=None)
    twice = ended(session, 1, args=Only(number=2), state=JobState.FAILED, unique_key=None)
    put(session, Only(number=2))
    unknown = ended(session, 1, kind="gone.kind")
    invalid = ended(session, 1, args=Plain(), state=JobState.FAILED)
    change(session, invalid, args={"number": "seven"})
    open_one = put(session)

    done, skipped = care.retry_each(
        session, [good, twice, unknown, invalid, open_one], kinds=KINDS, now=NOW
    )

    assert done == [good]
    assert skipped == {
        "the same job is open": 1,
        "its kind is unknown": 1,
        "its arguments are no longer valid": 1,
    }
