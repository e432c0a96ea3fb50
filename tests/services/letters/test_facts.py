"""What a letter says of an event, in the reader's language and on the school's clock."""

from datetime import UTC, datetime

import pytest

from services.letters.facts import format_when, make_facts, read_content
from services.translation import Locale
from tests.conftest import ZONE

AT = [
    datetime(2026, 12, 1, 7, 15, tzinfo=UTC),
    datetime(2026, 12, 1, 8, 0, tzinfo=UTC),
    datetime(2026, 12, 3, 8, 0, tzinfo=UTC),
]
TUESDAY = "Tuesday, 1 December 2026"


@pytest.mark.parametrize(
    ("starts", "ends", "told", "on_the_day"),
    [
        (AT[0], AT[1], f"{TUESDAY}, 08:15–09:00", "08:15–09:00"),
        (AT[0], AT[0], f"{TUESDAY}, 08:15", "08:15"),
        (
            AT[0],
            AT[2],
            f"{TUESDAY}, 08:15 – Thursday, 3 December 2026, 09:00",
            f"{TUESDAY}, 08:15 – Thursday, 3 December 2026, 09:00",
        ),
        (AT[0].date(), AT[0].date(), TUESDAY, "all day"),
        (
            AT[0].date(),
            AT[2].date(),
            f"{TUESDAY} – Thursday, 3 December 2026",
            f"{TUESDAY} – Thursday, 3 December 2026",
        ),
    ],
)
def test_times_are_told_on_the_schools_clock(starts, ends, told, on_the_day):
    assert format_when(starts, ends, Locale.ENGLISH, ZONE) == told
    assert format_when(starts, ends, Locale.ENGLISH, ZONE, on=AT[0].date()) == on_the_day


@pytest.mark.parametrize(
    ("says", "whom"),
    [
        (
            {"classes": ("27Ga",), "class_groups": ("28W",), "audience": "all"},
            "Students and teachers (27Ga, 28W)",
        ),
        ({"classes": (), "audience": "teachers"}, "Teachers of the whole school"),
        (
            {"classes": (), "users": ("guest@school.example",), "audience": "teachers"},
            "Those whom it names",
        ),
    ],
)
def test_facts_say_whom_an_event_is_for_and_no_names(session, school, says, whom):
    found = {
        fact.name: fact.new
        for fact in make_facts(
            read_content(session, school.published(**says)), Locale.ENGLISH, ZONE
        )
    }
    assert found["For"] == whom
