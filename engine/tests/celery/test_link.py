"""What a worker's processes and its keeper say to each other."""

from uuid import uuid4

import pytest
from nightshift.celery.link import Link, Word, open_pair


@pytest.fixture
def ends():
    ours, theirs = open_pair()
    yield ours, Link(theirs)
    ours.socket.close()
    theirs.close()


def test_lines_arrive_in_order(ends):
    worker, keeper = ends
    about = uuid4()
    worker.say(Word.ALIVE)
    worker.say(Word.UNSURE, about)
    assert keeper.hear() == [(Word.ALIVE, None), (Word.UNSURE, about)]
    assert keeper.hear() == []


def test_both_ends_speak(ends):
    worker, keeper = ends
    keeper.say(Word.ALIVE)
    assert worker.hear() == [(Word.ALIVE, None)]


def test_what_is_not_a_line_of_ours_is_dropped(ends):
    worker, keeper = ends
    worker.socket.send(b"oked 1234\nrevoked nonsense\n\xff\nalive\nali")
    assert keeper.hear() == [(Word.ALIVE, None)]
    worker.socket.send(b"ve\n")
    assert keeper.hear() == [(Word.ALIVE, None)]


def test_worker_does_not_wait_for_a_keeper_that_does_not_read(ends):
    worker, keeper = ends
    for _ in range(100_000):
        worker.say(Word.REVOKED, uuid4())
    assert keeper.hear()


def test_worker_outlives_a_keeper_that_is_gone(ends):
    worker, keeper = ends
    keeper.socket.close()
    worker.say(Word.ALIVE)
    assert worker.hear() == []
