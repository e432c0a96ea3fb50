"""Messages on the embedded broker, for processes that a test starts."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kombu import Connection
from kombu.simple import SimpleQueue
from nightshift.celery.configuration import build_configuration
from nightshift.component import Composition
from nightshift.ledger import ledger
from nightshift.settings import Settings

FILLER = "x" * 20_000


def transport_options(folder: str) -> dict[str, Any]:
    """Return the options of the broker in a folder."""
    settings = Settings(_env_file=None, broker_url=f"filesystem://{folder}")
    options = build_configuration(settings, Composition([ledger]))["broker_transport_options"]
    return dict(options)


@contextmanager
def open_queue(folder: str) -> Iterator[SimpleQueue]:
    """Yield a queue of the broker in a folder."""
    transport = "nightshift.celery.filebroker:Transport"
    with Connection("filesystem://localhost//", transport=transport) as connection:
        connection.transport_options = transport_options(folder)
        with connection.SimpleQueue("probe") as queue:
            yield queue


def put_messages(folder: str, number: int) -> None:
    """Put large messages on the queue; a process runs this."""
    with open_queue(folder) as queue:
        for index in range(number):
            queue.put({"index": index, "filler": FILLER})
