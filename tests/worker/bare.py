"""The same work on bare Celery, with the same settings: what the ledger is compared with."""

import os
import time

from celery import Celery
from sqlalchemy import NullPool, create_engine, text

from project.celeryconfig import configuration
from project.settings import Settings

app = Celery("bare")
app.conf.update({**configuration(Settings()), "imports": (), "broker_url": os.environ["BROKER_URL"]})
app.conf.broker_transport_options = {**app.conf.broker_transport_options, "global_keyprefix": "bare:"}
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
