"""A school as CSV files, and ways to load it."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from nightshift.database import Base
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from services.school.loading import InvalidRows, load
from services.school.sheets import Problem

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


ZURICH = ZoneInfo("Europe/Zurich")


EXAMPLE = Path(__file__).parents[3] / "examples" / "school"


SCHOOL = {
    "departments.csv": "name,locale\nGymnasium,de\nBibliothek & Kultur,fr\n",
    "classes.csv": "name,department\n27Ga,Gymnasium\n27GA,Gymnasium\n28Wb,\n",
    "users.csv": (
        "email,first_name,last_name,role,class,untis_id\n"
        "Juerg@schule.example,Jürg,Müller,teacher,,MÜL\n"
        "anna@schule.example,Anna,Aebischer,student,27Ga,S1\n"
        "beat@schule.example,Beat,Bühler,student,27GA,\n"
    ),
    "semesters.csv": "name,starts,ends\nHerbst,2026-08-01,2027-01-31\n",
    "lessons.csv": (
        "id,semester,weekday,starts,ends,subject,classes,teachers,class_teacher\n"
        "L1,Herbst,mon,7:45,09:20,Mathematik,27Ga; 27GA,juerg@schule.example,yes\n"
    ),
    "events.csv": (
        "id,author,state,title,starts,ends,classes,class_groups,departments,users,version_of,cancelled\n"
        "sport-neu,,review,Sporttag 2,2026-12-03,2026-12-04,,,,,sport,\n"
        "sport,juerg@schule.example,published,Sporttag,2026-12-03,2026-12-03,27Ga;27GA,28W,"
        "Bibliothek & Kultur,BEAT@schule.example,,2026-11-20T16:45\n"
        "3F0C2A54-8d1b-4e0e-9a6f-0b6a1d2c7e55,,published,Abgabe,2026-11-30T23:59,2026-11-30T23:59,,,,,,\n"
    ),
    "subscriptions.csv": (
        "email,follows_me,departments,classes,ignored_events\nanna@schule.example,no,Gymnasium,28Wb;27GA,sport\n"
    ),
}


def write(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    return folder


def bring(
    session: Session, folder: Path, *, now: datetime = NOW, encoding: str = "utf-8"
) -> dict[str, Any]:
    return load(session, folder, zone=ZURICH, now=now, encoding=encoding)


def refusals(session: Session, folder: Path) -> list[tuple[str, int, str]]:
    return [problem[:3] for problem in problems(session, folder)]


def problems(session: Session, folder: Path) -> list[Problem]:
    """Return what is wrong, without the cells' values; nothing is written."""
    before = contents(session)
    with pytest.raises(InvalidRows) as refused:
        bring(session, folder)
    assert contents(session) == before
    return [problem._replace(value="") for problem in refused.value.problems]


def contents(session: Session) -> dict[str, list[Any]]:
    """Return every row except those of the change log, with its place on Postgres.

    A row that is rewritten with equal values moves.
    """
    place = "ctid::text, " if session.get_bind().dialect.name == "postgresql" else ""
    return {
        name: sorted(map(repr, session.execute(text(f'select {place}* from "{name}"'))))
        for name in Base.metadata.tables
        if name != "change_log"
    }


def pairs(session: Session, owner: Any, other: Any) -> set[tuple[Any, Any]]:
    return set(session.execute(select(owner, other)))
