"""Send messages that name jobs to the broker.

The ledger holds the jobs whatever happens here, so a broker that is away costs a caller at most
CALLER_PATIENCE and no error.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cached_property
from time import monotonic
from uuid import UUID

from amqp.exceptions import NotFound
from celery import Celery
from celery.exceptions import QueueNotFound
from kombu import Connection, Producer
from kombu.exceptions import BatchPublishError, EncodeError, OperationalError

from nightshift.celery.messages import IDS
from nightshift.celery.patience import Budget, patience
from nightshift.errors import first_line
from nightshift.jobs import relay
from nightshift.runtime import Runtime

logger = logging.getLogger(__name__)

# Seconds that a caller, which has just committed, waits for the broker; and seconds after that in
# which it does not try again. A queue that the broker refuses is left alone as long.
CALLER_PATIENCE = 0.05
LEFT_ALONE = 30.0

# What building a message may raise. Everything else is the broker's.
UNBUILDABLE = (QueueNotFound, EncodeError)

# More messages than jobs: none counts as lost.
UNKNOWN_COUNT = sys.maxsize

# Characters of a job's arguments that Flower shows.
LONGEST_SHOWN = 1024


def _show(message: relay.Notification) -> str:
    """Return what Flower shows of a message, in ASCII, which any broker can carry."""
    if len(message.job_ids) == 1:
        return ascii(message.args)
    return f"{len(message.job_ids)} jobs: {', '.join(map(str, message.job_ids))}"


def connect(make_connection: Callable[..., Connection], seconds: float) -> Connection:
    """Return an open connection to the broker; raise when the waits for it exceed `seconds`."""
    options = {"socket_connect_timeout": seconds, "socket_timeout": seconds}
    connection = make_connection(connect_timeout=seconds, transport_options=options)
    with patience(seconds):
        # `connect()` would sleep two seconds before it gives up.
        return connection.ensure_connection(
            max_retries=1, interval_start=0, interval_step=0, timeout=seconds
        )


class Publisher:
    """One connection to the broker, for messages that name jobs.

    `patience`: the seconds that one batch may wait for the network in all. `pause`: the seconds for
    which a broker that is away is left alone.
    """

    def __init__(self, app: Celery, patience: float, *, pause: float = LEFT_ALONE) -> None:
        self.app = app
        self._patience = patience
        self._pause = pause
        self._connection: Connection | None = None
        self._producer: Producer | None = None
        self._pid = os.getpid()
        self._down_until = 0.0
        self._refused_until: dict[str, float] = {}
        # By queue, or "" for the broker: the trouble that is logged already.
        self._troubles: dict[str, str] = {}

    def send_soon(self, runtime: Runtime, ids: list[UUID]) -> None:
        """Send the jobs among `ids` that may be sent at once. The relay sends the others."""
        # Connect first: a row that is marked as sent without a message would have to be marked as
        # unsent.
        with patience(self._patience) as budget:
            try:
                if not self.find_open(self.app.amqp.queues):
                    return
                with runtime.unit_of_work() as session:
                    marked = relay.mark_sent(
                        session, ids, kinds=runtime.kinds, buffer=runtime.settings.relay_buffer
                    )
                self._publish(runtime, marked, budget)
            except Exception:
                # The caller's transaction has committed, so the caller must not get an error.
                logger.warning(
                    "jobs were enqueued but not sent; the relay sends them", exc_info=True
                )

    def find_open(self, queues: Iterable[str]) -> list[str]:
        """Connect, and return the queues that can be sent to now: none while the broker is away."""
        now = monotonic()
        if now < self._down_until:
            return []
        try:
            with patience(self._patience):
                self._open()
        except Exception as error:  # noqa: BLE001 - also a refused login: all of it is the broker's
            self._leave_alone(error)
            return []
        return [queue for queue in queues if now >= self._refused_until.get(queue, 0.0)]

    def publish(self, runtime: Runtime, messages: list[relay.Notification]) -> None:
        """Send the messages of marked jobs to the broker, in one batch for each queue.

        Jobs whose messages the broker did not take are marked as not sent: the relay tries again. A
        queue that it refuses is left alone meanwhile. A job whose message cannot be built is held,
        with the reason.
        """
        with patience(self._patience) as budget:
            self._publish(runtime, messages, budget)

    def _publish(
        self, runtime: Runtime, messages: list[relay.Notification], budget: Budget
    ) -> None:
        refused: dict[UUID, str] = {}
        unsent: list[relay.Notification] = []
        by_queue: dict[str, list[relay.Notification]] = {}
        for message in messages:
            by_queue.setdefault(message.queue, []).append(message)
        for queue, some in by_queue.items():
            taken = self._publish_queue(some, refused, budget) if self.find_open([queue]) else 0
            unsent += some[taken:]
        if refused:
            logger.error("jobs that cannot be sent are held: %s", refused)
        if refused or unsent:
            with runtime.unit_of_work() as session:
                relay.mark_unsent(session, unsent)
                relay.hold_unsendable(session, refused)

    def _publish_queue(
        self, messages: list[relay.Notification], refused: dict[UUID, str], budget: Budget
    ) -> int:
        """Send the messages of one queue and return how many of them are dealt with.

        Those that cannot be built are added to `refused`.
        """
        queue, whole = messages[0].queue, budget.left
        producer = self._open()
        # A transport that sends a batch at its end has taken nothing before.
        at_once = not producer.supports_batch_publish
        sent = 0
        try:
            with producer.batch():
                for message in messages:
                    # What is left is for the answer to the last one.
                    if budget.left < whole / 2:
                        break
                    try:
                        self._send(message, producer)
                    except UNBUILDABLE as error:
                        reason = f"{type(error).__name__}: {error}"
                        refused |= dict.fromkeys(message.job_ids, reason)
                    sent += 1
        except Exception as error:  # noqa: BLE001 - one queue must not stop the others
            # Celery and kombu pack refusals and lost connections alike into these two.
            packed = isinstance(error, BatchPublishError | OperationalError)
            self._note(queue, (error.__cause__ if packed else None) or error)
            return sent if at_once else 0
        self._end_trouble("")
        self._end_trouble(queue)
        return sent

    def _send(self, message: relay.Notification, producer: Producer) -> None:
        job_ids = list(map(str, message.job_ids))
        self.app.send_task(
            message.kind,
            kwargs={IDS: job_ids},
            # To format these, Celery would take a third of the time that a message takes.
            argsrepr="()",
            kwargsrepr=_show(message)[:LONGEST_SHOWN],
            # A release that knows messages of one job only reads this alone.
            task_id=str(message.lead),
            queue=message.queue,
            producer=producer,
            retry=False,
            ignore_result=True,
        )

    @cached_property
    def _unreachable(self) -> tuple[type[BaseException], ...]:
        """The exceptions that the broker's client raises when the broker is away."""
        return (OSError, OperationalError, *self.app.connection_for_write().connection_errors)

    def count_ready(self, queue: str) -> int:
        """Return how many messages of a queue the broker has ready: of a deleted queue, none.

        Where the broker does not answer, or refuses the queue, return UNKNOWN_COUNT.
        """
        if not self.find_open([queue]):
            return UNKNOWN_COUNT
        try:
            with patience(self._patience):
                channel = self._open().channel
                # In Redis an empty queue does not exist, so a passive declaration would fail.
                # kombu's virtual transports, of which it is one, can count.
                count = getattr(channel, "_size", None)
                return int(
                    count(queue)
                    if count
                    else channel.queue_declare(queue, passive=True).message_count
                )
        except NotFound as error:
            # It is not left alone: the next message declares it.
            self._reopen(queue, error)
            return 0
        except Exception as error:  # noqa: BLE001 - one queue must not stop the others
            self._note(queue, error)
            return UNKNOWN_COUNT

    def _open(self) -> Producer:
        if self._pid != os.getpid():
            # A forked child must neither use nor close its parent's connection.
            self._connection, self._producer, self._pid = None, None, os.getpid()
        if self._connection is None:
            self._connection = connect(self.app.connection_for_write, self._patience)
        if self._producer is None:
            self._producer = self.app.amqp.Producer(self._connection.channel())
        return self._producer

    def _note(self, queue: str, error: BaseException) -> None:
        """Leave alone what an error is about: the broker, or one queue."""
        if isinstance(error, self._unreachable):
            self._leave_alone(error)
        else:
            self._refused_until[queue] = monotonic() + LEFT_ALONE
            self._reopen(queue, error)

    def _reopen(self, queue: str, error: BaseException) -> None:
        """Take another channel: RabbitMQ closes one with each error."""
        self._log_trouble(queue, f"the broker refuses the queue {queue}: {first_line(error)}")
        producer, self._producer = self._producer, None
        if self._connection is not None and producer is not None:
            with suppress(Exception), patience(self._patience):
                producer.channel.close()
            # Where the queue is gone, the next message declares it again.
            self._connection.declared_entities.clear()

    def _leave_alone(self, error: BaseException) -> None:
        driver = getattr(self._connection, "_connection", None)
        if getattr(driver, "blocked", False):
            error = OSError("it blocks publishers, because of its memory or disk alarm")
        self._log_trouble("", f"the broker is away: {first_line(error)}")
        self._down_until = monotonic() + self._pause
        self.close()

    def _log_trouble(self, where: str, trouble: str) -> None:
        # Once: the next look, and the one after it, would find the same.
        if self._troubles.get(where) != trouble:
            logger.warning("%s; jobs wait in the ledger", trouble)
        self._troubles[where] = trouble

    def _end_trouble(self, where: str) -> None:
        if self._troubles.pop(where, None):
            logger.info("the broker takes messages again%s", f" for {where}" if where else "")

    def close(self) -> None:
        """Close the connection. The next message opens another."""
        connection, self._connection, self._producer = self._connection, None, None
        if connection is not None:
            # It may be broken, and a silent broker must not be waited for.
            with suppress(Exception), patience(self._patience):
                connection.collect()
