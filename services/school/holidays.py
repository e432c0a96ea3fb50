"""Days without lessons: public ones from the `holidays` package, copied into the school's rows.

They are rows, and are not worked out when a calendar is built: another release of the package, or a
parliament that moves a holiday, changes no calendar before a person imports it.
"""

from collections.abc import Collection
from datetime import date
from typing import NamedTuple

import holidays
from nightshift.database import Session, insert_many_or
from nightshift.errors import InvalidInput, NotFound
from sqlalchemy import delete, select

from services.school.models import Holiday
from services.school.rows import YEARS
from services.school.texts import normalise

LONGEST_NAME = Holiday.name.type.length


class Day(NamedTuple):
    """A public holiday. Its key is the same each time that it is found."""

    key: str
    name: str
    day: date


def find_public(
    country: str, region: str | None, years: Collection[int], *, language: str | None = None
) -> list[Day]:
    """Return a country's public holidays in these years, by date.

    `country` is a code of ISO 3166 (CH). `region` is the code of a canton, a state or a province
    (BE): without it, only what the whole country has. `language` is that of the names.

    Raises:
        InvalidInput: The package does not know the country, the region, the language or the year.

    """
    known = holidays.list_supported_countries()
    if country not in known:
        raise InvalidInput(
            f"no public holidays are known for {country!r}; write the country's code in capitals,"
            " as CH, DE or FR"
        )
    if region is not None and region not in known[country]:
        raise InvalidInput(
            f"{country} has no part {region!r}; its parts are {', '.join(known[country]) or 'none'}"
        )
    languages = holidays.list_localized_countries().get(country, [])
    if language is not None and language not in languages:
        raise InvalidInput(
            f"the holidays of {country} have no names in {language!r}, only in"
            f" {', '.join(languages) or 'one language'}"
        )
    if unknown := sorted(set(years) - set(YEARS)):
        raise InvalidInput(f"the year {unknown[0]} must lie between {YEARS[0]} and {YEARS[-1]}")
    # Else the language would be that of this machine.
    spoken = language or holidays.country_holidays(country).default_language
    found = holidays.country_holidays(country, subdiv=region, years=years, language=spoken)
    place = f"{country}-{region}" if region else country
    return [
        Day(f"{place}-{day}", normalise(name)[:LONGEST_NAME], day)
        for day, name in sorted(found.items())
    ]


def add(session: Session, days: Collection[Day]) -> set[str]:
    """Add the days that are not there yet, and return their keys.

    A row that is there stays as it is, also where a person has changed it or where the package says
    something else by now.
    """
    keys = [one.key for one in days]
    there = set(session.scalars(select(Holiday.key).where(Holiday.key.in_(keys))))
    new = [
        {"key": one.key, "name": one.name, "starts_on": one.day, "ends_on": one.day}
        for one in days
        if one.key not in there
    ]
    if new:
        insert, values = insert_many_or(session, Holiday, new)
        session.connection().execute(insert.on_conflict_do_nothing(), values)
    return {one.key for one in days} - there


def list_holidays(session: Session, *, since: date) -> list[dict[str, object]]:
    """Return the holidays that have not ended before a day, by date."""
    columns = (Holiday.key, Holiday.name, Holiday.starts_on, Holiday.ends_on)
    found = (
        select(*columns)
        .where(Holiday.ends_on >= since)
        .order_by(Holiday.starts_on, Holiday.ends_on, Holiday.key)
    )
    return [
        {"id": key, "name": name, "starts": first, "ends": last}
        for key, name, first, last in session.execute(found)
    ]


def remove(session: Session, key: str) -> None:
    """Remove a holiday: lessons take place then.

    Raises:
        NotFound: There is no such holiday.

    """
    gone = session.execute(delete(Holiday).where(Holiday.key == key).returning(Holiday.id))
    if not gone.all():
        raise NotFound(f"there is no holiday {key!r}; `school holidays list` shows their ids")
