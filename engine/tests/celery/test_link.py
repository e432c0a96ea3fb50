"""What a worker's processes and its keeper say to each other."""

from uuid import uuid4

import pytest
from nightshift.celery.link import MOST_WORDS, Unrecorded, Word, open_pair
from probing import untimed


@pytest.fixture
def ends():
    ours, theirs = open_pair()
    yield ours, theirs
    ours.socket.close()
    theirs.socket.close()


def test_lines_arrive_in_order(ends):
    worker, keeper = ends
    about = uuid4()
    worker.say(Word.ALIVE)
    worker.say(Word.UNSURE, about)
    assert untimed(keeper.hear()) == [(Word.ALIVE, None), (Word.UNSURE, about)]
    assert keeper.hear() == []


def test_both_ends_speak(ends):
    worker, keeper = ends
    keeper.say(Word.ALIVE)
    assert untimed(worker.hear()) == [(Word.ALIVE, None)]


def test_what_is_not_a_line_of_ours_is_dropped(ends):
    worker, keeper = ends
    worker.socket.send(b"oked 1234\nrevoked nonsense\n\xff\nalive\nali")
    assert untimed(keeper.hear()) == [(Word.ALIVE, None)]
    worker.socket.send(b"ve\n")
    assert untimed(keeper.hear()) == [(Word.ALIVE, None)]


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


def test_newest_word_about_each_is_kept_until_it_is_recorded():
    unrecorded, one, other = Unrecorded(), uuid4(), uuid4()
    for word, about in ((Word.UNSURE, one), (Word.UNENDED, other), (Word.SURE, one)):
        unrecorded.add(word, about)
    unrecorded.drop(Word.UNSURE, one)  # recorded after the next was said
    assert untimed(unrecorded) == [(Word.UNENDED, other), (Word.SURE, one)]
    unrecorded.drop(Word.SURE, one)
    unrecorded.drop(Word.SURE, one)
    assert untimed(unrecorded) == [(Word.UNENDED, other)]


def test_word_that_is_said_again_keeps_its_time(ends):
    worker, keeper = ends
    unrecorded, about = Unrecorded(), uuid4()
    for since in (2.5, 1.25, 4.0):
        worker.say(Word.REVOKED, about, since)
    for word in keeper.hear():
        unrecorded.add(*word)
    assert list(unrecorded) == [(Word.REVOKED, about, 1.25)]
    unrecorded.add(Word.UNKNOWN, about, 3.0)
    assert list(unrecorded) == [(Word.UNKNOWN, about, 3.0)]


def test_words_for_a_database_that_is_away_for_long_have_a_bound():
    unrecorded, newest = Unrecorded(), uuid4()
    for about in [*(uuid4() for _ in range(MOST_WORDS)), newest]:
        unrecorded.add(Word.UNENDED, about)
    assert len(list(unrecorded)) == MOST_WORDS
    assert untimed(unrecorded)[-1] == (Word.UNENDED, newest)
