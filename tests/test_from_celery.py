"""What docs/from-celery.md says that still works."""

import threading

from celery import signals


def test_task_of_plain_celery_runs_and_its_signals_are_sent(job_app, request):
    ran, told = threading.Event(), threading.Event()

    @job_app.task(name="plain.mark")
    def mark(word):
        assert word == "hello"
        ran.set()

    @signals.task_postrun.connect(sender=mark)
    def tell(**_):
        told.set()

    # The worker looks at the tasks when it starts.
    request.getfixturevalue("job_worker")
    mark.delay("hello")

    assert (ran.wait(100), told.wait(100)) == (True, True)
