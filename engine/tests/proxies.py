"""A TCP proxy that goes silent or cuts connections, for one server on loopback."""

import random
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Self
from urllib.parse import urlsplit, urlunsplit

LONGEST_READ = 65_536


class Proxy:
    """Forwards connections to a server. `url` is the server's, with the proxy's address.

    While `silent`, connections stay open and nothing passes. While `refusing`, new ones end at
    once. `trickle`: answers pass byte by byte, ten in a second. `cut` ends the connections that are
    open. `answered` may end a connection instead of passing on an answer: it gets what the server
    said.
    """

    def __init__(self, url: str, host: str = "127.0.0.1") -> None:
        parts = urlsplit(url)
        self._server = (parts.hostname, parts.port)
        self._listener = socket.create_server((host, 0))
        self.port = self._listener.getsockname()[1]
        user = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
        self.url = urlunsplit(parts._replace(netloc=f"{user}{host}:{self.port}"))
        self.silent = False
        self.refusing = False
        self.trickle = False
        self.answered: Callable[[bytes], bool] = lambda _answer: False
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._closed = False
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        self._listener.close()
        self.cut()

    def cut(self, share: float = 1.0) -> int:
        """End the open connections, or a random share of them; return how many."""
        chosen = [pair for pair in self._pairs if random.random() <= share]
        for pair in chosen:
            self._end(pair)
        return len(chosen)

    def _end(self, pair: tuple[socket.socket, socket.socket]) -> None:
        with suppress(ValueError):
            self._pairs.remove(pair)
        for end in pair:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
                if self.refusing:
                    client.close()
                    continue
                pair = (client, socket.create_connection(self._server))
            except OSError:
                continue
            self._pairs.append(pair)
            threading.Thread(target=self._forward, args=(pair,), daemon=True).start()

    def _forward(self, pair: tuple[socket.socket, socket.socket]) -> None:
        client, server = pair
        try:
            while True:
                readable, _, _ = select.select(pair, [], [], 1)
                while self.silent:
                    time.sleep(0.05)
                for end in readable:
                    data = end.recv(LONGEST_READ)
                    if not data or (end is server and self.answered(data)):
                        return
                    slow = end is server and self.trickle
                    for part in cut_up(data) if slow else (data,):
                        (client if end is server else server).sendall(part)
        except (OSError, ValueError):
            return
        finally:
            self._end(pair)


def cut_up(data: bytes) -> Iterator[bytes]:
    for index in range(len(data)):
        time.sleep(0.1)
        yield data[index : index + 1]


@contextmanager
def proxy(port: int) -> Iterator[Proxy]:
    """Yield a proxy in front of a port of loopback."""
    with Proxy(f"tcp://127.0.0.1:{port}") as made:
        yield made
