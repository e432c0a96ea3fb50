import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
from nightshift.database import Session
from nightshift.errors import Conflict, NotFound
from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError

from services.calendars import feeds, serving
from services.calendars.folders import FolderStore
from services.calendars.models import ChangeLog, Feed, FeedKind
from services.calendars.store import FeedStore
from services.calendars.window import Window
from services.school.models import SchoolClass
from tests.conftest import NOW, ZONE
from tests.services.calendars.storage import place

WINDOW = Window.around(NOW, ZONE, days_past=31, days_ahead=465)
LATER = datetime(2100, 1, 1, tzinfo=UTC)


@pytest.fixture
def token(session: Session) -> str:
    """Give the token of a class's feed that was not built yet."""
    session.add(SchoolClass(name="27Ga"))
    session.flush()
    feeds.add_missing(session)
    return serving.find_token(session, FeedKind.CLASS, "27Ga")


def row(session: Session) -> Feed:
    return session.execute(select(Feed).execution_options(populate_existing=True)).scalar_one()


def build(session: Session, store: FeedStore, name: str = "Schule") -> None:
    feeds.build(
        session,
        WINDOW,
        store,
        school_name=name,
        feed_ids=[row(session).id],
        run_id=UUID(int=1),
        now=NOW,
    )


def serve(
    session: Session, store: FeedStore, token: str, now: datetime = LATER
) -> tuple[bytes, serving.Validators] | None:
    feed = serving.find(session, token)
    recorded = serving.find_recorded(feed, now=now)
    return recorded and serving.read_served(store, feed, recorded)


def is_recorded(session: Session, store: FeedStore, token: str) -> bool:
    return serving.is_recorded(store, serving.find(session, token))


def test_recorded_file_is_served_with_the_recorded_tag(
    session: Session, store: FeedStore, token: str
) -> None:
    build(session, store)
    feed = row(session)

    assert is_recorded(session, store, token)
    assert serve(session, store, token) == (
        store.read(FeedKind.CLASS, feed.owner_id),
        serving.Validators(feed.etag, feed.modified_at.replace(microsecond=0)),
    )


def lose(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("spoil", [lose, empty, cut])
def test_file_that_is_not_whole_is_not_served(
    session: Session, store: FeedStore, token: str, spoil: Callable[[Path], None]
) -> None:
    build(session, store)
    spoil(place(store, FeedKind.CLASS, row(session).owner_id))

    assert not is_recorded(session, store, token)
    assert serve(session, store, token) is None


def test_file_that_another_database_left_is_not_served(
    session: Session, store: FeedStore, token: str
) -> None:
    store.write(FeedKind.CLASS, row(session).owner_id, b"BEGIN:VCALENDAR\r\nEND:VCALENDAR\r\n")

    assert serve(session, store, token) is None


def test_file_that_is_not_the_recorded_one_has_a_tag_of_its_own(
    session: Session, store: FeedStore, token: str
) -> None:
    build(session, store)
    _, recorded = serve(session, store, token)
    path = place(store, FeedKind.CLASS, row(session).owner_id)
    path.write_bytes(path.read_bytes().replace(b"Schule", b"Schola"))

    content, found = serve(session, store, token)

    assert not is_recorded(session, store, token)
    # Nor is there a date: the recorded one is that of other bytes.
    assert (content, found.modified_at) == (path.read_bytes(), None)
    assert found.etag == feeds.make_etag(content) != recorded.etag


def test_modified_at_rises_by_a_second_with_every_build(
    session: Session, store: FeedStore, token: str
) -> None:
    build(session, store)
    _, first = serve(session, store, token)
    build(session, store, name="Schola")  # in the same second
    _, second = serve(session, store, token)

    assert second.modified_at - first.modified_at >= timedelta(seconds=1)
    assert second.etag != first.etag


def test_modified_at_does_not_fall_with_a_clock_that_is_set_back(
    session: Session, store: FeedStore, token: str
) -> None:
    build(session, store)
    ahead = datetime(2050, 1, 1, tzinfo=UTC)
    row(session).modified_at = ahead
    session.flush()
    build(session, store, name="Schola")

    _, served = serve(session, store, token)
    assert served.modified_at == ahead + timedelta(seconds=1)


def test_file_from_a_backup_is_known_by_its_bytes(
    session: Session, token: str, tmp_path: Path
) -> None:
    store = FolderStore(tmp_path)
    build(session, store)
    before = serve(session, store, token)
    os.utime(store.path(FeedKind.CLASS, row(session).owner_id), (1, 1))

    assert not is_recorded(session, store, token)
    assert serve(session, store, token) == before


def test_modified_at_is_never_in_the_future(session: Session, store: FeedStore, token: str) -> None:
    build(session, store)
    row(session).modified_at = LATER + timedelta(seconds=9)
    session.flush()

    _, served = serve(session, store, token, now=LATER)
    assert served.modified_at == LATER


def test_rotated_feed_has_a_new_address_and_not_the_old(session: Session, token: str) -> None:
    new = serving.rotate(session, FeedKind.CLASS, "27Ga")

    assert new != token
    assert serving.TOKEN.fullmatch(new)
    assert serving.find(session, token) is None
    assert serving.find(session, new) is not None
    assert serving.find_token(session, FeedKind.CLASS, "27Ga") == new


def test_revoked_feed_stays_revoked_until_it_is_rotated(
    session: Session, store: FeedStore, token: str
) -> None:
    serving.revoke(session, FeedKind.CLASS, "27Ga", now=NOW)
    assert feeds.add_missing(session) == 0
    build(session, store)
    feeds.remove_orphans(session, store)

    assert serving.find(session, token) is None
    with pytest.raises(Conflict, match=r"was revoked; `feeds rotate`"):
        serving.find_token(session, FeedKind.CLASS, "27Ga")

    new = serving.rotate(session, FeedKind.CLASS, "27Ga")
    assert new != token
    assert serving.find(session, new) is not None


def test_revoked_feed_has_no_file_until_it_is_rotated(
    session: Session, store: FeedStore, token: str
) -> None:
    build(session, store)
    session.execute(delete(ChangeLog))
    owner = (FeedKind.CLASS, serving.revoke(session, FeedKind.CLASS, "27Ga", now=NOW))
    left = store.read(*owner)
    build(session, store, name="Schola")
    unchanged = store.read(*owner)
    feeds.remove_orphans(session, store)
    removed = store.read(*owner)
    build(session, store)

    assert left == unchanged != removed
    assert (removed, store.read(*owner)) == (None, None)

    serving.rotate(session, FeedKind.CLASS, "27Ga")
    session.flush()
    # By this a refresh finds it.
    noted = session.execute(select(ChangeLog.kind, ChangeLog.key)).all()
    build(session, store)
    assert [tuple(one) for one in noted] == [("class", str(owner[1]))] * 2
    assert store.read(*owner) == left


def test_owner_who_comes_again_has_another_address(
    session: Session, store: FeedStore, token: str
) -> None:
    session.execute(delete(SchoolClass))
    feeds.remove_orphans(session, store)
    session.add(SchoolClass(name="27Ga"))
    session.flush()
    feeds.add_missing(session)

    assert serving.find(session, token) is None
    assert serving.find_token(session, FeedKind.CLASS, "27Ga") != token


@pytest.mark.parametrize(
    "act", [serving.find_token, serving.rotate, lambda *which: serving.revoke(*which, now=NOW)]
)
def test_unknown_owner_is_named(session: Session, token: str, act: Callable[..., object]) -> None:
    with pytest.raises(NotFound, match="there is no class '27GA'"):
        act(session, FeedKind.CLASS, "27GA")
    session.add(SchoolClass(name="27GA"))
    session.flush()
    with pytest.raises(NotFound, match="class 27GA has no feed"):
        act(session, FeedKind.CLASS, "27GA")


def test_token_is_not_in_the_message_of_a_database_error(session: Session, token: str) -> None:
    feed = row(session)
    session.add(Feed(kind=feed.kind, owner_id=feed.owner_id, token="a-token-that-nobody-may-see"))
    with pytest.raises(IntegrityError) as error:
        session.flush()

    assert "feed" in str(error.value)
    assert "a-token-that-nobody-may-see" not in str(error.value)


def test_calendars_are_listed_with_their_names_and_addresses(session: Session, token: str) -> None:
    feed = row(session)

    found = serving.list_calendars(session, kind=FeedKind.CLASS, owner_id=feed.owner_id)

    assert [tuple(one) for one in found] == [(FeedKind.CLASS, feed.owner_id, "27Ga", 0, token)]


def test_revoked_calendar_is_listed_without_an_address(session: Session, token: str) -> None:
    serving.revoke(session, FeedKind.CLASS, "27Ga", now=NOW)

    assert [one.token for one in serving.list_calendars(session)] == [None]
