"""A TCP proxy in front of a server, which a test makes silent, slow or broken."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Proxy:
    """A proxy that passes everything on until it is told otherwise.

    `silent`: it takes what a client sends and answers nothing. `trickle`: it answers byte by byte,
    ten in a second.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.silent = False
        self.trickle = False
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                self._sockets += [client, server]
                for source, sink, answers in ((client, server, False), (server, client, True)):
                    passing = threading.Thread(
                        target=self._pass_on, args=(source, sink, answers), daemon=True
                    )
                    passing.start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        with suppress(OSError):
            while content := source.recv(65536):
                if self.silent:
                    continue
                for part in self._cut(content) if answers and self.trickle else (content,):
                    sink.sendall(part)
        for end in (source, sink):
            end.close()

    def _cut(self, content: bytes) -> Iterator[bytes]:
        for index in range(len(content)):
            time.sleep(0.1)
            yield content[index : index + 1]

    def cut(self) -> None:
        """Break all connections."""
        sockets, self._sockets = self._sockets, []
        for one in sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()
        self.cut()


@contextmanager
def proxy(port: int) -> Iterator[Proxy]:
    """Yield a proxy in front of a port of loopback."""
    made = Proxy(port)
    try:
        yield made
    finally:
        made.close()
