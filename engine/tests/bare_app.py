"""The same work on bare Celery, with the same settings: what the ledger is compared with.

`celery -A bare_app worker`
"""

import os
import time

from celery import Celery
from kombu import Queue
from nightshift.celery.configuration import build_configuration
from nightshift.component import Composition
from nightshift.settings import Settings
from sqlalchemy import NullPool, create_engine, text

app = Celery("bare_app")
settings = Settings()
app.conf.update(build_configuration(settings, Composition([])))
# Beside the ledger's: on Redis by the prefix, on RabbitMQ by the queue.
if settings.broker_url.startswith("redis"):
    app.conf.broker_transport_options = {
        **app.conf.broker_transport_options,
        "global_keyprefix": "bare:",
    }
else:
    app.conf.task_queues = [Queue("bare", queue_arguments={"x-queue-type": "quorum"})]
    app.conf.task_default_queue = app.conf.task_default_routing_key = "bare"
# As much safety as bare Celery has to offer.
app.conf.task_reject_on_worker_lost = True


@app.task(name="bare.leave", bind=True, max_retries=30)
def leave(self, milliseconds: int) -> None:
    """Leave a row, and try again when the database is away."""
    try:
        time.sleep(milliseconds / 1000)
        with create_engine(os.environ["DATABASE_URL"], poolclass=NullPool).begin() as connection:
            connection.execute(
                text("insert into bare_effect (job_id, attempt, at) values (:job, 1, :at)"),
                {"job": self.request.id, "at": time.time()},
            )
    except Exception as error:
        raise self.retry(exc=error, countdown=1) from error


def send(number: int, milliseconds: int) -> None:
    """Send so many tasks."""
    with app.producer_or_acquire() as producer:
        for _ in range(number):
            leave.apply_async([milliseconds], producer=producer)
