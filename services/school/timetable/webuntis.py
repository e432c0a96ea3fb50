"""A timetable from WebUntis, by its JSON-RPC interface and the `webuntis` package.

WebUntis says what takes place on each date; deriving.py makes weekly lessons of it. A teacher's id
is the short name that people know; a class's is WebUntis's own, which stays when it is renamed.
"""

import logging
import time as clock
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, time, timedelta
from typing import Any
from urllib.parse import quote

import requests
import webuntis
from nightshift.errors import PermanentError, ServiceError, TransientError, first_line
from webuntis import errors

from services.school.rows import split
from services.school.texts import clean, normalise, shorten
from services.school.timetable.deriving import Occurrence, derive
from services.school.timetable.source import (
    Question,
    SingleDate,
    TaughtClass,
    Teacher,
    Term,
    Timetable,
    WeeklyLesson,
)

# A semester is planned some time before it begins.
PLANNED_AHEAD = timedelta(days=28)
LONGEST_NAME, LONGEST_SUBJECT, LONGEST_ROOM = 50, 200, 100
LARGEST_ANSWER = 50_000_000
PIECE = 65_536
NO_RIGHT = -8509  # among the protocol's codes
FIRST_ERROR, FIRST_SERVER_ERROR = 400, 500

# It logs the session's id, and answers with names.
logging.getLogger("webuntis").setLevel(logging.CRITICAL)


@dataclass(frozen=True, slots=True)
class Account:
    """Where to log in, and as whom.

    `server` is a host, as mese.webuntis.com, or a URL. `silence` are the seconds that it may say
    nothing, `seconds` those that all of its answers may take.
    """

    server: str
    school: str
    user: str
    password: str = field(repr=False)
    silence: float = 20.0
    seconds: float = 540.0


@dataclass(frozen=True, slots=True)
class WebUntis:
    """The timetable of a school in WebUntis, as its account sees it."""

    account: Account

    def read(self, question: Question) -> Timetable:
        """Return the timetable of the school year at hand.

        Raises:
            PermanentError: The login is wrong, or has no right to the timetable.
            TransientError: WebUntis does not answer now, or ends the session again and again.

        """
        account = self.account
        session = webuntis.Session(
            server=account.server,
            school=quote(account.school),
            username=account.user,
            password=account.password,
            useragent="Nightshift",
            login_repeat=1,
            _http_session=_Http(account),
        )
        with _explaining(account):
            session.login()
        try:
            with _explaining(account):
                return _Reader(session, question).read()
        finally:
            # It forgets the session by itself.
            with suppress(Exception):
                session.logout(suppress_errors=True)


class _Http(requests.Session):  # type: ignore[misc]
    """Requests within limits: the package sets none."""

    def __init__(self, account: Account) -> None:
        super().__init__()
        self.trust_env = False
        self._silence = account.silence
        self._ends = clock.monotonic() + account.seconds

    def post(self, url: Any, data: Any = None, json: Any = None, **options: Any) -> Any:
        response = super().post(
            url, data, json, timeout=self._silence, stream=True, allow_redirects=False, **options
        )
        body = bytearray()
        for piece in response.iter_content(PIECE):
            body += piece
            if len(body) > LARGEST_ANSWER:
                raise PermanentError(f"WebUntis answers with more than {LARGEST_ANSWER:,} bytes")
            if clock.monotonic() > self._ends:
                raise requests.Timeout("the time for the whole timetable is over")
        if response.status_code >= FIRST_SERVER_ERROR:
            raise TransientError(f"WebUntis answers {response.status_code}")
        if response.status_code >= FIRST_ERROR or response.is_redirect:
            raise PermanentError(
                f"WebUntis answers {response.status_code}; correct the server in TIMETABLE_SOURCES"
            )
        response._content = bytes(body)  # noqa: SLF001 - a streamed response has no other place for it
        return response


@contextmanager
def _explaining(account: Account) -> Iterator[None]:
    """Say what the package's errors mean for a person."""
    try:
        yield
    except ServiceError:
        raise
    except errors.BadCredentialsError as error:
        raise PermanentError(
            f"WebUntis refuses the login of {account.user}; correct TIMETABLE_USER and"
            " TIMETABLE_PASSWORD"
        ) from error
    except errors.NotLoggedInError as error:
        raise TransientError("WebUntis ends the session again and again") from error
    except errors.DateNotAllowed as error:
        raise PermanentError(
            f"WebUntis shows {account.user} no timetable of these days; give the account the right"
            " to it"
        ) from error
    except errors.MethodNotFoundError as error:
        raise PermanentError(f"WebUntis has no such method any more: {error.args[0]}") from error
    except errors.RemoteError as error:
        raise _explain(account, error) from error
    except requests.RequestException as error:
        raise TransientError(f"WebUntis does not answer: {type(error).__name__}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TransientError("WebUntis answers with what is no timetable") from error


def _explain(account: Account, error: Any) -> ServiceError:
    """Return what an error of the protocol means that has no class of its own."""
    if error.code is None:
        return TransientError("WebUntis answers with what is no timetable")
    said = f"WebUntis: {first_line(error)}"
    if error.code == NO_RIGHT:
        return PermanentError(f"{said}; give {account.user} the right to it")
    return TransientError(said)


class _Reader:
    def __init__(self, session: Any, question: Question) -> None:
        self._session = session
        self._question = question
        self._notices: list[str] = []
        self._unreadable: list[str] = []
        self._hidden: set[int] = set()

    def read(self) -> Timetable:
        terms, year = self._choose_terms()
        classes = {one.id: _name(one.name) for one in self._session.klassen(schoolyear=year)}
        teachers = {
            one.id: Teacher(_name(one.name), _full(one.fore_name), _full(one.long_name))
            for one in self._session.teachers()
        }
        self._subjects = {
            one.id: _text(one.long_name or one.name, LONGEST_SUBJECT)
            for one in self._session.subjects()
        }
        self._rooms = {one.id: _text(one.name, LONGEST_ROOM) for one in self._session.rooms()}
        self._classes, self._teachers = classes, {one: two.id for one, two in teachers.items()}
        lessons: list[WeeklyLesson] = []
        changes: list[SingleDate] = []
        read: set[str] = set()
        for term in terms:
            try:
                weekly, single = derive(self._read_term(term), term, self._question.holidays)
            except errors.DateNotAllowed:
                if term is terms[0]:
                    raise
                self._notices.append(f"{term.name} is not shown yet")
                continue
            read.add(term.name)
            lessons += weekly
            changes += single
        if self._unreadable:
            self._notices.append(
                f"{len(self._unreadable)} periods cannot be read; the first: {self._unreadable[0]}"
            )
        if self._hidden:
            self._notices.append(f"{len(self._hidden)} teachers of lessons are not shown")
        return Timetable(
            terms=frozenset(read),
            lessons=tuple(lessons),
            teachers=tuple(teachers.values()),
            classes=tuple(TaughtClass(str(one), name) for one, name in classes.items()),
            changes=tuple(changes),
            notices=tuple(self._notices),
        )

    def _choose_terms(self) -> tuple[list[Term], int | None]:
        """Return the semesters of the school year at hand, and its id."""
        until = self._question.today + PLANNED_AHEAD
        terms = [term for term in self._question.terms if term.first <= until]
        if not terms:
            raise PermanentError("the school has no semester now or soon; load semesters.csv first")
        for year in self._session.schoolyears():
            first, last = year.start.date(), year.end.date()
            if first <= terms[0].last and last >= terms[0].first:
                return [term for term in terms if term.first <= last], int(year.id)
        return terms[:1], None

    def _read_term(self, term: Term) -> Iterator[Occurrence]:
        seen: set[int] = set()
        for class_id in self._classes:
            periods = self._session.timetable_extended(
                start=term.first, end=term.last, klasse=class_id
            )
            for period in periods:
                # Its properties look up each name again, and fail at one that is hidden.
                data = period._data  # noqa: SLF001
                try:
                    if data["id"] in seen or data.get("lstype", "ls") != "ls":
                        continue
                    seen.add(data["id"])
                    yield self._read_period(data)
                except (AttributeError, KeyError, TypeError, ValueError) as error:
                    self._unreadable.append(f"{data.get('id')}: {error!r}")

    def _read_period(self, data: Mapping[str, Any]) -> Occurrence:
        starts, ends = _clock(data["startTime"]), _clock(data["endTime"])
        if ends <= starts:
            raise ValueError(f"ends at {ends:%H:%M}, before it starts")
        subject = ", ".join(
            self._subjects[one["id"]] for one in data["su"] if one["id"] in self._subjects
        )
        classes = tuple(sorted(str(one["id"]) for one in data["kl"] if one["id"] in self._classes))
        number = data.get("lsnumber")
        return Occurrence(
            group=str(number) if number else f"{subject} {' '.join(classes)}",
            day=datetime.strptime(str(data["date"]), "%Y%m%d").date(),  # noqa: DTZ007 - a day
            starts=starts,
            ends=ends,
            subject=shorten(subject, LONGEST_SUBJECT),
            room=self._name_rooms(data.get("ro", ()), "id"),
            classes=classes,
            teachers=self._name_teachers(data.get("te", ()), "id"),
            cancelled=data.get("code") == "cancelled",
            usual_room=self._name_rooms(data.get("ro", ()), "orgid"),
            usual_teachers=self._name_teachers(data.get("te", ()), "orgid"),
        )

    def _name_rooms(self, given: Any, key: str) -> str:
        ids = [one.get(key) or one.get("id") for one in given]
        return shorten(
            ", ".join(self._rooms[one] for one in ids if one in self._rooms), LONGEST_ROOM
        )

    def _name_teachers(self, given: Any, key: str) -> tuple[str, ...]:
        # Id 0: nobody, in the place of a teacher who is away.
        ids = [one.get(key) or one.get("id") for one in given]
        self._hidden.update(one for one in ids if one and one not in self._teachers)
        return tuple(sorted({self._teachers[one] for one in ids if one in self._teachers}))


def _clock(number: int) -> time:
    return time(number // 100, number % 100)


def _text(text: str, longest: int) -> str:
    return shorten(normalise(clean(text)).strip(), longest)


def _name(text: str) -> str:
    return _text(" ".join(split(text)), LONGEST_NAME)


def _full(text: str) -> str:
    return _text(text, LONGEST_SUBJECT)
