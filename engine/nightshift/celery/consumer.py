"""Celery's consumer, changed so that a bad message or queue cannot stop the worker."""

import logging
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from celery.worker import consumer, state
from celery.worker.state import maybe_shutdown
from kombu import Connection

from nightshift.celery import messages
from nightshift.celery.link import Word
from nightshift.celery.steps import tell_keeper
from nightshift.errors import first_line

logger = logging.getLogger(__name__)

# Seconds after which a queue that could not be declared is tried again.
QUEUE_PAUSE = 30.0

# Seconds between two tries at a broker that answers with an error: full, or a read-only replica.
REFUSED_PAUSE = 1.0


class Consumer(consumer.Consumer):
    """A consumer that drops messages which are not ours, and leaves out refused queues.

    `refused`: by name, why the broker refuses a queue. Only queues that this worker was asked to
    consume are in it.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        # Gossip reads other workers' events in the main loop, and the ledger needs none of them.
        options["worker_options"] = {**options.get("worker_options", {}), "without_gossip": True}
        self.refused: dict[str, str] = {}
        # Those that may be declared, but not read: declaring them again would not show that.
        self._unreadable: dict[str, str] = {}
        self._again: Any = None  # the timer's entry for the next try
        super().__init__(*args, **options)
        # A request that waits for a free process is given to it later, where an exception would end
        # the worker.
        self._give_to_pool = self.controller._process_task  # noqa: SLF001 - it has no other name
        self.controller._process_task = self._process_task  # noqa: SLF001

    def create_task_handler(self, *args: Any, **options: Any) -> Callable[[Any], None]:
        handle = super().create_task_handler(*args, **options)
        transport = self.connection.transport
        kinds = self.app.composition.kinds

        def receive(message: Any) -> None:
            try:
                messages.prepare(message, kinds)
                if message.headers["task"] in kinds:
                    # The row says whether its job was cancelled, and a person may have retried it.
                    state.revoked.discard(message.headers["id"])
                handle(message)
            except Exception as error:
                if messages.is_lost(error, transport):
                    raise
                self._drop(message, error)

        return receive

    def _process_task(self, request: Any) -> None:
        try:
            if request.name in self.app.composition.kinds:
                job_ids = messages.read_job_ids(request.kwargs, request.id)
                if len(job_ids) > 1:
                    # Only one of them was revoked, as its row says; the others need the message.
                    state.revoked.discard(request.id)
            self._give_to_pool(request)
        except Exception as error:  # noqa: BLE001 - a message must not end the worker
            self._drop(request.message, error)
            if self.controller.semaphore is not None:
                self.controller.semaphore.release()

    def _drop(self, message: Any, error: BaseException) -> None:
        routing_key = (message.delivery_info or {}).get("routing_key", "")
        messages.report_dropped(routing_key, error, message.headers)
        if not message.acknowledged:
            message.ack_log_error(logger, self.connection_errors)

    # Celery's own four log a message whole, over many lines.

    def on_decode_error(self, message: Any, exc: BaseException) -> None:
        self._drop(message, exc)

    def on_invalid_task(self, _body: Any, message: Any, exc: BaseException) -> None:
        self._drop(message, exc)

    def on_unknown_message(self, _body: Any, message: Any) -> None:
        self._drop(message, messages.UnacceptableError("it is not a task"))

    def on_unknown_task(self, _body: Any, message: Any, exc: BaseException) -> None:
        # The job may be newer than this worker, or its kind may have been removed.
        self._drop(message, exc)
        with suppress(ValueError):
            _, kwargs, _ = message.payload
            for job_id in messages.read_job_ids(kwargs, message.headers["id"]):
                tell_keeper(self.app, Word.UNKNOWN, job_id)

    def call_soon(self, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        # Remote control leaves its work to the main loop, where an exception would end the worker.
        def guarded() -> None:
            try:
                call(*args, **options)
            except Exception as error:
                if messages.is_lost(error, self.connection.transport):
                    raise
                logger.exception("a call of remote control failed")

        return super().call_soon(guarded)

    def add_task_queue(self, queue: str, *_: Any, **__: Any) -> None:
        """Consume a queue that a component declares, as it declares it."""
        if queue in self.app.composition.queues:
            super().add_task_queue(queue)
        else:
            logger.error("no component declares the queue %.100r: it is not consumed", queue)

    def connect(self) -> Connection:
        """Connect, and leave out the queues that the broker refuses."""
        connection = super().connect()
        selected, before = self.app.amqp.queues, self.refused
        self.refused = {}
        for name in before.keys() - self._unreadable.keys():
            selected.select_add(selected[name])
        for name, reason in self._unreadable.items():
            self._leave_out(name, reason, known=True)
        for name, reason in self._try_queues(connection, list(selected.consume_from)).items():
            self._leave_out(name, reason, known=before.get(name) == reason)
        return connection

    def _try_queues(self, connection: Connection, names: Iterable[str]) -> dict[str, str]:
        """Declare queues, each on a channel of its own; return the refused ones with the reason."""
        refused = {}
        for name in names:
            channel = connection.channel()
            try:
                self.app.amqp.queues[name](channel).declare()
            except connection.channel_errors as error:
                refused[name] = first_line(error)
            finally:
                connection.maybe_close_channel(channel)
        return refused

    def _leave_out(self, name: str, reason: str, *, known: bool) -> None:
        if not known:
            logger.error("queue %s is not consumed, the broker refuses it: %s", name, reason)
        self.refused[name] = reason
        self.app.amqp.queues.deselect(name)
        if self._again is not None:
            self._again.cancel()
        self._again = self.timer.call_after(QUEUE_PAUSE, self._try_again)

    def _try_again(self) -> None:
        """Consume the queues that the broker does not refuse any more."""
        # This raises when the connection is lost; then the next one begins with the same queues.
        still = self._try_queues(self.connection, list(self.refused))
        for name in list(self.refused):
            if name in still:
                self._leave_out(name, still[name], known=True)
            else:
                self.add_task_queue(name)
                del self.refused[name]
                self._unreadable.pop(name, None)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        refused = not isinstance(exc, self.connection_errors)
        if refused:
            # The error names the queue that it is about, as 'NAME'.
            for name in list(self.app.amqp.queues.consume_from):
                if f"'{name}'" in str(exc):
                    self._unreadable[name] = first_line(exc)
                    self._leave_out(name, first_line(exc), known=False)
        super().on_connection_error_after_connected(exc)
        if refused:
            maybe_shutdown()
            time.sleep(REFUSED_PAUSE)
