"""The worker's consumer: Celery's, which neither a message nor a queue ends or stops."""

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

from celery import signals
from celery.worker import consumer
from celery.worker.state import maybe_shutdown
from kombu import Connection

from nightshift.celery import messages
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
        # Those that may be declared, but not read: a new connection would not show it.
        self._unreadable: dict[str, str] = {}
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
                handle(message)
            except Exception as error:
                if messages.is_lost(error, transport):
                    raise
                self._drop(message, error)

        return receive

    def _process_task(self, request: Any) -> None:
        try:
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
        self._drop(message, exc)
        name, task_id = message.headers["task"], message.headers["id"]
        signals.task_unknown.send(sender=self, message=message, exc=exc, name=name, id=task_id)

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
        if not self.refused:
            self.timer.call_after(QUEUE_PAUSE, self._try_again)
        self.refused[name] = reason
        self.app.amqp.queues.deselect(name)

    def _try_again(self) -> None:
        """Consume the queues that the broker does not refuse any more."""
        before, self.refused = self.refused, {}
        self._unreadable.clear()
        still = self._try_queues(self.connection, before)
        for name in before:
            if name in still:
                self._leave_out(name, still[name], known=True)
            else:
                self.add_task_queue(name)

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
