"""How an event repeats, in the reader's language: `every Monday until 21 December 2026`."""

from collections.abc import Sequence
from datetime import date, datetime
from functools import partial
from typing import Any
from zoneinfo import ZoneInfo

from babel.dates import format_date
from babel.lists import format_list
from nightshift.database import Session
from nightshift.errors import InvalidInput

from services.mail.compose import WRITTEN_AS
from services.school.models import Event
from services.school.recurrences import (
    DateChange,
    Series,
    find_day,
    find_days,
    parse_rule,
)
from services.school.series import read_changes
from services.translation import Locale, translations

# A mail lists no more dates one by one.
MOST_LISTED = 20
# What each sort of rule that is told in words consists of.
_ALWAYS = {"FREQ", "INTERVAL", "COUNT", "UNTIL", "WKST"}
_WEEKDAYS = ("MO", "TU", "WE", "TH", "FR", "SA", "SU")
# A Monday, from which the names of weekdays are counted.
_MONDAY = date(2026, 1, 5).toordinal()


def read_repeats(session: Session, event: Event) -> dict[str, Any]:
    """Return how an event repeats, as JSON values under `repeats`; nothing if it does not."""
    if not event.rrule:
        return {}
    session.flush()
    changes = read_changes(session, Event.id == event.id).get(event.id, ())
    return {
        "repeats": {
            "rule": event.rrule,
            "last_on": event.last_on and event.last_on.isoformat(),
            "dates": [
                [one.isoformat() if isinstance(one, date) else one for one in change]
                for change in changes
            ],
        }
    }


def read_change(values: Sequence[Any]) -> DateChange:
    """Return what `read_repeats` has written of one date."""
    on, state, starts, ends, *texts = values
    return DateChange(date.fromisoformat(on), state, _parse(starts), _parse(ends), *texts)


def describe_rule(series: Series, locale: Locale, zone: ZoneInfo) -> str:
    """Return a rule in words, with its last date; a rare one only with the number of its dates."""
    try:
        days = find_days(series, zone)
    except InvalidInput:
        return series.rrule  # Another program has written it.
    texts = translations(locale)
    parts = parse_rule(series.rrule)
    said = {"day": format_day(days[-1], locale), "number": parts.get("INTERVAL", "1")}
    every = parts.get("INTERVAL", "1") == "1"
    first = find_day(series.starts, zone)
    # The formats are looked up where they are written, or `make messages` would not find them.
    match parts["FREQ"], parts.keys() - _ALWAYS:
        case "DAILY", rest if not rest:
            form = (
                texts.gettext("every day until %(day)s")
                if every
                else texts.gettext("every %(number)s days until %(day)s")
            )
        case "WEEKLY", rest if rest <= {"BYDAY"}:
            form = (
                texts.gettext("every %(weekdays)s until %(day)s")
                if every
                else texts.gettext("every %(number)s weeks on %(weekdays)s until %(day)s")
            )
            names = parts.get("BYDAY", _WEEKDAYS[first.weekday()]).split(",")
            said["weekdays"] = _list_weekdays(names, locale)
        case "MONTHLY", rest if rest <= {"BYMONTHDAY"} and every and _is_one(parts, "BYMONTHDAY"):
            form = texts.gettext("every month on day %(monthday)s until %(day)s")
            said["monthday"] = str(first.day)
        case "MONTHLY", rest if rest == {"BYDAY"} and every and _find_ordinal(parts, locale):
            form = texts.gettext("on the %(ordinal)s %(weekdays)s of every month until %(day)s")
            said["ordinal"] = _find_ordinal(parts, locale)
            said["weekdays"] = _list_weekdays([parts["BYDAY"][-2:]], locale)
        case "YEARLY", rest if not rest and every:
            form = texts.gettext("every year on %(date)s until %(day)s")
            said["date"] = format_date(first, _find_skeleton(locale), locale=_write(locale))
        case _:
            form = texts.gettext("on %(count)s dates until %(day)s")
            said["count"] = str(len(days))
    return form % said


def list_days(days: Sequence[date], locale: Locale) -> str:
    """Return days in words, some of them where there are many."""
    return ", ".join(shorten_list([format_day(day, locale) for day in days], locale))


def shorten_list(texts: Sequence[str], locale: Locale) -> list[str]:
    """Return the first texts, and how many more there are."""
    if len(texts) <= MOST_LISTED:
        return list(texts)
    more = translations(locale).gettext("and %(number)s more")
    return [*texts[:MOST_LISTED], more % {"number": len(texts) - MOST_LISTED}]


def format_day(day: date, locale: Locale) -> str:
    """Write a day without its weekday: `21 December 2026`."""
    return format_date(day, "long", locale=_write(locale))


def _list_weekdays(names: Sequence[str], locale: Locale) -> str:
    days = sorted(_WEEKDAYS.index(name) for name in names)
    write = partial(format_date, format="EEEE", locale=_write(locale))
    return format_list([write(date.fromordinal(_MONDAY + day)) for day in days], locale=locale)


def _is_one(parts: dict[str, str], name: str) -> bool:
    # Counted from the end of the month, or several, are rare.
    return parts.get(name, "1").isdecimal()


def _find_ordinal(parts: dict[str, str], locale: Locale) -> str:
    texts = translations(locale)
    ordinals = {
        "1": texts.pgettext("weekday of a month", "first"),
        "2": texts.pgettext("weekday of a month", "second"),
        "3": texts.pgettext("weekday of a month", "third"),
        "4": texts.pgettext("weekday of a month", "fourth"),
        "-1": texts.pgettext("weekday of a month", "last"),
    }
    return ordinals.get(parts["BYDAY"][:-2].lstrip("+"), "")


def _find_skeleton(locale: Locale) -> str:
    return "d. MMMM" if locale == Locale.GERMAN else "d MMMM"


def _write(locale: Locale) -> str:
    return WRITTEN_AS.get(locale, locale)


def _parse(text: str | None) -> date | None:
    if text is None:
        return None
    is_day = len(text) == len("2026-12-01")
    return date.fromisoformat(text) if is_day else datetime.fromisoformat(text)
