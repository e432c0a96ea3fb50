"""The folder with the calendar files."""

import os
from uuid import uuid4

from services.calendars.models import FeedKind
from services.calendars.store import FeedStore
from tests.services.calendars.builders import files


def test_leftovers_are_old_halves_of_files(store: FeedStore) -> None:
    store.write(FeedKind.USER, 1, b"x")
    folder = store.root / "users"
    old, young = folder / f".1.{uuid4().hex}.part", folder / f".2.{uuid4().hex}.part"
    for part, age in ((old, 100), (young, 200)):
        part.touch()
        os.utime(part, ns=(age, age))

    assert list(store.leftovers(older_than_ns=150)) == [old]


def test_write_replaces_the_file_and_leaves_nothing_else(store: FeedStore) -> None:
    store.write(FeedKind.USER, 1, b"one")

    stamp = store.write(FeedKind.USER, 1, b"three")

    assert files(store) == {"users/1.ics": b"three"}
    assert stamp == store.state(FeedKind.USER, 1)
    assert stamp.size == 5


def test_feeds_are_for_the_service_alone(tmp_path):
    store = FeedStore(tmp_path / "feeds")
    store.write(FeedKind.USER, 1, b"one")

    file = store.path(FeedKind.USER, 1)
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
