"""Import the events of a calendar that is kept elsewhere, again and again.

An event is known again by its source and its UID there, so it keeps its id and its place in
calendars. What a person has changed or deleted here stays so, and the report says it. What is no
longer there is cancelled here. No mails are sent: calendars show what has come.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5
from zoneinfo import ZoneInfo

from nightshift.database import LONGEST_LIST, Session, batched
from nightshift.errors import Conflict, InvalidInput, ServiceError, first_line
from nightshift.jobs import Outcome, Run
from sqlalchemy import delete, select

from services.school import downloads, events
from services.school.downloads import Limits
from services.school.icalendars import SourceCalendar, SourceEvent, Trouble, read_calendar
from services.school.import_jobs import ImportSource
from services.school.loading import TARGETS, read_links
from services.school.models import Event, EventState
from services.school.recurrences import find_span
from services.school.rows import EventDetails, EventRow
from services.school.series import read_changes, read_series, spread, write_changes
from services.school.source_models import EventSource, SourceEntry, SourceRun

# Never change it: the ids of imported events depend on it, and they are UIDs in calendars.
SOURCE_NAMESPACE = UUID("5a1de4f2-0d4c-5b7e-8e0b-3b1f6f6d9a77")
# Raise it when the same file is read otherwise: then files that have not changed are read again.
READER_VERSION = 1
# Of a source that has this many coming events, more than one in five that vanish are a mistake.
FEWEST_TO_JUDGE, MOST_VANISHED = 5, 0.2
RUNS_KEPT = 30
LONGEST_NAME = 200
MOST_TOLD = 200

LINKS = TARGETS[EventRow.file].links


@dataclass(frozen=True, slots=True)
class ImportRules:
    """What an import depends on beside its source."""

    zone: ZoneInfo
    domain: str
    limits: Limits


@dataclass
class Report:
    """What an import did. `kept` are events that a person has changed here."""

    source: str
    new: int = 0
    changed: int = 0
    unchanged: int = 0
    cancelled: int = 0
    not_modified: bool = False
    kept: list[Trouble] = field(default_factory=list)
    troubles: list[Trouble] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON values, with the first of long lists."""
        shown = asdict(self)
        for name in ("kept", "troubles"):
            found = getattr(self, name)
            shown[name] = [one._asdict() for one in found[:MOST_TOLD]]
            shown[f"{name}_count"] = len(found)
        return shown


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a source has: its bytes, None where they have not changed, and the validators."""

    content: bytes | None
    etag: str | None = None
    last_modified: str | None = None


def is_url(address: str) -> bool:
    """Return whether an address is one to download from, and no file's path."""
    return "://" in address


@dataclass(frozen=True, slots=True)
class Order:
    """What a person asks for: which source, and how it is to be kept.

    None: as it is, or as usual.
    """

    name: str
    address: str
    options: Mapping[str, Any] | None = None
    nightly: bool | None = None


def look_up(session: Session, order: Order) -> EventSource:
    """Return the source as `keep` would make it, and write nothing."""
    found = session.scalars(select(EventSource).where(EventSource.name == order.name)).one_or_none()
    source = EventSource(name=order.name, address=order.address)
    if found is not None and found.address == order.address:
        same = order.options is None or dict(order.options) == found.options
        source.state = found.state if same else None
        source.etag, source.last_modified = found.etag, found.last_modified
    return source


def keep(session: Session, order: Order, *, now: datetime) -> EventSource:
    """Return the source of this name, which is made or changed as it is said.

    Raises InvalidInput for a nightly file, a name that is too long, or a class that is unknown.
    """
    if order.nightly and not is_url(order.address):
        raise InvalidInput("nightly: a file is imported by hand; give an address as https://…")
    if order.options is not None:
        today = now.date()
        sample = {"title": "-", "starts": today, "ends": today, **order.options}
        events.read_details(sample, zone=ZoneInfo("UTC"), session=session)
    found = session.scalars(select(EventSource).where(EventSource.name == order.name)).one_or_none()
    if found is None:
        if not 0 < len(order.name) <= LONGEST_NAME:
            raise InvalidInput(
                f"name: must have 1 to {LONGEST_NAME} characters; give a shorter one with --name"
            )
        found = EventSource(name=order.name, created_at=now, options={}, nightly=False)
        session.add(found)
    if found.address != order.address:
        found.state = None
    found.address = order.address
    if order.options is not None:
        found.options = dict(order.options)
    if order.nightly is not None:
        found.nightly = order.nightly
    found.nightly = found.nightly and is_url(order.address)
    session.flush()
    return found


def fetch(source: EventSource, rules: ImportRules, *, now: datetime) -> Fetched:
    """Return what a source has. It holds no transaction: a download takes its time.

    Raises:
        InvalidInput, Refused: The file or address cannot be read, or is beyond a limit.
        Away: It does not answer now.
    """
    if is_url(source.address):
        # What was read by other rules is read again, although it is the same.
        is_known = source.state is not None and source.state.startswith(_name_rules(now))
        found = downloads.fetch(
            source.address,
            limits=rules.limits,
            etag=source.etag if is_known else None,
            last_modified=source.last_modified if is_known else None,
        )
        if found is None:
            return Fetched(None, source.etag, source.last_modified)
        return Fetched(found.content, found.etag, found.last_modified)
    path, most = Path(source.address), rules.limits.size
    try:
        if not path.is_file():
            raise InvalidInput(f"{str(path)!r}: there is no such file")
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise InvalidInput(f"{str(path)!r}: {error.strerror}") from error
    if len(content) > most:
        raise InvalidInput(f"{str(path)!r} has more than {most:,} bytes, which is the limit")
    return Fetched(content)


def apply(
    session: Session,
    source_id: int,
    fetched: Fetched,
    rules: ImportRules,
    *,
    now: datetime,
    accept: bool = False,
    overwrite: bool = False,
) -> Report:
    """Bring the school's events up to date with what a source has, and record the run.

    All in the caller's transaction. `accept`: also where many events have vanished. `overwrite`:
    also what a person has changed here. A second run with the same bytes writes nothing but its
    record.

    Raises:
        InvalidInput: It is no calendar, or beyond a limit.
        Conflict: It is empty, or too many events have vanished. Nothing was written.
    """
    # Locked, so two runs of a source do not mix.
    locked = select(EventSource).where(EventSource.id == source_id).with_for_update()
    source = session.scalars(locked.execution_options(populate_existing=True)).one()
    report = Report(source.name)
    state = source.state
    if fetched.content is not None:
        state = _digest_state(source, fetched.content, now)
    if fetched.content is None or (state == source.state and not overwrite):
        report.not_modified = True
        report.unchanged = len(_read_entries(session, source))
    else:
        today = now.astimezone(rules.zone).date()
        calendar = read_calendar(fetched.content, rules.zone, domain=rules.domain, today=today)
        report.troubles = calendar.troubles
        _write_all(
            session, source, calendar, report, rules, now=now, accept=accept, overwrite=overwrite
        )
    source.state = state
    source.etag, source.last_modified = fetched.etag, fetched.last_modified
    _record(session, source, now=now, report=report)
    return report


def import_source(run: Run, args: ImportSource, rules: ImportRules) -> Outcome:
    """Fetch a source and apply it. A failure is recorded, and raised again."""
    with run.read_only() as session:
        source = session.get(EventSource, args.source_id)
        if source is None:
            return {"gone": True}
        session.expunge(source)
    try:
        fetched = fetch(source, rules, now=run.now)
        with run.unit_of_work() as session:
            report = apply(session, source.id, fetched, rules, now=run.now)
            run.finish(session, {"report": report.as_json()})
    except ServiceError as failure:
        with run.unit_of_work() as session:
            record_failure(session, source.id, failure, now=run.now)
        raise
    return None


def find_nightly(session: Session) -> list[int]:
    """Return the sources that are imported every night."""
    query = select(EventSource.id).where(EventSource.nightly).order_by(EventSource.id)
    return list(session.scalars(query))


def record_failure(
    session: Session, source_id: int, failure: ServiceError, *, now: datetime
) -> None:
    """Record why an import failed."""
    source = session.get(EventSource, source_id)
    if source is not None:
        _record(session, source, now=now, error=first_line(failure))


def list_sources(session: Session) -> list[dict[str, Any]]:
    """Return the sources by name, each with its last run. Their addresses may be secret."""
    found = []
    for source in session.scalars(select(EventSource).order_by(EventSource.name)):
        runs = select(SourceRun).where(SourceRun.source_id == source.id)
        last = session.scalars(runs.order_by(SourceRun.ended_at.desc()).limit(1)).first()
        found.append(
            {
                "name": source.name,
                "nightly": source.nightly,
                "options": source.options,
                "events": len(_read_entries(session, source)),
                "last_run_at": last and last.ended_at,
                "error": last and last.error,
                "report": last and last.report,
            }
        )
    return found


# --- writing ---


def _name_rules(now: datetime) -> bytes:
    """Return what the reading of a file depends on: the year moves the end of endless rules."""
    return f"{READER_VERSION} {now.year} ".encode()


def _digest_state(source: EventSource, content: bytes, now: datetime) -> bytes:
    """Return a digest of all that a source's events depend on."""
    options = repr(sorted(source.options.items())).encode()
    return _name_rules(now) + blake2b(options + content, digest_size=16).digest()


def _read_entries(session: Session, source: EventSource) -> dict[UUID, SourceEntry]:
    found = session.scalars(select(SourceEntry).where(SourceEntry.source_id == source.id))
    return {entry.event_id: entry for entry in found}


def make_source_event_id(source: str, event: SourceEvent) -> UUID:
    """Return the id of a source's event, which is the same at every import."""
    return uuid5(SOURCE_NAMESPACE, f"{source}\n{event.uid}\n{event.part}")


def _write_all(
    session: Session,
    source: EventSource,
    calendar: SourceCalendar,
    report: Report,
    rules: ImportRules,
    *,
    now: datetime,
    accept: bool,
    overwrite: bool,
) -> None:
    wanted = {make_source_event_id(source.name, one): one for one in calendar.events}
    entries = _read_entries(session, source)
    unread = {trouble.uid for trouble in calendar.troubles}
    missing = [
        event_id
        for event_id, entry in entries.items()
        # Not those that it has and that could not be read: these stay as they are.
        if event_id not in wanted and entry.gone_at is None and entry.uid not in unread
    ]
    vanished = _leave_out_past(session, missing, rules.zone, now=now)
    _judge(entries, vanished, wanted, accept=accept)
    here = _digest_events(session, entries.keys() | wanted.keys())
    written: list[UUID] = []
    for event_id, one in wanted.items():
        entry, said = entries.get(event_id), one.digest() + repr(source.options).encode()
        said = blake2b(said, digest_size=16).digest()
        if entry is not None and entry.said == said and entry.gone_at is None and not overwrite:
            report.unchanged += 1
            continue
        if entry is not None and here.get(event_id) != entry.written and not overwrite:
            report.kept.append(
                Trouble(one.uid, one.title, "was changed here; --overwrite takes it")
            )
            continue
        try:
            details = _read_details(session, one, source.options, rules.zone)
        except InvalidInput as refusal:
            reason = str(refusal).replace("\n", "; ")
            report.troubles.append(Trouble(one.uid, one.title, reason))
            continue
        if entry is None:
            entry = SourceEntry(
                event_id=event_id, source_id=source.id, uid=one.uid, part=one.part, written=b""
            )
            report.new += 1
        elif entry.said == said and entry.gone_at is None and here.get(event_id) == entry.written:
            report.unchanged += 1
            continue
        else:
            report.changed += 1
        _write_event(session, event_id, one, details, rules.zone, now=now)
        entry.said, entry.gone_at = said, None
        session.add(entry)
        entries[event_id] = entry
        written.append(event_id)
    for event_id in vanished:
        entry = entries[event_id]
        if here.get(event_id) != entry.written and not overwrite:
            title = session.get_one(Event, event_id).title
            reason = "is gone there, and was changed here: it stays"
            report.kept.append(Trouble(entry.uid, title, reason))
            continue
        session.get_one(Event, event_id).cancelled_at = now
        entry.gone_at = now
        report.cancelled += 1
        written.append(event_id)
    session.flush()
    now_here = _digest_events(session, written)
    for event_id in written:
        entries[event_id].written = now_here[event_id]
    session.flush()


def _leave_out_past(
    session: Session, event_ids: Sequence[UUID], zone: ZoneInfo, *, now: datetime
) -> list[UUID]:
    """Return those of these events that are not over. A source may drop the others."""
    today = now.astimezone(zone).date()
    return [
        event_id
        for some in batched(event_ids, LONGEST_LIST)
        for event_id, series in read_series(session, Event.id.in_(some)).items()
        if find_span(series, zone)[1] >= today
    ]


def _judge(
    entries: Mapping[UUID, SourceEntry],
    vanished: Collection[UUID],
    wanted: Collection[UUID],
    *,
    accept: bool,
) -> None:
    """Raise Conflict where a source looks broken rather than changed."""
    there = [entry for entry in entries.values() if entry.gone_at is None]
    if accept or not vanished:
        return
    if not wanted:
        raise Conflict(
            f"it has no event, and had {len(there)}: nothing was changed; --accept cancels them"
        )
    if len(there) >= FEWEST_TO_JUDGE and len(vanished) > MOST_VANISHED * len(there):
        raise Conflict(
            f"{len(vanished)} of {len(there)} events have vanished, more than a fifth: nothing was"
            " changed; --accept cancels them"
        )


def _read_details(
    session: Session, one: SourceEvent, options: Mapping[str, Any], zone: ZoneInfo
) -> EventDetails:
    said = {
        "title": one.title,
        "description": one.description,
        "location": one.location,
        "starts": one.starts,
        "ends": one.ends,
        "repeats": one.rrule,
    }
    return events.read_details({**said, **options}, zone=zone, session=session)


def _write_event(
    session: Session,
    event_id: UUID,
    one: SourceEvent,
    details: EventDetails,
    zone: ZoneInfo,
    *,
    now: datetime,
) -> None:
    event = session.get(Event, event_id)
    if event is None:
        event = Event(id=event_id, state=EventState.PUBLISHED, created_at=now)
    was_cancelled = event.cancelled_at
    events.write(session, event, details)
    event.cancelled_at = (was_cancelled or now) if one.cancelled else None
    event.deleted_at = None  # Only --overwrite comes here with one.
    write_changes(session, event_id, one.changes)
    spread(session, [event_id], zone)


def _digest_events(session: Session, event_ids: Collection[UUID]) -> dict[UUID, bytes]:
    """Return a digest of what these events are here, by id."""
    session.flush()
    found: dict[UUID, bytes] = {}
    for some in batched(sorted(event_ids), 900):
        links = {
            column: sorted(map(str, read_links(session, link, some)))
            for column, link in LINKS.items()
        }
        changes = read_changes(session, Event.id.in_(some))
        query = select(Event).where(Event.id.in_(some)).execution_options(populate_existing=True)
        for event in session.scalars(query):
            named = {
                column: [pair for pair in pairs if str(event.id) in pair]
                for column, pairs in links.items()
            }
            said = (
                event.title,
                event.description,
                event.location,
                *(event.starts_at, event.ends_at, event.starts_on, event.ends_on),
                event.rrule,
                str(event.audience),
                str(event.teaching_affected),
                event.cancelled_at is not None,
                event.deleted_at is not None,
                named,
                [tuple(map(str, change)) for change in changes.get(event.id, ())],
            )
            found[event.id] = blake2b(repr(said).encode(), digest_size=16).digest()
    return found


def _record(
    session: Session,
    source: EventSource,
    *,
    now: datetime,
    report: Report | None = None,
    error: str | None = None,
) -> None:
    session.add(
        SourceRun(
            source_id=source.id,
            ended_at=now,
            error=error,
            report={} if report is None else report.as_json(),
        )
    )
    session.flush()
    newest = select(SourceRun.id).where(SourceRun.source_id == source.id)
    newest = newest.order_by(SourceRun.ended_at.desc()).limit(RUNS_KEPT)
    kept = session.scalars(newest).all()
    old = delete(SourceRun).where(SourceRun.source_id == source.id, SourceRun.id.not_in(kept))
    session.execute(old.execution_options(synchronize_session=False))
