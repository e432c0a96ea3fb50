"""Feeds: who has one, what is written, what a bad store, event or text does to it."""

import base64
import hashlib
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from icalendar import Calendar
from nightshift.database import Session
from sqlalchemy import delete, event, insert, select, text, update

from examples import made_up_school
from services.calendars import feeds, revisions
from services.calendars.folders import FolderStore
from services.calendars.models import EventRendering, EventRevision, Feed, FeedKind
from services.calendars.store import FeedStore, StoreUnavailable, name_file
from services.school.models import (
    Audience,
    Department,
    Event,
    EventClass,
    EventUser,
    IgnoredEvent,
    Role,
    SchoolClass,
    Subscription,
    User,
)
from services.translation import Locale
from tests.lint import lint
from tests.services.calendars.builders import (
    NEXT_RUN,
    NOW,
    RUN,
    SCHOOL_NAME,
    WINDOW,
    ZONE,
    build,
    counts,
    person,
    revise,
    row,
    timed,
    titles,
)
from tests.services.calendars.storage import files, place, stamps

# --- who has a feed ---


def test_ensure_gives_feeds_to_all_who_are_entitled(
    session: Session, school: SimpleNamespace
) -> None:
    made = feeds.add_missing(session)

    owners = {(kind, owner) for kind, owner in session.execute(select(Feed.kind, Feed.owner_id))}
    assert owners == {
        (FeedKind.DEPARTMENT, school.gymnasium.id),
        (FeedKind.DEPARTMENT, school.bilingue.id),
        (FeedKind.CLASS, school.class_ga.id),
        (FeedKind.CLASS, school.class_ba.id),
        (FeedKind.USER, school.anna.id),
        (FeedKind.USER, school.juerg.id),
        (FeedKind.USER, school.peter.id),
    }
    assert made == 7


def test_ensure_leaves_what_is_there(session: Session, school: SimpleNamespace) -> None:
    feeds.add_missing(session)
    before = session.execute(select(Feed.id, Feed.token).order_by(Feed.id)).all()
    school.kim.untis_id = "S2"
    session.flush()

    made = feeds.add_missing(session)

    after = session.execute(select(Feed.id, Feed.token).order_by(Feed.id)).all()
    assert made == 1
    assert after[: len(before)] == before


@pytest.mark.usefixtures("school")
def test_tokens_are_long_and_of_their_own(session: Session) -> None:
    session.add_all(
        person(f"P{number}", Role.STUDENT, untis_id=f"P{number}") for number in range(200)
    )
    session.flush()

    feeds.add_missing(session)

    tokens = session.scalars(select(Feed.token)).all()
    assert len(set(tokens)) == len(tokens) == 207
    assert (
        min(len(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))) for token in tokens) * 8
        >= 128
    )
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", token) for token in tokens)


def test_tokens_and_names_are_in_no_path_and_no_file(
    session: Session, school: SimpleNamespace, store: FeedStore
) -> None:
    build(session, store)

    feed_tokens = session.scalars(select(Feed.token)).all()
    everything = b"\n".join([*files(store).values(), *(name.encode() for name in files(store))])
    assert [token for token in feed_tokens if token.encode() in everything] == []
    assert sorted(files(store)) == sorted(
        [f"users/{user.id}.ics" for user in (school.anna, school.juerg, school.peter)]
        + [f"classes/{class_.id}.ics" for class_ in (school.class_ga, school.class_ba)]
        + [f"departments/{department.id}.ics" for department in (school.gymnasium, school.bilingue)]
    )


# --- building ---


def test_build_writes_every_feed_and_records_it(
    session: Session, school: SimpleNamespace, store: FeedStore
) -> None:
    built = build(session, store)

    data = store.read(FeedKind.CLASS, school.class_ga.id)
    feed = row(session, FeedKind.CLASS, school.class_ga.id)
    assert built == counts(7, 0)
    assert data is not None
    assert titles(data) == ["Versammlung", "Studienreise"]
    assert (feed.event_count, feed.size, feed.etag) == (
        2,
        len(data),
        hashlib.sha256(data).hexdigest()[:32],
    )
    assert (feed.built_at, feed.built_by, feed.error) == (NOW, RUN, None)
    owner = (FeedKind.CLASS, school.class_ga.id)
    assert store.find_stamps([owner]) == {owner: feed.stamp}
    assert [lint(content) for content in files(store).values()] == [[]] * 7


def test_build_speaks_each_owners_language(
    session: Session, school: SimpleNamespace, store: FeedStore
) -> None:
    school.assembly.cancelled_at = NOW

    build(session, store)

    assert titles(store.read(FeedKind.CLASS, school.class_ga.id)) == [
        "Abgesagt: Versammlung",
        "Studienreise",
    ]
    assert titles(store.read(FeedKind.CLASS, school.class_ba.id)) == ["Annulé : Versammlung"]
    assert titles(store.read(FeedKind.DEPARTMENT, school.bilingue.id)) == ["Annulé : Versammlung"]
    assert titles(store.read(FeedKind.USER, school.anna.id)) == [
        "Cancelled: Versammlung",
        "Studienreise",
    ]


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        ((FeedKind.CLASS, "class_ga"), "Kantonsschule: 27Ga"),
        ((FeedKind.CLASS, "class_ba"), "Kantonsschule: Maturité bilingue"),
        ((FeedKind.DEPARTMENT, "bilingue"), "Kantonsschule: Filière bilingue"),
        ((FeedKind.USER, "juerg"), "Kantonsschule: Jürg Muster"),
    ],
)
def test_build_names_each_calendar(
    session: Session,
    school: SimpleNamespace,
    tmp_path: Path,
    owner: tuple[FeedKind, str],
    name: str,
) -> None:
    store = FolderStore(tmp_path)

    build(session, store)

    calendar = Calendar.from_ical(store.read(owner[0], getattr(school, owner[1]).id) or b"")
    assert (calendar["NAME"], calendar["X-WR-CALNAME"]) == (name, name)


def test_build_writes_a_valid_file_for_an_empty_calendar(
    session: Session, school: SimpleNamespace, store: FeedStore
) -> None:
    session.add(Subscription(user_id=school.juerg.id, follows_me=False))
    session.flush()
    build(session, store)

    data = store.read(FeedKind.USER, school.juerg.id)
    assert data is not None
    assert titles(data) == []
    assert lint(data) == []


@pytest.mark.usefixtures("school")
def test_build_of_unchanged_feeds_writes_nothing(session: Session, store: FeedStore) -> None:
    build(session, store)
    before, rows = stamps(store), session.execute(select(*Feed.__table__.c).order_by(Feed.id)).all()

    again = build(session, store, now=NOW + timedelta(hours=6), run_id=NEXT_RUN)

    assert again == counts(0, 7)
    assert stamps(store) == before
    assert session.execute(select(*Feed.__table__.c).order_by(Feed.id)).all() == rows


@pytest.mark.usefixtures("school")
def test_build_twice_gives_the_same_bytes(
    session: Session, store: FeedStore, tmp_path: Path
) -> None:
    other = FolderStore(tmp_path / "other")
    build(session, store)

    again = build(session, other, now=NOW + timedelta(hours=6), run_id=NEXT_RUN)

    assert again == counts(7, 0)
    assert files(other) == files(store)


def test_build_leaves_the_feeds_that_a_change_does_not_touch(
    session: Session, school: SimpleNamespace, store: FeedStore
) -> None:
    build(session, store)
    before = stamps(store)
    school.trip.title = "Studienreise Wien"

    again = build(session, store, run_id=NEXT_RUN)

    changed = {name for name, stamp in stamps(store).items() if before[name] != stamp}
    assert changed == {
        f"classes/{school.class_ga.id}.ics",
        f"departments/{school.gymnasium.id}.ics",
        f"users/{school.anna.id}.ics",
    }
    assert again == counts(3, 4)


def lose(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def replace_by_as_many_bytes(path: Path) -> None:
    path.write_bytes(b"x" * len(path.read_bytes()))


@pytest.mark.parametrize("spoil", [lose, truncate, replace_by_as_many_bytes])
def test_build_mends_a_file_that_somebody_touched(
    session: Session, school: SimpleNamespace, store: FeedStore, spoil: Callable[[Path], None]
) -> None:
    build(session, store)
    before, etag = files(store), row(session, FeedKind.USER, school.anna.id).etag
    spoil(place(store, FeedKind.USER, school.anna.id))

    again = build(session, store, now=NOW + timedelta(hours=6), run_id=NEXT_RUN)

    assert again == counts(1, 6)
    assert files(store) == before
    assert row(session, FeedKind.USER, school.anna.id).etag == etag


def test_build_leaves_a_file_that_was_copied_and_its_date(
    session: Session, school: SimpleNamespace, tmp_path: Path
) -> None:
    store = FolderStore(tmp_path)
    build(session, store)
    path = store.path(FeedKind.USER, school.anna.id)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    before, modified_at = stamps(store), row(session, FeedKind.USER, school.anna.id).modified_at

    again = build(session, store, now=NOW + timedelta(hours=6), run_id=NEXT_RUN)
    once_more = build(session, store, now=NOW + timedelta(hours=6), run_id=UUID(int=3))

    assert (again, once_more) == (counts(1, 6), counts(0, 7))
    assert stamps(store) == before
    assert row(session, FeedKind.USER, school.anna.id).modified_at == modified_at


def test_build_mends_a_lost_folder(
    session: Session, school: SimpleNamespace, store: FeedStore
) -> None:
    build(session, store)
    before = files(store)
    for kind, owner_id in store.list_owners():
        if kind == FeedKind.USER:
            store.remove(kind, owner_id)

    again = build(session, store, run_id=NEXT_RUN)

    assert again == counts(3, 4)
    assert files(store) == before


def test_build_follows_a_renamed_owner(
    session: Session, school: SimpleNamespace, store: FeedStore
) -> None:
    build(session, store)
    school.juerg.last_name = "Meier"
    session.flush()

    again = build(session, store, run_id=NEXT_RUN)

    assert again == counts(1, 6)
    assert b"X-WR-CALNAME:Kantonsschule: J\xc3\xbcrg Meier\r\n" in (
        store.read(FeedKind.USER, school.juerg.id) or b""
    )


@pytest.mark.usefixtures("school")
def test_build_follows_a_renamed_school(session: Session, store: FeedStore) -> None:
    build(session, store)

    assert build(session, store, run_id=NEXT_RUN, name="Kantonsschule Zürich Nord") == counts(7, 0)


def test_build_follows_a_new_language(
    session: Session, school: SimpleNamespace, store: FeedStore
) -> None:
    build(session, store)
    school.gymnasium.locale = Locale.ENGLISH
    session.flush()

    assert build(session, store, run_id=NEXT_RUN) == counts(2, 5)


def test_build_leaves_out_those_who_lost_their_owner(
    session: Session, school: SimpleNamespace, store: FeedStore
) -> None:
    feeds.add_missing(session)
    session.execute(delete(User).where(User.id == school.juerg.id))

    assert build(session, store) == counts(6, 0)
    assert store.read(FeedKind.USER, school.juerg.id) is None


def test_build_counts_what_an_earlier_attempt_of_the_run_built(
    session: Session, school: SimpleNamespace, store: FeedStore
) -> None:
    build(session, store)
    place(store, FeedKind.USER, school.anna.id).unlink()

    assert build(session, store) == counts(7, 0)
    assert build(session, store, run_id=NEXT_RUN) == counts(0, 7)


@pytest.mark.usefixtures("school")
def test_contents_are_those_of_the_files(session: Session, store: FeedStore) -> None:
    build(session, store)
    ids = session.scalars(select(Feed.id)).all()

    found = {
        name_file(feed.kind, feed.owner_id): content
        for feed, content in feeds.read_contents(
            session, WINDOW, school_name=SCHOOL_NAME, feed_ids=ids
        )
    }

    assert found == files(store)


def test_out_of_date_are_the_feeds_that_a_build_would_write(
    session: Session, school: SimpleNamespace, store: FeedStore
) -> None:
    def stale() -> tuple[int, int]:
        ids, total = feeds.find_out_of_date(session, WINDOW, store, school_name=SCHOOL_NAME)
        return len(ids), total

    feeds.add_missing(session)
    revise(session)
    at_first = stale()
    build(session, store)
    afterwards = stale()
    school.trip.title = "Studienreise Wien"
    revise(session)
    place(store, FeedKind.USER, school.peter.id).unlink()

    assert (at_first, afterwards, stale()) == ((7, 7), (0, 7), (4, 7))


def test_feed_that_failed_is_out_of_date_until_it_is_built(
    session: Session, school: SimpleNamespace, store: FeedStore
) -> None:
    build(session, store)
    failed = row(session, FeedKind.USER, school.anna.id)
    failed.error = "no space left"
    session.flush()

    stale = feeds.find_out_of_date(session, WINDOW, store, school_name=SCHOOL_NAME)
    again = build(session, store, run_id=NEXT_RUN)

    assert stale == ([failed.id], 7)
    assert again == counts(1, 6)
    assert feeds.find_out_of_date(session, WINDOW, store, school_name=SCHOOL_NAME) == ([], 7)


# --- stores that fail ---


class PickyStore(FolderStore):
    """A store that has no room for some owners."""

    def __init__(self, root: Path, refused: set[tuple[FeedKind, int]]) -> None:
        super().__init__(root)
        self.refused = refused

    def write(self, kind: FeedKind, owner_id: int, content: bytes) -> str:
        if (kind, owner_id) in self.refused:
            raise StoreUnavailable("no space left")
        return super().write(kind, owner_id, content)


def test_build_keeps_the_last_good_file_of_a_feed_that_fails(
    session: Session, school: SimpleNamespace, tmp_path: Path
) -> None:
    store = PickyStore(tmp_path, set())
    build(session, store)
    good = files(store)
    before = row(session, FeedKind.CLASS, school.class_ga.id).fingerprint
    school.trip.title = "Studienreise Wien"
    store.refused = {(FeedKind.CLASS, school.class_ga.id)}

    failing = build(session, store, run_id=NEXT_RUN)
    feed = row(session, FeedKind.CLASS, school.class_ga.id)
    recorded = (feed.error, feed.fingerprint, feed.built_by)
    left = files(store)
    store.refused = set()
    corrected = build(session, store, run_id=UUID(int=3))

    name = f"class/{school.class_ga.id}"
    assert failing == {
        "built": 2,
        "unchanged": 4,
        "failed": 1,
        "errors": [{"feed": name, "error": "no space left"}],
    }
    assert recorded == ("no space left", before, RUN)
    assert left[f"classes/{school.class_ga.id}.ics"] == good[f"classes/{school.class_ga.id}.ics"]
    assert left[f"users/{school.anna.id}.ics"] != good[f"users/{school.anna.id}.ics"]
    assert corrected == counts(1, 6)
    assert row(session, FeedKind.CLASS, school.class_ga.id).error is None


def test_build_spoils_only_the_feeds_whose_event_has_no_bytes(
    session: Session, school: SimpleNamespace, store: FeedStore
) -> None:
    revise(session)
    session.execute(delete(EventRendering).where(EventRendering.event_id == school.trip.id))

    built = build(session, store)

    assert (built["built"], built["failed"]) == (4, 3)
    assert {error["feed"] for error in built["errors"]} == {
        f"class/{school.class_ga.id}",
        f"department/{school.gymnasium.id}",
        f"user/{school.anna.id}",
    }


@pytest.mark.usefixtures("school")
def test_build_into_a_store_below_a_file_fails_clearly(session: Session, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = FolderStore(tmp_path / "file" / "feeds")

    built = build(session, store)

    assert (built["built"], built["failed"]) == (0, 7)
    assert {error["error"] for error in built["errors"]} == {
        f"the feed store at {store.root} cannot be written: Not a directory"
    }


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Give a file system of 32 KiB, where this process may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("A FULL AND A READ-ONLY DISK ARE NOT TESTED: only root may mount one")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_build_on_a_read_only_disk_fails_clearly(
    session: Session, school: SimpleNamespace, small_disk: Path
) -> None:
    store = FolderStore(small_disk)
    build(session, store)
    good = files(store)
    school.trip.title = "Studienreise Wien"
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)

    built = build(session, store, run_id=NEXT_RUN)

    assert (built["built"], built["unchanged"], built["failed"]) == (0, 4, 3)
    assert {error["error"] for error in built["errors"]} == {
        f"the feed store at {small_disk} cannot be written: Read-only file system"
    }
    assert files(store) == good


def test_build_on_a_full_disk_keeps_the_last_good_files(
    session: Session, school: SimpleNamespace, small_disk: Path
) -> None:
    store = FolderStore(small_disk)
    school.trip.description = "x" * 9_000
    session.add_all(
        person(f"P{number}", Role.STUDENT, untis_id=f"P{number}", class_id=school.class_ga.id)
        for number in range(5)
    )

    built = build(session, store)

    message = f"the feed store at {small_disk} cannot be written: No space left on device"
    assert {error["error"] for error in built["errors"]} == {message}
    assert built["built"] + built["failed"] == 12
    assert [lint(content) for content in files(store).values()] == [[]] * built["built"]


# --- orphans ---


def test_remove_orphans_removes_the_feeds_of_owners_that_are_gone(
    session: Session, school: SimpleNamespace, store: FeedStore
) -> None:
    build(session, store)
    session.execute(delete(User).where(User.id == school.anna.id))
    session.execute(delete(SchoolClass).where(SchoolClass.id == school.class_ba.id))
    session.execute(delete(Department).where(Department.id == school.gymnasium.id))

    removed, _ = feeds.remove_orphans(session, store)

    assert removed == 3
    assert sorted(files(store)) == sorted(
        [
            f"users/{school.juerg.id}.ics",
            f"users/{school.peter.id}.ics",
            f"classes/{school.class_ga.id}.ics",
            f"departments/{school.bilingue.id}.ics",
        ]
    )
    assert len(session.scalars(select(Feed.id)).all()) == 4


def test_remove_orphans_removes_the_feeds_of_those_who_lost_their_right(
    session: Session, school: SimpleNamespace, store: FeedStore
) -> None:
    session.add(Subscription(user_id=school.juerg.id))
    build(session, store)
    school.anna.untis_id = None
    school.juerg.untis_id = None  # Jürg has a subscription.
    session.flush()
    session.execute(delete(Subscription).where(Subscription.user_id == school.peter.id))

    removed, _ = feeds.remove_orphans(session, store)

    assert removed == 2
    left = session.scalars(select(Feed.owner_id).where(Feed.kind == FeedKind.USER)).all()
    assert (left, [name for name in files(store) if name.startswith("users/")]) == (
        [school.juerg.id],
        [f"users/{school.juerg.id}.ics"],
    )


def test_remove_orphans_of_a_file_that_is_gone_already(
    session: Session, school: SimpleNamespace, store: FeedStore
) -> None:
    feeds.add_missing(session)
    session.execute(delete(User).where(User.id == school.anna.id))

    assert (feeds.remove_orphans(session, store), feeds.remove_orphans(session, store)) == (
        (1, []),
        (0, []),
    )


def test_new_feed_of_somebody_who_had_one_has_a_new_token(
    session: Session, school: SimpleNamespace, store: FeedStore
) -> None:
    build(session, store)
    token = row(session, FeedKind.USER, school.anna.id).token
    school.anna.untis_id = None
    session.flush()
    feeds.remove_orphans(session, store)
    school.anna.untis_id = "S1"
    session.flush()

    build(session, store)

    assert row(session, FeedKind.USER, school.anna.id).token != token


# --- how many statements it takes ---


def statements(session: Session, act: Callable[[], object]) -> int:
    """Count what is sent to the database; a statement for many rows at once counts once."""
    seen: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        seen.append(statement)

    engine = session.connection().engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        act()
    finally:
        event.remove(engine, "before_cursor_execute", note)
    return len(seen)


def big_school(session: Session, *, users: int, events: int) -> list[int]:
    """Make a school whose events are rendered already, and give the ids of its feeds."""
    made_up_school.generate(
        session,
        users=users,
        classes=8,
        departments=2,
        events=events,
        seed=3,
        zone=ZONE,
        now=NOW,
        today=NOW.date(),
    )
    ids = session.scalars(select(Event.id)).all()
    body = b"BEGIN:VEVENT\r\nEND:VEVENT\r\n"
    revision = {"sequence": 0, "modified_at": NOW, "source": b"", "digest": b"", "error": None}
    session.execute(insert(EventRevision), [{"event_id": event_id, **revision} for event_id in ids])
    session.execute(
        insert(EventRendering),
        [
            {"event_id": event_id, "locale": locale, "body": body}
            for event_id in ids
            for locale in Locale
        ],
    )
    feeds.add_missing(session)
    return list(
        session.scalars(select(Feed.id).where(Feed.kind == FeedKind.USER).order_by(Feed.id))
    )


@pytest.mark.parametrize("act", ["build", "again", "out_of_date"])
def test_number_of_statements_depends_on_neither_feeds_nor_events(
    session: Session, tmp_path: Path, act: str
) -> None:
    def count(name: str, feed_ids: list[int]) -> int:
        store = FolderStore(tmp_path / name)

        def chunk() -> object:
            return feeds.build(
                session, WINDOW, store, school_name="", feed_ids=feed_ids, run_id=RUN, now=NOW
            )

        if act == "build":
            return statements(session, chunk)
        chunk()
        if act == "again":
            return statements(session, chunk)
        return statements(
            session, lambda: feeds.find_out_of_date(session, WINDOW, store, school_name="")
        )

    savepoint = session.begin_nested()
    ids = big_school(session, users=130, events=200)
    some, many = count("10", ids[-10:]), count("100", ids[-100:])
    savepoint.rollback()
    session.expire_all()
    with_more_events = count("2000", big_school(session, users=130, events=2_000)[-100:])

    assert some == many == with_more_events < 30


# --- events that no service would have let in ---

BAD_TIMES = [
    ("ends_at", datetime(2026, 12, 1, 7, 59, tzinfo=UTC)),
    ("starts_at", datetime(2026, 12, 1, 9, 1, tzinfo=UTC)),
]


@pytest.mark.parametrize(("column", "value"), BAD_TIMES)
def test_event_that_ends_before_it_starts_spoils_only_itself(
    session: Session, school: SimpleNamespace, store: FeedStore, column: str, value: datetime
) -> None:
    bad = timed(66, title="Bad\x1b event", audience=Audience.ALL)
    session.add(bad)
    session.flush()
    session.execute(update(Event).where(Event.id == bad.id).values({column: value}))

    built = build(session, store)

    (error,) = revisions.find_errors(session, WINDOW)
    assert built == counts(7, 0)
    assert (error["event"], error["title"]) == (str(bad.id), "Bad event")
    assert "before it starts" in error["error"]
    assert titles(store.read(FeedKind.CLASS, school.class_ga.id)) == ["Versammlung", "Studienreise"]
    assert [lint(content) for content in files(store).values()] == [[]] * 7


def test_day_that_ends_before_it_starts_spoils_only_itself(
    session: Session, school: SimpleNamespace, store: FeedStore
) -> None:
    session.execute(
        update(Event).where(Event.id == school.trip.id).values(ends_on=date(2026, 12, 6))
    )

    build(session, store)

    assert [error["event"] for error in revisions.find_errors(session, WINDOW)] == [
        str(school.trip.id)
    ]
    assert titles(store.read(FeedKind.CLASS, school.class_ga.id)) == ["Versammlung"]


@pytest.mark.parametrize(
    "ends",
    [datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC), datetime(9998, 12, 31, tzinfo=UTC)],
    ids=["the last instant that there is", "nearly"],
)
def test_event_for_ever_spoils_nothing(
    session: Session, school: SimpleNamespace, store: FeedStore, ends: datetime
) -> None:
    session.execute(update(Event).where(Event.id == school.assembly.id).values(ends_at=ends))

    built = build(session, store)

    assert built == counts(7, 0)
    assert titles(store.read(FeedKind.CLASS, school.class_ga.id))[-1] == "Studienreise"
    assert [lint(content) for content in files(store).values()] == [[]] * 7


TEXTS = {
    "controls": "a\x01\x07\x08\x0b\x1b[31m\x7f\x85\x9f b\r\nc\rd",
    "right to left": "\u202eאבג שלום \u200f(דה)",
    "emoji": "👩‍👩‍👧‍👦🏳️‍🌈 \U0001f1e8\U0001f1ed",
    "100 KB": "Zeile mit Umläuten, Kommas; und \\ 😀\n" * 2_600,
    "syntax": "x\r\nEND:VEVENT\r\nBEGIN:VEVENT\r\nUID:y",
    "nothing": "",
    "no characters": "\ufeff\ufffe\uffff\u2028\u2029\u0085",
}


@pytest.mark.parametrize("name", TEXTS)
def test_text_of_any_kind_leaves_every_feed_valid(
    session: Session, school: SimpleNamespace, store: FeedStore, name: str
) -> None:
    text_ = TEXTS[name]
    session.execute(
        update(Event)
        .where(Event.id == school.trip.id)
        .values(title=text_, description=text_, location=text_)
    )
    session.execute(update(User).where(User.id == school.anna.id).values(first_name=text_[:150]))
    session.execute(
        update(SchoolClass).where(SchoolClass.id == school.class_ga.id).values(name=text_[:50])
    )

    built = build(session, store)

    assert built == counts(7, 0)
    assert revisions.find_errors(session, WINDOW) == []
    assert len(titles(store.read(FeedKind.USER, school.anna.id))) == 2
    assert [lint(content) for content in files(store).values()] == [[]] * 7


@pytest.mark.parametrize(
    "octets",
    ["41EDA08042", "41EDB08042", "41FF42", "41C3", "410042", "EFBBBF41"],
    ids=[
        "high surrogate",
        "low surrogate",
        "no UTF-8",
        "half a character",
        "NUL",
        "byte order mark",
    ],
)
def test_octets_that_are_no_text_leave_every_feed_valid(
    session: Session, school: SimpleNamespace, store: FeedStore, octets: str
) -> None:
    if session.get_bind().dialect.name != "sqlite":
        pytest.skip("Postgres stores only text as text")
    raw = text(f"CAST(x'{octets}' AS TEXT)")
    session.execute(
        update(Event).where(Event.id == school.trip.id).values(title=raw, description=raw)
    )
    session.execute(update(User).where(User.id == school.anna.id).values(last_name=raw))
    session.expire_all()

    built = build(session, store)

    assert built == counts(7, 0)
    assert revisions.find_errors(session, WINDOW) == []
    assert (
        titles(store.read(FeedKind.USER, school.anna.id))[1].replace("\ufffd", "").replace("B", "")
        == "A"
    )
    assert [lint(content) for content in files(store).values()] == [[]] * 7


# --- what is lost when somebody goes ---


@pytest.mark.parametrize("gone", ["class", "person"])
def test_event_whose_last_name_is_deleted_is_not_suddenly_for_the_whole_school(
    session: Session, school: SimpleNamespace, store: FeedStore, gone: str
) -> None:
    session.execute(update(Event).where(Event.id == school.trip.id).values(addressed=True))
    if gone == "class":
        session.execute(delete(SchoolClass).where(SchoolClass.id == school.class_ga.id))
    else:
        session.execute(delete(EventClass))
        session.add(EventUser(event_id=school.trip.id, user_id=school.kim.id))
        session.flush()
        session.execute(delete(User).where(User.id == school.kim.id))

    build(session, store)

    assert titles(store.read(FeedKind.CLASS, school.class_ba.id)) == ["Versammlung"]


def test_ignored_event_is_out_of_the_file(
    session: Session, school: SimpleNamespace, store: FeedStore
) -> None:
    session.add(Subscription(user_id=school.anna.id))
    session.flush()
    session.add(IgnoredEvent(user_id=school.anna.id, event_id=school.assembly.id))

    build(session, store)

    assert titles(store.read(FeedKind.USER, school.anna.id)) == ["Studienreise"]


def test_listed_tells_everything_but_the_token(
    session: Session, school: SimpleNamespace, store: FeedStore
) -> None:
    build(session, store)

    rows = feeds.list_feeds(session, store)
    of_class = feeds.list_feeds(session, store, kind=FeedKind.CLASS)

    data = store.read(FeedKind.CLASS, school.class_ga.id) or b""
    assert [entry["kind"] for entry in rows] == ["class"] * 2 + ["department"] * 2 + ["user"] * 3
    assert of_class[0] == {
        "kind": "class",
        "owner": "27Ga",
        "path": store.locate(FeedKind.CLASS, school.class_ga.id),
        "events": 2,
        "left_out": 0,
        "bytes": len(data),
        "etag": hashlib.sha256(data).hexdigest()[:32],
        "built_at": datetime(2026, 11, 21, 12, tzinfo=UTC),
        "revoked_at": None,
        "error": None,
    }
    assert len(of_class) == 2
