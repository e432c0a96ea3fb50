"""The example school's calendars against a table that was written by hand, and other parsers.

The table was made from the CSV files and the rules.
"""

import json
import os
import shutil
import subprocess
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
import vobject
from ical.calendar_stream import IcsCalendarStream
from icalendar import Calendar
from nightshift.database import Session
from sqlalchemy import func, select

from services.calendars import feeds, revisions
from services.calendars.folders import FolderStore
from services.calendars.models import Feed, FeedKind
from services.calendars.window import Window
from services.school.loading import load
from services.school.models import Department, SchoolClass, User
from services.school.rows import make_event_id
from tests.ical_js import require_ical_js
from tests.lint import lint

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
ZONE = ZoneInfo("Europe/Zurich")
WINDOW = Window.around(NOW, ZONE, days_past=31, days_ahead=465)

# In no calendar: studienreise-27ga, over before 21 October 2026; theater-neu, theater-alt,
# entwurf-skilager and abgelehnt-party, which are not published or not current.
# For the whole school: these three, which are for all, and konvent, which is for teachers.
SCHOOL = {"eroeffnung-2026", "ausstellung", "sporttag"}

CLASSES = {
    "27Ga": SCHOOL
    | {"dst-nacht", "dst-stunde", "abgabe-maturaarbeit", "pruefung-mathe", "maturfeier"},
    "27GA": SCHOOL | {"dst-vorher", "abgabe-maturaarbeit", "maturfeier"},
    "28Ga": SCHOOL | {"3f0c2a54-8d1b-4e0e-9a6f-0b6a1d2c7e55", "maturfeier"},
    "27Wa": SCHOOL | {"theater", "maturfeier"},
    "28Wb": SCHOOL | {"theater"},
    "28Ba": SCHOOL | {"dst-fruehling", "sortie-geneve", "weiterbildung-kultur"},
}

DEPARTMENTS = {
    "Gymnasium": SCHOOL
    | {
        "konvent",
        "klassenlehrkonferenz",
        "dst-vorher",
        "dst-nacht",
        "dst-stunde",
        "abgabe-maturaarbeit",
        "pruefung-mathe",
    }
    | {"3f0c2a54-8d1b-4e0e-9a6f-0b6a1d2c7e55", "maturfeier"},
    "Wirtschaftsmittelschule": SCHOOL | {"konvent", "theater", "maturfeier"},
    "Filière bilingue": SCHOOL
    | {"konvent", "klassenlehrkonferenz", "dst-fruehling", "sortie-geneve", "weiterbildung-kultur"},
    "Bibliothek & Kultur": SCHOOL | {"konvent", "dst-vorher", "dst-nachher"},
}

USERS = {
    # Teaches no class: what is for the whole school, for all or for teachers.
    "sekretariat@kantonsschule.example": SCHOOL | {"konvent"},
    # Class teacher of 27Ga in both semesters, and 27GA's in autumn.
    "juerg.mueller@kantonsschule.example": SCHOOL
    | {
        "konvent",
        "dst-vorher",
        "maturfeier",
        "klassenlehrkonferenz",
        "dst-nacht",
        "dst-stunde",
        "abgabe-maturaarbeit",
        "pruefung-mathe",
    },
    # Class teacher of 27GA; of 28Ga only in autumn, and its excursion is in spring. The training
    # names her.
    "kaethi.brunner@kantonsschule.example": SCHOOL
    | {
        "konvent",
        "dst-vorher",
        "maturfeier",
        "klassenlehrkonferenz",
        "abgabe-maturaarbeit",
        "weiterbildung-kultur",
    },
    # Class teacher of 28Ga. He teaches 27Ga, 27GA and 28Ba on Fridays and Saturdays in autumn, when
    # no event of theirs takes his lessons.
    "soeren.luethi@kantonsschule.example": SCHOOL
    | {
        "konvent",
        "dst-vorher",
        "maturfeier",
        "klassenlehrkonferenz",
        "3f0c2a54-8d1b-4e0e-9a6f-0b6a1d2c7e55",
    },
    # Class teacher of 27Wa, and of 28Wb in spring.
    "renate.huegli@kantonsschule.example": SCHOOL | {"konvent", "maturfeier", "theater"},
    # Does not follow what affects him: just what his department's and 28Ba's calendars hold.
    "francois.favre@kantonsschule.example": DEPARTMENTS["Filière bilingue"] | CLASSES["28Ba"],
    # Teaches 27Ga and 28Ba in autumn, on Tuesdays and on Saturday mornings; no class in spring. The
    # interview names her.
    "helene.rochat@kantonsschule.example": SCHOOL | {"konvent", "standortgespraech"},
    # Class teacher of 28Wb in autumn.
    "giulia.bernasconi@kantonsschule.example": SCHOOL | {"konvent", "theater"},
    # Teaches nobody; the interview names him.
    "peter.zuercher@kantonsschule.example": (
        DEPARTMENTS["Bibliothek & Kultur"]
        | CLASSES["27Ga"]
        | CLASSES["28Ba"]
        | {"standortgespraech"}
    )
    - {"dst-stunde"},
    "anna.aebischer@schueler.example": (CLASSES["27Ga"] | DEPARTMENTS["Bibliothek & Kultur"])
    - {"ausstellung"},
    "beat.buehler@schueler.example": CLASSES["27Ga"],
    "cem.celik@schueler.example": CLASSES["27Ga"],
    "daria.petrovic@schueler.example": CLASSES["27GA"],
    "emil.frei@schueler.example": CLASSES["27GA"],
    "fiona.gruenig@schueler.example": CLASSES["28Ga"],
    "gian.huesler@schueler.example": CLASSES["28Ga"],
    "hanna.isler@schueler.example": CLASSES["27Wa"],
    "ivo.jaeggi@schueler.example": CLASSES["27Wa"],
    "jana.koenig@schueler.example": CLASSES["28Wb"],
    "lea.dubois@schueler.example": (CLASSES["28Ba"] | CLASSES["27GA"]) - {"maturfeier", "konvent"},
    "maelle.perret@schueler.example": CLASSES["28Ba"],
    "noe.chatelain@schueler.example": CLASSES["28Ba"] | {"standortgespraech"},
    # Kim Nguyễn has neither an untis_id nor a subscription.
}

TABLE = {
    **{f"class {name}": events for name, events in CLASSES.items()},
    **{f"department {name}": events for name, events in DEPARTMENTS.items()},
    **{f"user {name}": events for name, events in USERS.items()},
}
KEYS = {make_event_id(key): key for key in set().union(*TABLE.values())}


@pytest.fixture
def calendars(session: Session, example_school: Path, tmp_path: Path) -> dict[str, Path]:
    """Load the example school, build every feed, and give the files by kind and owner."""
    load(session, example_school, zone=ZONE, now=NOW)
    revisions.record(session, WINDOW, [], domain="kantonsschule.example", now=NOW)
    feeds.add_missing(session)
    ids = session.scalars(select(Feed.id).order_by(Feed.id)).all()
    store = FolderStore(tmp_path)
    built = feeds.build(
        session,
        WINDOW,
        store,
        school_name="Kantonsschule",
        feed_ids=ids,
        run_id=UUID(int=1),
        now=NOW,
    )
    assert built == {"built": len(ids), "unchanged": 0, "failed": 0, "errors": []}
    assert revisions.find_errors(session, WINDOW) == []
    names = {
        (FeedKind.USER, id_): email for id_, email in session.execute(select(User.id, User.email))
    }
    names |= {
        (FeedKind.CLASS, id_): name
        for id_, name in session.execute(select(SchoolClass.id, SchoolClass.name))
    }
    names |= {
        (FeedKind.DEPARTMENT, id_): name
        for id_, name in session.execute(select(Department.id, Department.name))
    }
    owners = session.execute(select(Feed.kind, Feed.owner_id)).all()
    return {
        f"{kind} {names[kind, owner_id]}": store.path(kind, owner_id) for kind, owner_id in owners
    }


def key(uid: str) -> str:
    return KEYS.get(UUID(uid.partition("@")[0]), uid)


def keys(uids: list[str]) -> list[str]:
    """Give the events' keys in order, so that one that is there twice shows."""
    return sorted(map(key, uids))


# A repeated event is several VEVENTs: its rule, and each date that is cancelled or changed.
PARTS = {"klassenlehrkonferenz": 1 + 3}
EXPECTED = {
    name: sorted(event for event in events for _ in range(PARTS.get(event, 1)))
    for name, events in TABLE.items()
}


def test_every_feed_holds_what_the_table_says(calendars: dict[str, Path]) -> None:
    found = {
        name: keys(
            [str(event["UID"]) for event in Calendar.from_ical(path.read_bytes()).walk("VEVENT")]
        )
        for name, path in calendars.items()
    }

    assert found == EXPECTED


def test_nothing_in_the_feeds_is_found_by_the_lint(calendars: dict[str, Path]) -> None:
    assert {name: lint(path.read_bytes()) for name, path in calendars.items()} == {
        name: [] for name in TABLE
    }


def test_ical_reads_every_feed(calendars: dict[str, Path]) -> None:
    read = {
        name: IcsCalendarStream.calendar_from_ics(path.read_bytes().decode())
        for name, path in calendars.items()
    }

    assert {
        name: keys([event.uid for event in calendar.events]) for name, calendar in read.items()
    } == EXPECTED


def test_vobject_reads_every_feed(calendars: dict[str, Path]) -> None:
    read = {name: vobject.readOne(path.read_bytes().decode()) for name, path in calendars.items()}

    assert [name for name, calendar in read.items() if not calendar.validate()] == []
    assert {
        name: keys([event.uid.value for event in calendar.contents.get("vevent", [])])
        for name, calendar in read.items()
    } == EXPECTED


ICAL_JS = """
const ICAL = require("ical.js"), fs = require("fs"), found = {};
for (const [name, path] of Object.entries(JSON.parse(fs.readFileSync(0, "utf8")))) {
  const calendar = new ICAL.Component(ICAL.parse(fs.readFileSync(path, "utf8")));
  found[name] = calendar.getAllSubcomponents("vevent").map((each) => {
    const event = new ICAL.Event(each);
    const instant = (time) => (time.isDate ? time.toString() : time.toJSDate().toISOString());
    return [event.uid, event.summary, instant(event.startDate), instant(event.endDate)];
  });
}
console.log(JSON.stringify(found));
"""


def test_ical_js_reads_every_feed(calendars: dict[str, Path]) -> None:
    environment = require_ical_js()
    paths = json.dumps({name: str(path) for name, path in calendars.items()})

    run = subprocess.run(
        ["node", "-e", ICAL_JS],
        input=paths,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

    found: dict[str, list[list[str]]] = json.loads(run.stdout)
    assert {name: keys([uid for uid, *_ in events]) for name, events in found.items()} == EXPECTED
    assert times_of(found["class 27Ga"]) == {
        "eroeffnung-2026": (
            "Eröffnung des Schuljahres",
            "2026-11-23T07:15:00.000Z",
            "2026-11-23T08:00:00.000Z",
        ),
        "ausstellung": ("Ausstellung «Licht und Schatten»", "2026-09-01", "2027-02-27"),
        "sporttag": ("Abgesagt: Sporttag", "2026-12-09", "2026-12-10"),
        "dst-nacht": (
            "Sternwarte: Nacht der Zeitumstellung",
            "2026-10-24T20:00:00.000Z",
            "2026-10-25T05:00:00.000Z",
        ),
        "dst-stunde": (
            "Messung in der doppelten Stunde",
            "2026-10-25T00:30:00.000Z",
            "2026-10-25T01:30:00.000Z",
        ),
        "abgabe-maturaarbeit": (
            "Abgabe Maturaarbeit",
            "2026-11-30T22:59:00.000Z",
            "2026-11-30T22:59:00.000Z",
        ),
        "pruefung-mathe": (
            "Prüfung Mathematik: Vektoren, Matrizen",
            "2026-11-30T06:45:00.000Z",
            "2026-11-30T08:20:00.000Z",
        ),
        "maturfeier": (
            "Maturfeier 🎓 Remise des diplômes",
            "2027-07-02T15:00:00.000Z",
            "2027-07-02T18:00:00.000Z",
        ),
    }
    assert times_of(found["class 28Ba"])["dst-fruehling"] == (
        "Nuit de la lecture – l'heure d'été",
        "2027-03-27T19:00:00.000Z",
        "2027-03-28T05:00:00.000Z",
    )
    assert times_of(found["class 28Ba"])["sporttag"][0] == "Annulé : Sporttag"


def times_of(events: list[list[str]]) -> dict[str, tuple[str, ...]]:
    return {key(uid): tuple(rest) for uid, *rest in events}


def test_calcurse_reads_every_feed(calendars: dict[str, Path], tmp_path: Path) -> None:
    if shutil.which("calcurse") is None:
        pytest.skip(
            "CALCURSE IS NOT INSTALLED, and the strictest client is not asked:"
            " apt-get install calcurse"
        )
    counts = {}
    for name, path in calendars.items():
        folder = tmp_path / "calcurse" / path.parent.name / path.stem
        folder.mkdir(parents=True)

        run = subprocess.run(
            [
                "calcurse",
                "-D",
                folder,
                "-q",
                "-i",
                path,
                "--dump-imported",
                "--format-apt=%m\n",
                "--format-event=%m\n",
                "--format-recur-apt=%m\n",
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={**os.environ, "TZ": "Europe/Zurich", "LC_ALL": "C.UTF-8"},
        )

        counts[name] = (run.returncode, run.stdout.count("\n"), run.stderr)
    assert counts == {name: (0, len(events), "") for name, events in EXPECTED.items()}


@pytest.mark.parametrize(
    ("name", "event", "expected"),
    [
        (
            "class 27Ga",
            "abgabe-maturaarbeit",
            (datetime(2026, 11, 30, 22, 59, tzinfo=UTC), None, "CONFIRMED"),
        ),
        ("class 27Ga", "ausstellung", (date(2026, 9, 1), date(2027, 2, 27), "CONFIRMED")),
        ("class 27Ga", "sporttag", (date(2026, 12, 9), date(2026, 12, 10), "CANCELLED")),
        (
            "class 27Ga",
            "dst-stunde",
            (
                datetime(2026, 10, 25, 0, 30, tzinfo=UTC),
                datetime(2026, 10, 25, 1, 30, tzinfo=UTC),
                "CONFIRMED",
            ),
        ),
        (
            "class 27Wa",
            "theater",
            (
                datetime(2026, 12, 10, 18, tzinfo=UTC),
                datetime(2026, 12, 10, 20, 30, tzinfo=UTC),
                "CONFIRMED",
            ),
        ),
    ],
)
def test_event_is_told_as_the_file_says(
    calendars: dict[str, Path], name: str, event: str, expected: tuple[Any, ...]
) -> None:
    components = {
        key(str(each["UID"])): each
        for each in Calendar.from_ical(calendars[name].read_bytes()).walk("VEVENT")
    }

    found = components[event]
    assert (
        found["DTSTART"].dt,
        found["DTEND"].dt if "DTEND" in found else None,
        str(found["STATUS"]),
    ) == expected


def test_rows_are_those_that_the_readme_promises(session: Session, example_school: Path) -> None:
    loaded = load(session, example_school, zone=ZONE, now=NOW)

    assert {name: counted.rows for name, counted in loaded.items()} == {
        "departments": 4,
        "classes": 6,
        "users": 23,
        "semesters": 3,
        "holidays": 2,
        "lessons": 26,
        "events": 23,
        "event_dates": 4,
        "subscriptions": 4,
    }
    assert (
        session.scalar(select(func.count()).select_from(User).where(User.untis_id.is_(None))) == 2
    )


def test_window_is_the_one_that_the_table_was_written_for() -> None:
    assert (WINDOW.first, WINDOW.last) == (date(2026, 10, 21), date(2028, 2, 29))
    assert datetime.combine(WINDOW.first, time(), ZONE).astimezone(UTC) == datetime(
        2026, 10, 20, 22, tzinfo=UTC
    )
