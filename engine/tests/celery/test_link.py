"""What a worker's processes and its keeper say to each other."""

from uuid import uuid4

import pytest
from nightshift.celery.link import MOST_WORDS, Unrecorded, Word, open_pair


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


def test_newest_word_about_each_is_kept_until_it_is_recorded():
    unrecorded, one, other = Unrecorded(), uuid4(), uuid4()
    for word, about in ((Word.UNSURE, one), (Word.UNENDED, other), (Word.SURE, one)):
        unrecorded.add(word, about)
    unrecorded.drop(Word.UNSURE, one)  # recorded after the next was said
    assert list(unrecorded) == [(Word.UNENDED, other), (Word.SURE, one)]
    unrecorded.drop(Word.SURE, one)
    unrecorded.drop(Word.SURE, one)
    assert list(unrecorded) == [(Word.UNENDED, other)]


def test_words_for_a_database_that_is_away_for_long_have_a_bound():
    unrecorded, newest = Unrecorded(), uuid4()
    for about in [*(uuid4() for _ in range(MOST_WORDS)), newest]:
        unrecorded.add(Word.UNENDED, about)
    assert len(list(unrecorded)) == MOST_WORDS
    assert list(unrecorded)[-1] == (Word.UNENDED, newest)
