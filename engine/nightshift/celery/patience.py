"""How long calls to a broker may wait for the network.

The drivers know limits for one read only, and some waits have none: a peer that sends a byte now
and then, or 200 confirmations, would hold a caller for minutes. Every socket to a broker is a
`PatientSocket`, whose calls share the patience of the code that made them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from time import monotonic
from typing import Any

import kombu

# Seconds. A worker's main loop waits no longer for the network in one call: a main process that
# does not react for longer counts as hung.
LONGEST_CALL = 10.0


@dataclass(slots=True)
class Budget:
    """The seconds that calls may still wait for the network."""

    left: float


_budget: ContextVar[Budget | None] = ContextVar("budget", default=None)


@contextmanager
def patience(seconds: float) -> Iterator[Budget]:
    """Let the calls inside wait `seconds` for the network in all, then raise TimeoutError.

    Only the wait counts: a slow machine is not a slow network. An outer patience that has less left
    stays.
    """
    outer = _budget.get()
    budget = Budget(seconds if outer is None else min(seconds, outer.left))
    given = budget.left
    token = _budget.set(budget)
    try:
        yield budget
    finally:
        _budget.reset(token)
        if outer is not None:
            outer.left -= given - budget.left


class PatientSocket:
    """A connected socket, or TLS socket, that waits no longer than the current patience."""

    def __init__(self, sock: Any) -> None:
        self._sock = sock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def recv(self, *args: Any) -> Any:
        with self._limited():
            return self._sock.recv(*args)

    def read(self, *args: Any) -> Any:
        with self._limited():
            return self._sock.read(*args)

    def recv_into(self, *args: Any) -> Any:
        with self._limited():
            return self._sock.recv_into(*args)

    def write(self, *args: Any) -> Any:
        with self._limited():
            return self._sock.write(*args)

    def sendall(self, *args: Any) -> Any:
        with self._limited():
            return self._sock.sendall(*args)

    @contextmanager
    def _limited(self) -> Iterator[None]:
        budget, own = _budget.get(), self._sock.gettimeout()
        allowed = LONGEST_CALL if budget is None else min(budget.left, LONGEST_CALL)
        if allowed <= 0:
            raise TimeoutError("the broker did not answer in time")
        shorter = own is None or allowed < own
        if shorter:
            self._sock.settimeout(allowed)
        began = monotonic()
        try:
            yield
        except TimeoutError as error:
            raise TimeoutError("the broker did not answer in time") from error
        finally:
            if budget is not None:
                budget.left -= monotonic() - began
            # A driver may have closed it meanwhile.
            if shorter and self._sock.fileno() >= 0:
                self._sock.settimeout(own)


class Connection(kombu.Connection):
    """A connection to the broker that never tries again without an end.

    A worker publishes its heartbeats for Flower, and its answers to remote control, in its main
    loop: with kombu's own it would try them until the broker is back.
    """

    def ensure(self, obj: Any, fun: Callable[..., Any], *args: Any, **policy: Any) -> Any:
        if policy.get("max_retries") is None:
            return fun
        return super().ensure(obj, fun, *args, **policy)
