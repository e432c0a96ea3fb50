"""Every zone of the machine, expanded by another parser: icalendar reads dateutil's rules."""

import zoneinfo
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from dateutil.rrule import rrulestr
from icalendar import Timezone

from services.calendars.vtimezone import LAST_YEAR, make_vtimezone

BEGIN, END = datetime(2025, 1, 1, tzinfo=UTC), datetime(2042, 1, 1, tzinfo=UTC)
# They are exact only to the end of LAST_YEAR: their clocks follow Ramadan, in all years known.
BY_RAMADAN = {"Africa/Casablanca", "Africa/El_Aaiun", "Asia/Gaza", "Asia/Hebron"}

Change = tuple[datetime, timedelta, str | None]


@pytest.fixture(params=["system", "tzdata"])
def _zone_data(request: pytest.FixtureRequest) -> Iterator[None]:
    """Read the zones of the operating system, then of the tzdata package: their editions differ."""
    if request.param == "tzdata":
        zoneinfo.reset_tzpath([])
    ZoneInfo.clear_cache()
    yield
    zoneinfo.reset_tzpath()
    ZoneInfo.clear_cache()


def changes_of_zone(zone: ZoneInfo) -> list[Change]:
    """Return what is in force at BEGIN, and every change up to END.

    It looks at every day, then at every hour, then at every minute.
    """

    def offset(moment: datetime) -> timedelta:
        return moment.astimezone(zone).utcoffset() or timedelta()

    found = [(BEGIN, offset(BEGIN), BEGIN.astimezone(zone).tzname())]
    for day in (BEGIN + timedelta(days=n) for n in range((END - BEGIN).days)):
        before = found[-1][1]
        if offset(day + timedelta(days=1)) != before:
            hour = next(
                h
                for n in range(24)
                if offset((h := day + timedelta(hours=n)) + timedelta(hours=1)) != before
            )
            moment = next(
                m for n in range(1, 61) if offset(m := hour + timedelta(minutes=n)) != before
            )
            found.append((moment, offset(moment), moment.astimezone(zone).tzname()))
    return found


def changes_of_component(component: Timezone) -> list[Change]:
    """Tell the same from the component's onsets, expanded as RFC 5545 §3.6.5 says."""
    onsets: list[Change] = []
    for observance in Timezone.from_ical(component.to_ical(sorted=False)).subcomponents:
        start, rule = observance["DTSTART"].dt, observance.get("RRULE")
        starts = [start]
        if rule:
            starts = rrulestr(rule.to_ical().decode(), dtstart=start).between(
                start, END.replace(tzinfo=None), inc=True
            )
            assert starts[0] == start, "a rule's first onset is its DTSTART"
        before, after = observance["TZOFFSETFROM"].td, observance["TZOFFSETTO"].td
        onsets += [
            ((each - before).replace(tzinfo=UTC), after, str(observance["TZNAME"]))
            for each in starts
        ]
    onsets.sort()
    _, offset, name = [onset for onset in onsets if onset[0] <= BEGIN][-1]
    changes = [onset for previous, onset in pairwise(onsets) if previous[1] != onset[1]]
    return [(BEGIN, offset, name), *(change for change in changes if BEGIN < change[0] < END)]


def read_data(key: str) -> bytes:
    """Return the data of a zone, from where ZoneInfo takes them. Many zones have the same."""
    for folder in zoneinfo.TZPATH:
        if (file := Path(folder) / key).is_file():
            return file.read_bytes()
    return files("tzdata").joinpath("zoneinfo", *key.split("/")).read_bytes()


# By their data: two names of one zone, and a zone that both editions have, are expanded once.
_expanded: dict[bytes, tuple[list[Change], list[Change]]] = {}


def expand(key: str) -> tuple[list[Change], list[Change]]:
    """Return the changes of a zone, and those of the component that is made from it."""
    data = read_data(key)
    if data not in _expanded:
        zone = ZoneInfo(key)
        _expanded[data] = changes_of_zone(zone), changes_of_component(make_vtimezone(zone))
    return _expanded[data]


@pytest.mark.usefixtures("_zone_data")
def test_vtimezone_is_exact_for_every_zone() -> None:
    wrong, wrong_after = set(), set()
    for key in zoneinfo.available_timezones():
        actual, written = expand(key)
        if [each for each in actual if each[0].year <= LAST_YEAR] != [
            each for each in written if each[0].year <= LAST_YEAR
        ]:
            wrong.add(key)
        elif actual != written:
            wrong_after.add(key)

    assert wrong == set()
    assert wrong_after <= BY_RAMADAN


@pytest.mark.parametrize(
    ("key", "rules"),
    [
        (
            "Europe/Zurich",
            [
                (
                    "DAYLIGHT",
                    "19700329T020000",
                    "+0100",
                    "+0200",
                    "CEST",
                    "FREQ=YEARLY;BYDAY=-1SU;BYMONTH=3",
                ),
                (
                    "STANDARD",
                    "19701025T030000",
                    "+0200",
                    "+0100",
                    "CET",
                    "FREQ=YEARLY;BYDAY=-1SU;BYMONTH=10",
                ),
            ],
        ),
        (
            "Australia/Lord_Howe",
            [
                (
                    "DAYLIGHT",
                    "19701004T020000",
                    "+1030",
                    "+1100",
                    "+11",
                    "FREQ=YEARLY;BYDAY=1SU;BYMONTH=10",
                ),
                (
                    "STANDARD",
                    "19700405T020000",
                    "+1100",
                    "+1030",
                    "+1030",
                    "FREQ=YEARLY;BYDAY=1SU;BYMONTH=4",
                ),
            ],
        ),
        (
            "Europe/Dublin",
            [
                (
                    "STANDARD",
                    "19701025T020000",
                    "+0100",
                    "+0000",
                    "GMT",
                    "FREQ=YEARLY;BYDAY=-1SU;BYMONTH=10",
                ),
                (
                    "DAYLIGHT",
                    "19700329T010000",
                    "+0000",
                    "+0100",
                    "IST",
                    "FREQ=YEARLY;BYDAY=-1SU;BYMONTH=3",
                ),
            ],
        ),
        (
            "America/Nuuk",
            [
                (
                    "DAYLIGHT",
                    "19700328T230000",
                    "-0200",
                    "-0100",
                    "-01",
                    "FREQ=YEARLY;BYDAY=SA;BYMONTHDAY=24,25,26,27,28,29,30;BYMONTH=3",
                ),
                (
                    "STANDARD",
                    "19701025T000000",
                    "-0100",
                    "-0200",
                    "-02",
                    "FREQ=YEARLY;BYDAY=-1SU;BYMONTH=10",
                ),
            ],
        ),
        (
            "Africa/Cairo",
            [
                (
                    "DAYLIGHT",
                    "19700424T000000",
                    "+0200",
                    "+0300",
                    "EEST",
                    "FREQ=YEARLY;BYDAY=-1FR;BYMONTH=4",
                ),
                (
                    "STANDARD",
                    "19701030T000000",
                    "+0300",
                    "+0200",
                    "EET",
                    "FREQ=YEARLY;BYDAY=FR;BYYEARDAY=-67,-66,-65,-64,-63,-62,-61",
                ),
            ],
        ),
        ("Asia/Kathmandu", [("STANDARD", "19700101T000000", "+0545", "+0545", "+0545", None)]),
        ("UTC", [("STANDARD", "19700101T000000", "+0000", "+0000", "UTC", None)]),
    ],
)
def test_vtimezone_writes_rules(key: str, rules: list[tuple[str | None, ...]]) -> None:
    component = make_vtimezone(ZoneInfo(key))

    assert component["TZID"] == key
    assert [
        (
            each.name,
            *(
                each[name].to_ical().decode()
                if isinstance(each[name].to_ical(), bytes)
                else each[name].to_ical()
                for name in NAMES
            ),
            rule.to_ical().decode() if (rule := each.get("RRULE")) else None,
        )
        for each in component.subcomponents
    ] == rules


NAMES = ("DTSTART", "TZOFFSETFROM", "TZOFFSETTO", "TZNAME")


def test_vtimezone_writes_out_the_years_that_keep_to_no_rule() -> None:
    observances = make_vtimezone(ZoneInfo("Asia/Gaza")).subcomponents

    assert [each["DTSTART"].dt.year for each in observances[:2]] == [1970, 2025]
    assert [bool(each.get("RRULE")) for each in observances] == [False] * (len(observances) - 2) + [
        True
    ] * 2
    assert observances[-1]["DTSTART"].dt.year == LAST_YEAR + 1
    assert not any(each.get("RDATE") for each in observances)
