"""Messages that are not ours, on the queue of a real worker."""

from forged import drown, read_worker_log


def test_foreign_messages_neither_end_a_worker_nor_harm_its_jobs(quick):
    worker = quick.worker()
    drown(quick, random_messages=200, every=25)
    assert worker.poll() is None
    assert "was dropped" in read_worker_log(quick)
