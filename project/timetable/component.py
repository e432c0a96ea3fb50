"""What the timetable contributes: its sources, and the job that brings them in every night."""

from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from urllib.parse import urlsplit

from nightshift.component import SEVERITY, Answer, Component, Probe, Status
from nightshift.database import Session
from nightshift.errors import InvalidInput
from nightshift.jobs.schedule import Entry
from nightshift.observe.checks import show_time
from nightshift.runtime import Runtime

from project.school.settings import SchoolSettings
from project.timetable.settings import WEBUNTIS, TimetableSettings
from services.school.downloads import Limits, fetch
from services.school.timetable import sync
from services.school.timetable.icalendars import Calendar
from services.school.timetable.jobs import SyncTimetable
from services.school.timetable.models import State
from services.school.timetable.source import Source
from services.school.timetable.sync import Sources
from services.school.timetable.tables import Tables

# A night may fail; a source may be away for a while.
LATE_AFTER = timedelta(days=2)


def make_sources(runtime: Runtime) -> Sources:
    """Return the sources that the settings name."""
    settings, school = runtime[TimetableSettings], runtime[SchoolSettings]
    limits = Limits(networks=school.source_networks)
    load = partial(_fetch, limits=limits)
    zone = school.school_timezone
    by_name: dict[str, Source] = {
        name: _open_webuntis(settings, place)
        if place.startswith(WEBUNTIS)
        else Calendar(place, load, zone)
        if place.startswith("webcal") or urlsplit(place).path.lower().endswith(".ics")
        else Tables(place, load)
        for name, place in settings.places.items()
    }
    return Sources(by_name, zone)


def _fetch(address: str, limits: Limits) -> bytes:
    found = fetch(address, limits=limits)
    assert found is not None, "nothing is said of an earlier download"
    return found.content


def _open_webuntis(settings: TimetableSettings, place: str) -> Source:
    # Its library need not be there for other sources.
    from services.school.timetable.webuntis import Account, WebUntis  # noqa: PLC0415

    password = settings.timetable_password.get_secret_value()
    if not password:  # Beat and the web server need none.
        raise InvalidInput("TIMETABLE_PASSWORD: WebUntis needs it")
    server, _, school = place.removeprefix(WEBUNTIS).partition("/")
    return WebUntis(Account(server, school, settings.timetable_user, password))


def make_schedule(runtime: Runtime) -> Sequence[Entry]:
    """Return a nightly job for each source."""
    settings, zone = runtime[TimetableSettings], runtime[SchoolSettings].school_timezone
    return [
        Entry(
            f"timetable.sync.{name}",
            SyncTimetable(source=name),
            settings.timetable_at,
            zone,
            missed="latest",
        )
        for name in settings.places
    ]


def check_timetable(runtime: Runtime, session: Session) -> Answer:
    """Fail when a source's last good sync is too old; warn when its last one was refused."""
    worst, said = Status.OK, []
    for name in runtime[TimetableSettings].places:
        last, good = sync.find_last_run(session, name), sync.find_last_good(session, name)
        if last is None:
            status, detail = Status.WARN, "no sync yet"
        elif last.state in (State.REFUSED, State.FAILED):
            status, detail = Status.WARN, f"{last.state}: {last.error}"
        else:
            status, detail = Status.OK, "in step"
        if last is not None and (good is None or runtime.now() - good > LATE_AFTER):
            status = Status.FAIL
        good_said = f", last good sync {show_time(good)}" if good else ""
        said.append(f"{name}: {detail}{good_said}")
        worst = max(worst, status, key=SEVERITY.__getitem__)
    return worst, "; ".join(said) or "TIMETABLE_SOURCES names none"


timetable = Component(
    name="timetable",
    models=("services.school.timetable.models",),
    migrations="school",
    kinds=(SyncTimetable,),
    tasks=("tasks.timetable",),
    settings=TimetableSettings,
    schedule=make_schedule,
    provides={Sources: make_sources},
    probes=(
        Probe(
            "timetable",
            check_timetable,
            "`celery -A project school timetable sync --dry-run` shows what would change; what was"
            " refused and is right is brought in with --accept",
        ),
    ),
)
