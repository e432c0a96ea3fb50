"""What a run of a job needs of its process, on the one session of a test."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from nightshift.database import Session


class OneSession:
    """Collaborators for a `Run` whose transactions are all the test's session: nothing commits."""

    def __init__(self, session: Session, provided: Mapping[type, Any] | None = None) -> None:
        self._session = session
        self._provided = dict(provided or {})

    @contextmanager
    def unit_of_work(self) -> Iterator[Session]:
        yield self._session
        self._session.flush()

    @contextmanager
    def read_only(self) -> Iterator[Session]:
        yield self._session

    @contextmanager
    def read_newest(self) -> Iterator[Session]:
        yield self._session

    def __getitem__(self, wanted: type) -> Any:
        return self._provided[wanted]
