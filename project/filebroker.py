"""The embedded broker: kombu's filesystem transport, made safe for several processes.

As shipped, a message file is created before it is written and read without a lock (13 of 8,000 were read torn, and one empty file ends
a whole worker), and two processes that declare their first queue at once corrupt the exchange's file (kombu #1551).
"""

import fcntl
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty
from typing import Any

from kombu.transport import filesystem
from kombu.utils.encoding import str_to_bytes
from kombu.utils.json import dumps

# How long a file that nobody took, or that was taken and is kept for nobody, may lie about.
KEEP_SECONDS = 3600.0

# The event loop has other things to do than to read messages.
MESSAGES_A_LOOK = 50


class Channel(filesystem.Channel):
    """A channel whose messages appear whole, and whose tables are changed by one process at a time."""

    def _put(self, queue: str, payload: Any, **_options: Any) -> None:
        folder = Path(self.data_folder_out)
        # Names sort by time, as the consumer takes them; the wall clock is the same for all processes, also after a restart.
        name = f"{time.time_ns() // 1_000_000}_{uuid.uuid4().hex}.{queue}.msg"
        part = folder / f".{name}.part"
        part.write_bytes(str_to_bytes(dumps(payload)))
        part.replace(folder / name)

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


class Transport(filesystem.Transport):
    """The filesystem transport with the channel above, driven by the worker's event loop.

    In the loop every child has a pipe of its own. Without it, which is how the transport is shipped, the children share one queue, and
    one that is killed while it waits takes the queue's lock with it: the others wait for ever.
    """

    Channel = Channel

    implements = filesystem.Transport.implements.extend(asynchronous=True)

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Look for messages every `polling_interval` seconds; a reconnect makes the worker forget it."""
        loop.call_repeatedly(self.polling_interval, self._look)

    def _look(self) -> None:
        for _ in range(MESSAGES_A_LOOK):
            try:
                self.cycle.get(self._deliver, timeout=0)
            except Empty:
                return


def prune(options: dict[str, Any]) -> int:
    """Remove taken messages, and those for processes that never came back for them (a Flower that was closed). Return how many."""
    oldest = time.time() - KEEP_SECONDS
    removed = 0
    for folder in (options["processed_folder"], options["data_folder_in"]):
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    if folder == options["processed_folder"] or entry.stat().st_mtime < oldest:
                        Path(entry.path).unlink()
                        removed += 1
                except FileNotFoundError:
                    continue
    return removed
