"""A stub of WebUntis: its JSON-RPC methods, its error codes, and faults."""

import json
import threading
import time as clock
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from services.school.timetable.source import SingleDate
from tests.services.school.timetable.builders import FIRST, LAST, Paper

USER, PASSWORD, SCHOOL = "nightshift", "s3cret", "Kantons schule"

BAD_CREDENTIALS, NOT_LOGGED_IN, NO_METHOD, NO_RIGHT, NO_DATE = -8504, -8520, -32601, -8509, -7004


class Fault(Exception):
    """An error of the protocol."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class Untis:
    """WebUntis with a timetable. `holidays` are days on which it has no lesson.

    `fault` is what goes wrong: `expired` (once, in the middle), `always expired`, `500`, `hang`,
    `drip`, `html`, `list`, `no right`, `no date`, `no method`, `garbage`, or nothing.
    """

    paper: Paper
    fault: str = ""
    holidays: set[date] = field(default_factory=set)
    # A period of a class in this week is not there.
    missing: set[tuple[str, date]] = field(default_factory=set)
    methods: list[str] = field(default_factory=list)
    sessions: set[str] = field(default_factory=set)
    port: int = 0

    def call(self, method: str, params: Any, session: str, school: str) -> Any:
        self.methods.append(method)
        if method == "authenticate":
            if (params["user"], params["password"], school) != (USER, PASSWORD, SCHOOL):
                raise Fault(BAD_CREDENTIALS, "bad credentials")
            self.sessions.add(name := f"S{len(self.methods)}")
            return {"sessionId": name, "personType": 5, "personId": 1}
        if session not in self.sessions:
            raise Fault(NOT_LOGGED_IN, "not authenticated")
        if method == "logout":
            self.sessions.discard(session)
            return None
        if self.fault == "expired" and self.methods.count("getTimetable") == 2:
            self.fault = ""
            self.sessions.clear()
            raise Fault(NOT_LOGGED_IN, "not authenticated")
        if self.fault == "always expired" and method == "getTimetable":
            self.sessions.clear()
            raise Fault(NOT_LOGGED_IN, "not authenticated")
        if self.fault == "no method" and method == "getTimetable":
            raise Fault(NO_METHOD, "Method not found")
        if self.fault == "no right" and method == "getTeachers":
            raise Fault(NO_RIGHT, "no right for getTeachers()")
        if self.fault == "no date" and method == "getTimetable":
            raise Fault(NO_DATE, "no allowed date")
        answer = getattr(self, method)
        return answer(params)

    def getSchoolyears(self, _params: Any) -> Any:  # noqa: N802 - the protocol's names
        return [
            {"id": 7, "name": "2025/26", "startDate": 20250801, "endDate": 20260731},
            {"id": 8, "name": "2026/27", "startDate": 20260801, "endDate": 20270731},
        ]

    def getKlassen(self, params: Any) -> Any:  # noqa: N802
        assert params == {"schoolyearId": 8}
        return [
            {"id": number(one.id), "name": one.name, "longName": one.name, "active": True}
            for one in self.paper.classes.values()
        ]

    def getTeachers(self, _params: Any) -> Any:  # noqa: N802
        return [
            {"id": at, "name": one.id, "foreName": one.first_name, "longName": one.last_name}
            for at, one in enumerate(self.paper.teachers.values(), 1)
        ]

    def getSubjects(self, _params: Any) -> Any:  # noqa: N802
        return [
            {"id": at, "name": name[:3], "longName": name} for name, at in self._subjects().items()
        ]

    def getRooms(self, _params: Any) -> Any:  # noqa: N802
        return [{"id": at, "name": name, "longName": ""} for name, at in self._rooms().items()]

    def getTimetable(self, params: Any) -> Any:  # noqa: N802
        options = params["options"]
        assert options["element"]["type"] == 1
        assert options["showLsNumber"]
        first, last = to_day(options["startDate"]), to_day(options["endDate"])
        wanted = options["element"]["id"]
        return [
            period
            for period in self._periods()
            if first <= to_day(period["date"]) <= last
            and wanted in [one["id"] for one in period["kl"]]
        ]

    def _subjects(self) -> dict[str, int]:
        names = sorted({lesson.subject for lesson in self.paper.lessons.values()})
        return {name: at for at, name in enumerate(names, 1)}

    def _rooms(self) -> dict[str, int]:
        rooms = {lesson.room for lesson in self.paper.lessons.values()}
        rooms |= {change.room for change in self.paper.changes.values() if change.room}
        return {name: at for at, name in enumerate(sorted(rooms), 1)}

    def _periods(self) -> Iterator[dict[str, Any]]:
        subjects, rooms = self._subjects(), self._rooms()
        teachers = {one: at for at, one in enumerate(self.paper.teachers, 1)}
        days = [FIRST + timedelta(days=at) for at in range((LAST - FIRST).days + 1)]
        for at, lesson in enumerate(self.paper.lessons.values()):
            for day in days:
                if day.isoweekday() != lesson.weekday or day in self.holidays:
                    continue
                monday = day - timedelta(days=day.weekday())
                if any((one, monday) in self.missing for one in lesson.classes):
                    continue
                change = self.paper.changes.get((lesson.id, day), SingleDate(lesson.id, day))
                starts, ends = change.starts or lesson.starts, change.ends or lesson.ends
                period: dict[str, Any] = {
                    "id": at * 1000 + (day - FIRST).days,
                    "date": int(f"{change.moved_to or day:%Y%m%d}"),
                    "startTime": int(f"{starts:%H%M}"),
                    "endTime": int(f"{ends:%H%M}"),
                    "kl": [{"id": number(one)} for one in lesson.classes],
                    "te": [{"id": teachers[one]} for one in lesson.teachers],
                    "su": [{"id": subjects[lesson.subject]}],
                    "ro": [{"id": rooms[lesson.room]}],
                    "lsnumber": at + 1,
                    "activityType": "Unterricht",
                }
                if change.teachers is not None:
                    period["te"] = [
                        {"id": teachers[new], "orgid": teachers[old]}
                        for new, old in zip(change.teachers, lesson.teachers, strict=True)
                    ]
                if change.room is not None:
                    period["ro"] = [{"id": rooms[change.room], "orgid": rooms[lesson.room]}]
                if change.cancelled:
                    period["code"] = "cancelled"
                if self.fault == "garbage" and at == 0 and day.month == 9:
                    period["startTime"] = 9999
                yield period


def number(class_id: str) -> int:
    return int(class_id.removeprefix("c")) + 100


def to_day(value: Any) -> date:
    text = str(value)
    return date(int(text[:4]), int(text[4:6]), int(text[6:]))


@contextmanager
def serving(untis: Untis) -> Iterator[Untis]:
    """Serve it on loopback."""
    stopped = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            school = parse_qs(urlsplit(self.path).query)["school"][0]
            session = (self.headers["Cookie"] or "").removeprefix("JSESSIONID=")
            if untis.fault == "hang":
                stopped.wait(20)
                return
            if untis.fault in ("500", "404"):
                self.answer(int(untis.fault), b"<html>sorry</html>")
                return
            if untis.fault == "html":
                self.answer(200, b"<html>maintenance</html>")
                return
            if untis.fault == "list":
                self.answer(200, b"[]")
                return
            said: dict[str, Any] = {"jsonrpc": "2.0", "id": body["id"]}
            try:
                said["result"] = untis.call(body["method"], body["params"], session, school)
            except Fault as fault:
                said["error"] = {"code": fault.code, "message": str(fault)}
            self.answer(200, json.dumps(said).encode())

        def answer(self, status: int, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if untis.fault != "drip":
                self.wfile.write(content)
                return
            for at in range(len(content)):
                self.wfile.write(content[at : at + 1])
                self.wfile.flush()
                clock.sleep(0.05)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    untis.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield untis
    finally:
        stopped.set()
        server.shutdown()
        server.server_close()
        thread.join()
