"""What each store does, and what only a folder does."""

import os
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest

from services.calendars.folders import FolderStore
from services.calendars.models import FeedKind
from services.calendars.store import FeedStore
from tests.services.calendars.storage import files

ONE, TWO, THREE = (FeedKind.USER, 1), (FeedKind.USER, 2), (FeedKind.CLASS, 1)


def test_write_replaces_the_feed_and_leaves_nothing_else(store: FeedStore) -> None:
    first = store.write(*ONE, b"one")

    stamp = store.write(*ONE, b"three")

    assert files(store) == {"users/1.ics": b"three"}
    assert store.read(*ONE) == b"three"
    assert store.find_stamps([ONE]) == {ONE: stamp}
    assert stamp != first


def test_what_does_not_exist_has_neither_bytes_nor_a_stamp(store: FeedStore) -> None:
    stamp = store.write(*ONE, b"one")

    assert (store.read(*TWO), store.read(*THREE)) == (None, None)
    assert store.find_stamps([THREE, ONE, TWO]) == {ONE: stamp}
    store.remove(*TWO)
    assert files(store) == {"users/1.ics": b"one"}


def test_stamps_of_many_are_those_of_each(store: FeedStore) -> None:
    owners = [(FeedKind.USER, number) for number in range(300)]
    written = store.each(lambda owner: store.write(*owner, b"x"), owners[::3])
    there = dict(zip(owners[::3], written, strict=True))
    store.write(*THREE, b"asked for by nobody")

    assert store.find_stamps(owners) == there
    assert store.list_owners() == {*there, THREE}


def test_removed_feed_is_gone(store: FeedStore) -> None:
    store.write(*ONE, b"one")
    store.write(*THREE, b"three")

    store.remove(*ONE)

    assert store.list_owners() == {THREE}
    assert store.read(*ONE) is None


def test_each_keeps_the_order_and_begins_nothing_after_an_exception(store: FeedStore) -> None:
    begun = []

    def act(number: int) -> int:
        begun.append(number)
        if number == 40:
            raise LookupError
        return number

    assert list(store.each(lambda number: -number, range(99))) == [-one for one in range(99)]
    with pytest.raises(LookupError):
        list(store.each(act, range(10_000)))
    assert len(begun) < 10_000


def test_check_names_the_place(store: FeedStore) -> None:
    where = store.locate(*ONE).removesuffix("/users/1.ics")

    assert store.check_readable().startswith(where)
    assert store.check_writable().startswith(where)


def test_leftovers_are_old_halves_of_files(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.write(*ONE, b"x")
    folder = tmp_path / "users"
    old, young = folder / f".1.{uuid4().hex}.part", folder / f".2.{uuid4().hex}.part"
    for part, at in ((old, 100), (young, 200)):
        part.touch()
        os.utime(part, (at, at))

    store.remove_leftovers(before=datetime.fromtimestamp(150, UTC))

    assert sorted(folder.iterdir()) == sorted([young, folder / "1.ics"])


def test_files_are_for_the_service_alone(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "feeds")
    store.write(*ONE, b"one")

    file = store.path(*ONE)
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
