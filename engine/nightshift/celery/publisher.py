"""Send messages that name jobs to the broker.

The ledger holds the jobs whatever happens here, so a broker that is away costs a caller at most
CALLER_PATIENCE and no error.
"""

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from uuid import UUID

from celery import Celery
from kombu import Connection, Producer

from nightshift.jobs import relay
from nightshift.runtime import Runtime

logger = logging.getLogger(__name__)

# Seconds that a caller, which has just committed, waits for the broker; and seconds after that in
# which it does not try again.
CALLER_PATIENCE = 0.05
LEFT_ALONE = 30.0

# Characters of a job's arguments that Flower shows.
LONGEST_SHOWN = 1024


def connect(make_connection: Callable[..., Connection], seconds: float) -> Connection:
    """Return an open connection to the broker; raise when that takes longer than `seconds`."""
    options = {"socket_connect_timeout": seconds, "socket_timeout": seconds}
    connection = make_connection(connect_timeout=seconds, transport_options=options)
    # `connect()` would sleep two seconds before it gives up.
    return connection.ensure_connection(
        max_retries=1, interval_start=0, interval_step=0, timeout=seconds
    )


class Publisher:
    """One connection to the broker, for messages that name jobs."""

    def __init__(self, app: Celery, patience: float) -> None:
        self.app = app
        self._patience = patience
        self._connection: Connection | None = None
        self._producer: Producer | None = None
        self._pid = os.getpid()
        self._down_until = 0.0

    def send_soon(self, runtime: Runtime, ids: list[UUID]) -> None:
        """Send the jobs among `ids` that may be sent at once. The relay sends the others."""
        if monotonic() < self._down_until:
            return
        try:
            # Connect first: a row that is marked as sent without a message would have to be marked
            # as unsent.
            self._open()
            with runtime.unit_of_work() as session:
                marked = relay.mark_sent(
                    session, ids, kinds=runtime.kinds, buffer=runtime.settings.relay_buffer
                )
            self.publish(runtime, marked)
        except self._unreachable() as error:
            self._leave_alone(error)
        except Exception:
            # The caller's transaction has committed, so the caller must not get an error.
            logger.warning("jobs were enqueued but not sent; the relay sends them", exc_info=True)

    def publish(self, runtime: Runtime, messages: list[relay.Notification]) -> None:
        """Send the messages of marked jobs to the broker in one batch.

        When the broker is away, mark all their jobs as not sent: the relay tries again. When one
        message cannot be built, hold its job with the reason, and send the others.
        """
        if not messages:
            return
        refused: dict[UUID, str] = {}
        try:
            producer = self._open()
            with producer.batch():
                for message in messages:
                    try:
                        self._send(message, producer)
                    except self._unreachable():
                        raise
                    except Exception as error:  # noqa: BLE001 - one bad row must not stop the others
                        refused[message.job_id] = f"{type(error).__name__}: {error}"
        except self._unreachable() as error:
            self._leave_alone(error)
            with runtime.unit_of_work() as session:
                relay.mark_unsent(session, messages)
            return
        if refused:
            logger.error("jobs that cannot be sent are held: %s", refused)
            with runtime.unit_of_work() as session:
                relay.hold_unsendable(session, refused)

    def _send(self, message: relay.Notification, producer: Producer) -> None:
        self.app.send_task(
            message.kind,
            kwargs=message.args,
            # To format these, Celery would take a third of the time that a message takes.
            argsrepr="()",
            kwargsrepr=str(message.args)[:LONGEST_SHOWN],
            task_id=str(message.job_id),
            queue=message.queue,
            producer=producer,
            retry=False,
            ignore_result=True,
        )

    def _unreachable(self) -> tuple[type[BaseException], ...]:
        """Return the exceptions that the broker's client raises when the broker is away."""
        return (OSError, *self.app.connection_for_write().recoverable_connection_errors)

    def count_ready(self, queue: str) -> int:
        """Return how many messages of a queue the broker has ready.

        Raises the transport's exception when the broker is away.
        """
        channel = self._open().channel
        # In Redis an empty queue does not exist, so a passive declaration would fail. kombu's
        # virtual transports, of which it is one, can count.
        count = getattr(channel, "_size", None)
        return int(
            count(queue) if count else channel.queue_declare(queue, passive=True).message_count
        )

    def _open(self) -> Producer:
        if self._pid != os.getpid():
            # A forked child must neither use nor close its parent's connection.
            self._connection, self._producer, self._pid = None, None, os.getpid()
        if self._producer is None:
            self._connection = connect(self.app.connection_for_write, self._patience)
            self._producer = self.app.amqp.Producer(self._connection)
        return self._producer

    def _leave_alone(self, error: BaseException) -> None:
        logger.warning("the broker is away: %s; jobs wait in the ledger", error)
        self._down_until = monotonic() + LEFT_ALONE
        self.close()

    def close(self) -> None:
        """Close the connection. The next message opens another."""
        connection, self._connection, self._producer = self._connection, None, None
        if connection is not None:
            with suppress(Exception):  # the connection may be broken already
                connection.release()
