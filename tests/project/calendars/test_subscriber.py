"""A subscriber of other people's programs: vdirsyncer fetches the calendar, khal reads it."""

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import update

from project.school.settings import SchoolSettings
from services.calendars import serving
from services.calendars.models import FeedKind
from services.school.models import Event
from services.school.rows import make_event_id
from tests.installing import install
from tests.serving import load_example, serve, sync

PROGRAMS = Path(sys.executable).parent

VDIRSYNCER = """
[general]
status_path = "{folder}/status/"
[pair school]
a = "web"
b = "here"
collections = null
conflict_resolution = "a wins"
[storage web]
type = "http"
url = "{url}"
[storage here]
type = "filesystem"
path = "{folder}/calendar/"
fileext = ".ics"
"""

KHAL = """
[calendars]
[[school]]
path = {folder}/calendar
type = calendar
readonly = True
[sqlite]
path = {folder}/khal.db
[locale]
timeformat = %H:%M
dateformat = %Y-%m-%d
longdateformat = %Y-%m-%d
datetimeformat = %Y-%m-%d %H:%M
longdatetimeformat = %Y-%m-%d %H:%M
default_timezone = Europe/Zurich
local_timezone = Europe/Zurich
"""


class Subscriber:
    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        (folder / "calendar").mkdir(parents=True)
        (folder / "vdirsyncer.conf").write_text(VDIRSYNCER.format(folder=folder, url=url))
        (folder / "khal.conf").write_text(KHAL.format(folder=folder))
        self._run("vdirsyncer", "-c", folder / "vdirsyncer.conf", "discover")

    def _run(self, program, *arguments):
        command = [PROGRAMS / program, *arguments]
        # khal keeps a cache of its own at home.
        environment = {"HOME": str(self.folder), "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
        ran = subprocess.run(
            command, env=environment, check=False, capture_output=True, text=True, timeout=60
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    def sync(self):
        """Fetch what changed and return how many events there are now."""
        self._run("vdirsyncer", "-c", self.folder / "vdirsyncer.conf", "sync")
        return len(self.events())

    def events(self):
        return list((self.folder / "calendar").iterdir())

    def lists(self, day):
        """Return what khal shows of the week from a day on: when and what."""
        shown = ["--format", "{start-date} {start-time} {title}", "--day-format", "", "--once"]
        return self._run(
            "khal", "-c", self.folder / "khal.conf", "list", *shown, day, "7d"
        ).splitlines()


@pytest.mark.parametrize("kind", ["embedded", "servers"])
def test_subscriber_sees_an_event_once_moved_and_cancelled(tmp_path, kind):
    with install(kind, tmp_path) as installation:
        app, runtime = installation.app, installation.runtime
        exam, title = make_event_id("pruefung-mathe"), "Prüfung Mathematik: Vektoren, Matrizen"
        today = runtime.now().astimezone(runtime[SchoolSettings].school_timezone)
        today = today.replace(minute=0, second=0, microsecond=0)
        before, first, moved = (
            today.replace(hour=hour) + timedelta(days=days)
            for hour, days in ((0, 1), (8, 3), (9, 5))
        )

        def change(**values):
            with runtime.unit_of_work() as session:
                session.execute(update(Event).where(Event.id == exam).values(**values))
            sync(app)

        load_example(app)
        change(starts_at=first, ends_at=first + timedelta(minutes=95))
        with runtime.read_only() as session:
            target = f"/f/{serving.find_token(session, FeedKind.CLASS, '27Ga')}.ics"
        with serve(tmp_path) as web:
            subscriber = Subscriber(
                tmp_path / "subscriber", f"{str(web.client.base_url).rstrip('/')}{target}"
            )

            def seen():
                return [
                    line for line in subscriber.lists(f"{before:%Y-%m-%d}") if line.endswith(title)
                ]

            events = subscriber.sync()
            assert events == web.request("GET", target).content.count(b"BEGIN:VEVENT") > 1
            assert seen() == [f"{first:%Y-%m-%d} 08:00 {title}"]

            # Nobody changed anything.
            known = {"if-none-match": web.request("GET", target).headers["etag"]}
            sync(app)
            assert web.request("GET", target, known).status_code == 304

            change(starts_at=moved, ends_at=moved + timedelta(minutes=95))
            assert web.request("GET", target, known).status_code == 200
            assert subscriber.sync() == events
            assert seen() == [f"{moved:%Y-%m-%d} 09:00 {title}"]

            change(cancelled_at=runtime.now())
            assert subscriber.sync() == events
            assert seen() == [f"{moved:%Y-%m-%d} 09:00 Abgesagt: {title}"]
            texts = [path.read_text() for path in subscriber.events()]
            assert [
                "STATUS:CANCELLED" in text for text in texts if "SUMMARY:Abgesagt: Prüfung" in text
            ] == [True]
