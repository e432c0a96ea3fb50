"""Telling the broker of jobs. The ledger holds them whatever happens here, so this neither waits nor raises for long."""

import logging
import os
from contextlib import suppress
from functools import cache
from time import monotonic
from uuid import UUID

from kombu import Connection, Producer

from project.bootstrap import Bootstrap
from project.celery import app
from services.jobs import relay

logger = logging.getLogger(__name__)

# A caller that has just committed must not wait for a broker that is away: it gives up after this, and asks no more for a while.
CALLER_PATIENCE = 0.05
LEFT_ALONE = 30.0

# Characters of a job's arguments that Flower shows.
LONGEST_SHOWN = 1024


def _unreachable() -> tuple[type[BaseException], ...]:
    """Return what the broker's client raises when the broker is away."""
    return (OSError, *app.connection_for_write().recoverable_connection_errors)


class Publisher:
    """One connection to the broker, for messages that name jobs."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._connection: Connection | None = None
        self._producer: Producer | None = None
        self._pid = os.getpid()
        self._down_until = 0.0

    def send_soon(self, boot: Bootstrap, ids: list[UUID]) -> None:
        """Send those of `ids` that may be sent at once. What fails here the relay does a moment later."""
        if monotonic() < self._down_until:
            return
        try:
            # The broker first: a stamp for a message that cannot be sent would only have to be taken back.
            self._open()
            with boot.unit_of_work() as session:
                messages = relay.stamp(session, ids, buffer=boot.settings.relay_buffer)
            if not self.publish(messages):
                with boot.unit_of_work() as session:
                    relay.unstamp(session, messages)
        except _unreachable() as error:
            self._leave_alone(error)
        except Exception:
            # The caller's transaction has committed: nothing that goes wrong from here on may look as if it had not.
            logger.warning("jobs were enqueued but not sent; the relay will", exc_info=True)

    def publish(self, messages: list[relay.Message]) -> bool:
        """Hand messages to the broker in one batch and say whether it took them."""
        if not messages:
            return True
        try:
            producer = self._open()
            with producer.batch():
                for message in messages:
                    app.send_task(
                        message.kind,
                        kwargs=message.args,
                        # Celery's own way to write them for people takes a third of the time that a message takes.
                        argsrepr="()",
                        kwargsrepr=str(message.args)[:LONGEST_SHOWN],
                        task_id=str(message.job_id),
                        queue=message.queue,
                        producer=producer,
                        retry=False,
                        ignore_result=True,
                    )
        except _unreachable() as error:
            self._leave_alone(error)
            return False
        return True

    def ready(self, queue: str) -> int:
        """Return how many messages of a queue the broker has ready. Raises what the transport raises when it is away."""
        channel = self._open().channel
        # Redis knows no empty queue, and a passive declaration of one fails; the virtual transports can just count.
        count = getattr(channel, "_size", None)
        return int(count(queue) if count else channel.queue_declare(queue, passive=True).message_count)

    def _open(self) -> Producer:
        if self._pid != os.getpid():
            # A forked child must not write into its parent's connection, nor close it.
            self._connection, self._producer, self._pid = None, None, os.getpid()
        if self._producer is None:
            options = {"socket_connect_timeout": self._patience, "socket_timeout": self._patience}
            connection = app.connection_for_write(connect_timeout=self._patience, transport_options=options)
            # `connect()` would sleep two seconds before it gives up.
            connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0, timeout=self._patience)
            self._connection, self._producer = connection, app.amqp.Producer(connection)
        return self._producer

    def _leave_alone(self, error: BaseException) -> None:
        logger.warning("the broker is away: %s; jobs wait in the ledger", error)
        self._down_until = monotonic() + LEFT_ALONE
        self.close()

    def close(self) -> None:
        """Give the connection back; the next message opens another."""
        connection, self._connection, self._producer = self._connection, None, None
        if connection is not None:
            with suppress(Exception):  # It is broken already: that is why we are here.
                connection.release()


@cache
def publisher() -> Publisher:
    """Return this process's publisher."""
    return Publisher(CALLER_PATIENCE)
