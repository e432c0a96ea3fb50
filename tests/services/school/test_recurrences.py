"""Rules and the dates that they have."""

import re
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, strategies as st
from nightshift.errors import InvalidInput

from services.school.models import DateState
from services.school.recurrences import (
    MOST_DATES,
    DateChange,
    Series,
    check_change,
    find_occurrences,
    find_occurrences_or_first,
    find_span,
    read_rule,
)

ZURICH = ZoneInfo("Europe/Zurich")
# A Monday, at 8:00 in winter time.
MONDAY = datetime(2026, 10, 26, 7, tzinfo=UTC)
HOUR = timedelta(hours=1)


def read(text: str, starts: Any = MONDAY) -> str:
    return read_rule(text, starts, starts, ZURICH)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("FREQ=WEEKLY;UNTIL=20261221", "FREQ=WEEKLY;UNTIL=20261221"),
        ("rrule:freq=weekly; byday=mo;until=20261221;", "FREQ=WEEKLY;UNTIL=20261221;BYDAY=MO"),
        ("FREQ=WEEKLY;UNTIL=20261221T070000Z", "FREQ=WEEKLY;UNTIL=20261221"),
        ("FREQ=WEEKLY;UNTIL=20261221T065959Z", "FREQ=WEEKLY;UNTIL=20261220"),
        ("FREQ=WEEKLY;UNTIL=20261221T080000", "FREQ=WEEKLY;UNTIL=20261221"),
        ("FREQ=WEEKLY;UNTIL=20261220T230000Z", "FREQ=WEEKLY;UNTIL=20261220"),
        ("BYDAY=-1MO;COUNT=3;FREQ=MONTHLY", "FREQ=MONTHLY;COUNT=3;BYDAY=-1MO"),
    ],
)
def test_a_rule_is_kept_in_one_form(text: str, kept: str) -> None:
    assert read(text) == kept
    assert read(kept) == kept


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("every Monday", "'EVERYMONDAY' is no part of a rule; write as FREQ=WEEKLY"),
        ("BYDAY=MO;COUNT=2", "has no FREQ"),
        ("FREQ=HOURLY;COUNT=2", "FREQ must be DAILY, WEEKLY, MONTHLY or YEARLY, not 'HOURLY'"),
        ("FREQ=WEEKLY", "never ends; add UNTIL=20270131 or COUNT=10"),
        ("FREQ=WEEKLY;COUNT=2;UNTIL=20270131", "has both COUNT and UNTIL"),
        ("FREQ=WEEKLY;COUNT=0", "COUNT must be a number from 1 to 2,000"),
        ("FREQ=WEEKLY;COUNT=2001", "COUNT=2001: the limit is 2,000 dates"),
        ("FREQ=DAILY;UNTIL=21000101", "has more than 2,000 dates, which is the limit"),
        ("FREQ=WEEKLY;COUNT=2;COUNT=3", "has COUNT twice"),
        ("FREQ=WEEKLY;BYDAY=MON;COUNT=2", "BYDAY must be weekdays as MO,WE"),
        ("FREQ=WEEKLY;BYDAY=1MO;COUNT=2", "BYDAY has numbers"),
        ("FREQ=WEEKLY;BYMONTHDAY=26;COUNT=2", "BYMONTHDAY does not go with FREQ=WEEKLY"),
        ("FREQ=WEEKLY;BYHOUR=8;COUNT=2", "BYHOUR: an event has one time a day"),
        ("FREQ=WEEKLY;BYEASTER=1;COUNT=2", "BYEASTER is no part of a rule; the parts are FREQ"),
        ("FREQ=MONTHLY;BYSETPOS=1;COUNT=2", "BYSETPOS needs another part"),
        ("FREQ=WEEKLY;UNTIL=20261301", "UNTIL=20261301 is not in the calendar"),
        ("FREQ=WEEKLY;UNTIL=22000101", "UNTIL=22000101: the year must not be after 2199"),
        ("FREQ=WEEKLY;UNTIL=20261025", "UNTIL=20261025 is before starts (2026-10-26)"),
        (
            "FREQ=DAILY;BYMONTH=2;BYMONTHDAY=30;COUNT=5",
            "FREQ=DAILY;COUNT=5;BYMONTHDAY=30;BYMONTH=2 has no date from 2026-10-26 on: no day",
        ),
        (
            "FREQ=WEEKLY;BYDAY=TU;COUNT=2",
            (
                "starts (2026-10-26, Monday) is no date of FREQ=WEEKLY;COUNT=2;BYDAY=TU; its first"
                " date is 2026-10-27, Tuesday"
            ),
        ),
        ("FREQ=YEARLY;COUNT=200", "COUNT=200 reaches beyond 2199-12-31"),
        ("FREQ=WEEKLY;COUNT=2;BYDAY=" + ",".join(["MO"] * 100), "is 3"),
    ],
)
def test_a_wrong_rule_is_refused_by_part_and_limit(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)) as refusal:
        read(text)
    assert str(refusal.value).startswith(reason)


def test_as_many_dates_as_the_limit_are_taken() -> None:
    assert len(days(Series(MONDAY, MONDAY, f"FREQ=DAILY;COUNT={MOST_DATES}"))) == MOST_DATES


def test_a_series_cannot_begin_in_an_hour_that_the_clocks_show_again() -> None:
    second = datetime(2026, 10, 25, 1, 30, tzinfo=UTC)
    with pytest.raises(ValueError, match="the clocks show a second time"):
        read("FREQ=WEEKLY;COUNT=2", second)


def days(series: Series) -> list[date]:
    return [one.on for one in find_occurrences(series, ZURICH)]


def test_the_hour_on_the_clock_stays_when_the_clocks_change() -> None:
    starts = datetime(2026, 10, 19, 6, tzinfo=UTC)
    found = find_occurrences(Series(starts, starts + HOUR, "FREQ=WEEKLY;COUNT=2"), ZURICH)
    assert [(one.starts, one.ends) for one in found] == [
        (starts, starts + HOUR),
        (MONDAY, MONDAY + HOUR),
    ]


def test_the_end_keeps_its_hour_in_a_night_in_which_the_clocks_change() -> None:
    starts = datetime(2026, 10, 17, 20, tzinfo=UTC)
    series = Series(starts, starts + 9 * HOUR, "FREQ=WEEKLY;COUNT=2")
    assert [one.ends.astimezone(ZURICH).hour for one in find_occurrences(series, ZURICH)] == [7, 7]  # type: ignore[union-attr]


def test_an_hour_that_the_clocks_skip_is_an_hour_later() -> None:
    starts = datetime(2027, 3, 21, 1, 30, tzinfo=UTC)
    _, skipped = find_occurrences(Series(starts, starts, "FREQ=WEEKLY;COUNT=2"), ZURICH)
    assert skipped.starts == datetime(2027, 3, 28, 1, 30, tzinfo=UTC)
    assert skipped.on == date(2027, 3, 28)


def test_whole_days_repeat_as_days() -> None:
    first = date(2026, 12, 30)
    series = Series(first, first + timedelta(days=1), "FREQ=WEEKLY;COUNT=2")
    assert [(one.starts, one.ends) for one in find_occurrences(series, ZURICH)] == [
        (date(2026, 12, 30), date(2026, 12, 31)),
        (date(2027, 1, 6), date(2027, 1, 7)),
    ]


def test_dates_are_left_out_cancelled_and_changed() -> None:
    moved = MONDAY + timedelta(days=15)
    changes = (
        DateChange(date(2026, 11, 2), DateState.LEFT_OUT),
        DateChange(date(2026, 11, 9), DateState.CHANGED, moved, moved + HOUR, title="Late"),
        DateChange(date(2026, 11, 10), DateState.LEFT_OUT),  # No date of the rule.
        DateChange(date(2026, 11, 16), DateState.CANCELLED),
        DateChange(date(2026, 11, 23), DateState.CHANGED),  # It says nothing.
    )
    series = Series(MONDAY, MONDAY + HOUR, "FREQ=WEEKLY;COUNT=5", changes)
    found = find_occurrences(series, ZURICH)
    assert [(one.on.day, one.change and one.change.state) for one in found] == [
        (26, None),
        (9, "changed"),
        (16, "cancelled"),
        (23, None),
    ]
    assert (found[1].due, found[1].starts) == (MONDAY + timedelta(days=14), moved)


def test_a_series_whose_dates_are_all_left_out_is_refused() -> None:
    changes = (DateChange(date(2026, 10, 26), DateState.LEFT_OUT),)
    series = Series(MONDAY, MONDAY, "FREQ=WEEKLY;COUNT=1", changes)
    with pytest.raises(InvalidInput, match="repeats: every date is left out"):
        find_occurrences(series, ZURICH)


def test_what_another_program_writes_is_refused_or_read_as_one_date() -> None:
    series = Series(MONDAY, MONDAY + HOUR, "FREQ=SECONDLY")
    with pytest.raises(InvalidInput, match="repeats: FREQ must be"):
        find_occurrences(series, ZURICH)
    assert [one.starts for one in find_occurrences_or_first(series, ZURICH)] == [MONDAY]


def test_the_span_has_dates_that_were_moved_out_of_the_rule() -> None:
    early, late = MONDAY - timedelta(days=3), MONDAY + timedelta(days=30)
    changes = (
        DateChange(date(2026, 10, 26), DateState.CHANGED, early, early + HOUR),
        DateChange(date(2026, 11, 2), DateState.CHANGED, late, late + HOUR),
    )
    series = Series(MONDAY, MONDAY + HOUR, "FREQ=WEEKLY;COUNT=2", changes)
    assert find_span(series, ZURICH) == (date(2026, 10, 23), date(2026, 11, 25))


def test_times_of_another_kind_than_the_event_s_count_for_nothing() -> None:
    day = date(2026, 11, 2)
    change = DateChange(day, DateState.CHANGED, day, day, title="Other")
    series = Series(MONDAY, MONDAY + HOUR, "FREQ=WEEKLY;COUNT=2", (change,))
    other = find_occurrences(series, ZURICH)[1]
    assert (other.starts, other.change) == (MONDAY + timedelta(days=7), change)


def test_a_change_must_be_of_a_date_and_of_the_event_s_kind() -> None:
    series = Series(MONDAY, MONDAY, "FREQ=WEEKLY;COUNT=3")
    tuesday, day = date(2026, 11, 3), date(2026, 11, 2)
    assert check_change(DateChange(tuesday, DateState.CANCELLED), series, ZURICH) == [
        ("date", "2026-11-03 is no date of the event; the nearest is 2026-11-02")
    ]
    assert check_change(DateChange(day, DateState.CHANGED, day, day), series, ZURICH) == [
        ("starts", "must be of the same kind as the event's: a date or a time")
    ]
    once = series._replace(rrule="")
    [(field, _)] = check_change(DateChange(day, DateState.CANCELLED), once, ZURICH)
    assert field == "date"


@given(
    st.sampled_from(["DAILY", "WEEKLY", "MONTHLY", "YEARLY"]),
    st.integers(1, 20),
    st.integers(1, 40),
    st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1)),  # noqa: DTZ001
)
def test_a_simple_rule_has_the_dates_that_it_says(
    frequency: str, interval: int, count: int, starts: datetime
) -> None:
    moment = starts.replace(tzinfo=ZURICH, microsecond=0).astimezone(UTC)
    if moment.astimezone(ZURICH).fold:
        return
    rule = f"FREQ={frequency};INTERVAL={interval};COUNT={count}"
    try:
        kept = read(rule, moment)
    except ValueError as refusal:
        assert "beyond" in str(refusal)  # noqa: PT017
        return
    found = days(Series(moment, moment, kept))
    first = moment.astimezone(ZURICH).date()
    assert (len(found), found[0], found) == (count, first, sorted(set(found)))
    if frequency in ("DAILY", "WEEKLY"):
        step = timedelta(days=interval * (7 if frequency == "WEEKLY" else 1))
        assert {after - before for before, after in pairwise(found)} <= {step}
    else:
        assert {day.day for day in found} == {first.day}
