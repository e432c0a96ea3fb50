"""The embedded broker: kombu's filesystem transport, made safe for several processes.

kombu's own creates a message's file before it writes it, and reads it without a lock: of 8,000
messages 13 were read incomplete, and one empty file ends a worker. Two processes that declare their
first queue at once corrupt the exchange's file (kombu #1551).
"""

import fcntl
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty
from typing import Any, ClassVar

from kombu.exceptions import ChannelError
from kombu.transport import filesystem, virtual
from kombu.utils.encoding import str_to_bytes
from kombu.utils.json import dumps

from nightshift.celery import messages

# Messages that no process has read for so long are deleted.
KEEP_SECONDS = 3600.0

# So many messages are read at once; then the event loop goes on with other work.
MESSAGES_A_LOOK = 50


class Channel(filesystem.Channel):
    """A channel whose messages appear complete, and whose tables one process at a time changes."""

    def _put(self, queue: str, payload: Any, **_options: Any) -> None:
        folder = Path(self.data_folder_out)
        # The consumer reads files in the order of their names, so names begin with the time: the
        # wall clock, which all processes share, also after a restart.
        name = f"{time.time_ns() // 1_000_000}_{uuid.uuid4().hex}.{queue}.msg"
        part = folder / f".{name}.part"
        part.write_bytes(str_to_bytes(dumps(payload)))
        part.replace(folder / name)

    def _get(self, queue: str) -> Any:
        while True:
            try:
                return super()._get(queue)
            except (*messages.UNPARSABLE, ChannelError) as error:
                # kombu has moved the file to the processed ones: the keeper deletes it.
                messages.report_dropped(queue, error, "")

    def get_table(self, exchange: str) -> list[Any]:
        with self._locked():
            return list(super().get_table(exchange))

    def _queue_bind(self, *binding: Any) -> None:
        with self._locked():
            super()._queue_bind(*binding)

    def _delete(self, queue: str, *binding: Any, **options: Any) -> None:
        with self._locked():
            super()._delete(queue, *binding, **options)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        handle = os.open(self.control_folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


class Transport(messages.DroppingTransport, filesystem.Transport):
    """The filesystem transport with the channel above, driven by the worker's event loop.

    With the event loop every child has a pipe of its own. kombu's own transport does not use it:
    the children share one queue, and a child that is killed while it waits never releases the
    queue's lock, so the other children wait for ever.
    """

    Channel = Channel

    implements = filesystem.Transport.implements.extend(asynchronous=True)

    # By folder. kombu keeps one for all brokers of a process, so the second broker would find no
    # binding of a queue that the first has declared.
    states: ClassVar[dict[str, virtual.BrokerState]] = {}

    def __init__(self, client: Any, **options: Any) -> None:
        super().__init__(client, **options)
        folder = str(client.transport_options.get("control_folder"))
        self.state = self.states.setdefault(folder, virtual.BrokerState())

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Look for messages every `polling_interval` seconds. A reconnect ends this."""
        loop.call_repeatedly(self.polling_interval, self._look)

    def _look(self) -> None:
        for _ in range(MESSAGES_A_LOOK):
            try:
                self.cycle.get(self._deliver, timeout=0)
            except Empty:
                return


def prune(options: dict[str, Any]) -> int:
    """Delete the files of read messages, and of messages older than KEEP_SECONDS; return how many.

    Messages to a process that has ended (a closed Flower) are never read.
    """
    oldest = time.time() - KEEP_SECONDS
    removed = 0
    for folder in (options["processed_folder"], options["data_folder_in"]):
        with os.scandir(folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    if folder == options["processed_folder"] or entry.stat().st_mtime < oldest:
                        Path(entry.path).unlink()
                        removed += 1
    return removed
