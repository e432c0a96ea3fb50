"""A mail server that can be made to do what mail servers do.

`python -m tests.smtp PORT JOURNAL CHANCES` runs one in its own process.
"""

import asyncio
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP
from servers import free_port, wait_for

# What a server may answer to RCPT, and once it has the content. There are more fates than these: at
# RCPT, after the content (`data …`) or after it was kept (`kept, then …`) a server may `drop` the
# connection, or `hang`: it says nothing for a long time.
REPLIES = {
    "4xx": "451 4.3.0 <{}> later, please",
    "5xx": "550 5.1.1 <{}> nobody of that name",
    "432": "432 4.3.2 too many connections",
    "data 4xx": "451 4.3.0 the disk is full",
    "data 5xx": "554 5.7.1 we do not like this message",
}
ROOT = Path(__file__).parent.parent


class Handler:
    """Does to each message what `fate` says ("": take it), and passes what it took to `keep`."""

    def __init__(
        self, fate: Callable[[], str], keep: Callable[[str, str, bytes], None], *, hang: float
    ) -> None:
        self.fate, self.keep, self.hang = fate, keep, hang
        self.met: Counter[str] = Counter()
        self.return_paths: list[str] = []

    async def handle_RCPT(  # noqa: N802 - aiosmtpd calls it
        self, server: SMTP, session: Any, envelope: Any, address: str, options: Any
    ) -> str:
        envelope.fate = self.fate()
        self.met[envelope.fate or "taken"] += 1
        if envelope.fate in ("4xx", "5xx", "432"):
            return REPLIES[envelope.fate].format(address)
        await self.vanish(server, envelope.fate, "hang", "drop")
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Any, envelope: Any) -> str:  # noqa: N802 - aiosmtpd calls it
        if envelope.fate.startswith("data "):
            await self.vanish(server, envelope.fate, "data hang", "data drop")
            return REPLIES[envelope.fate]
        self.return_paths.append(envelope.mail_from)
        match = re.search(rb"^Message-ID: (\S+)", envelope.content, re.MULTILINE)
        self.keep(match[1].decode() if match else "", envelope.rcpt_tos[0], envelope.content)
        await self.vanish(server, envelope.fate, "kept, then hang", "kept, then drop")
        return "250 OK"

    async def vanish(self, server: SMTP, fate: str, hang: str, drop: str) -> None:
        if fate == hang:
            await asyncio.sleep(self.hang)
        if fate in (hang, drop):
            server.transport.abort()
            raise asyncio.CancelledError


@contextmanager
def serving(fates: list[str] | None = None, **options: Any) -> Iterator[Any]:
    """Yield a server in this process that does `fates` in turn and then takes everything.

    Its `kept` is what it took, `return_paths` where each would come back to.
    """
    kept: list[tuple[str, str, bytes]] = []
    coming = iter(fates or [])
    handler = Handler(lambda: next(coming, ""), lambda *what: kept.append(what), hang=2)
    controller = Controller(
        handler, hostname="127.0.0.1", port=free_port(), server_hostname="probe.example", **options
    )
    controller.kept, controller.return_paths = kept, handler.return_paths
    controller.start()
    try:
        yield controller
    finally:
        controller.stop()


class ServerProcess:
    """A server in a process of its own, which writes a line for each message that it takes."""

    def __init__(self, port: int, journal: Path, chances: dict[str, float] | None = None) -> None:
        self.port, self.journal = port, journal
        self._command = [
            sys.executable,
            "-m",
            "tests.smtp",
            str(port),
            str(journal),
            json.dumps(chances or {}),
        ]
        self.start()

    def start(self) -> None:
        # The modules that pytest's configuration makes importable.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        self.process = subprocess.Popen(self._command, cwd=ROOT, env=environment)
        wait_for(self.port)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()

    def received(self) -> Counter[str]:
        """Return how often it took each message, by Message-ID."""
        lines = self.journal.read_text().splitlines() if self.journal.exists() else []
        return Counter(json.loads(line)["message_id"] for line in lines)


def main(port: str, journal: str, chances: str) -> None:
    names, weights = zip(*json.loads(chances).items(), strict=True) if chances != "{}" else ((), ())
    weights_of_all = [*weights, 1 - sum(weights)]
    with Path(journal).open("a", buffering=1) as lines:
        handler = Handler(
            lambda: random.choices([*names, ""], weights_of_all)[0],
            lambda message_id, recipient, _: print(
                json.dumps({"message_id": message_id, "recipient": recipient}), file=lines
            ),
            hang=30,
        )
        controller = Controller(
            handler, hostname="127.0.0.1", port=int(port), server_hostname="probe.example"
        )
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda *_: None)  # connections that were dropped, as asked
        loop.run_until_complete(loop.create_server(controller.factory, "127.0.0.1", int(port)))
        loop.run_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
