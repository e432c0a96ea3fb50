"""Each oracle reads every feed.

A finding is what it complains of, or an event that it reads otherwise than icalendar does.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from email import message_from_bytes
from email.policy import default
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import icalendar
import pytest
import recurring_ical_events
import vobject
from fault_servers import free_port, wait_for
from ical.calendar_stream import IcsCalendarStream

from tests.conftest import ZONE
from tests.ical_js import require_ical_js
from tests.libical import require_libical
from tests.lint import lint

GOLDEN = Path(__file__).parents[1] / "golden" / "ics"
MAILS = GOLDEN.parent / "mail"

# An event as it was read: uid, start, end, summary, description.
Events = list[tuple[str, ...]]
Reading = Events | str


def moment(value: date) -> str:
    return (
        f"{value.astimezone(UTC):%Y%m%dT%H%M%SZ}"
        if isinstance(value, datetime)
        else f"{value:%Y%m%d}"
    )


def by_icalendar(event: Any) -> tuple[str, ...]:
    starts = event["DTSTART"].dt
    ends = event["DTEND"].dt if "DTEND" in event else starts
    return (
        str(event["UID"]),
        moment(starts),
        moment(ends),
        str(event["SUMMARY"]),
        str(event["DESCRIPTION"]),
    )


def each(read: Callable[[bytes], Events]) -> Callable[[Mapping[str, Path]], dict[str, Reading]]:
    """Let a Python parser read one feed after the other; whatever it raises is a finding."""

    def run(feeds: Mapping[str, Path]) -> dict[str, Reading]:
        readings: dict[str, Reading] = {}
        for name, path in feeds.items():
            try:
                readings[name] = read(path.read_bytes())
            except Exception as error:  # noqa: BLE001 - it is a finding
                readings[name] = f"{type(error).__name__}: {error}"
        return readings

    return run


@cache
def expected(data: bytes) -> Events:
    return [by_icalendar(event) for event in icalendar.Calendar.from_ical(data).walk("VEVENT")]


def our_lint(data: bytes) -> Events:
    if findings := lint(data):
        raise ValueError("\n".join(findings))
    return expected(data)


def ical(data: bytes) -> Events:
    return [
        (
            event.uid,
            moment(event.dtstart),
            moment(event.dtend or event.dtstart),
            event.summary,
            event.description,
        )
        for event in IcsCalendarStream.calendar_from_ics(data.decode()).events
    ]


def by_vobject(data: bytes) -> Events:
    calendar = vobject.readOne(data.decode())
    calendar.validate(raiseException=True)
    events = []
    for event in calendar.contents.get("vevent", []):
        ends = event.dtend if "dtend" in event.contents else event.dtstart
        texts = event.summary.value, event.description.value
        events.append((event.uid.value, moment(event.dtstart.value), moment(ends.value), *texts))
    return events


def in_utc(text: str) -> str:
    """Return a time as a parser wrote it in UTC: one without Z is on the feed's clock."""
    if "T" not in text or text.endswith("Z"):
        return text
    return moment(datetime.strptime(text, "%Y%m%dT%H%M%S").replace(tzinfo=ZONE))


def recurring(data: bytes) -> Events:
    calendar = icalendar.Calendar.from_ical(data)
    # With a zone it turns instants into local times: for an hour a year two are equal, and it loses
    # which of them is meant.
    del calendar["X-WR-TIMEZONE"]
    # It expands what repeats: tests/services/calendars/test_repeats.py looks at the dates.
    repeated = {str(event["UID"]) for event in calendar.walk("VEVENT") if "RRULE" in event}
    return [
        *(event for event in expected(data) if event[0] in repeated),
        *(
            by_icalendar(event)
            for event in recurring_ical_events.of(calendar).all()
            if str(event["UID"]) not in repeated
        ),
    ]


ICAL_JS = """
const ICAL = require("ical.js"), fs = require("fs"), found = {};
for (const [name, path] of Object.entries(JSON.parse(fs.readFileSync(0, "utf8")))) {
  try {
    const calendar = new ICAL.Component(ICAL.parse(fs.readFileSync(path, "utf8")));
    found[name] = calendar.getAllSubcomponents("vevent").map((each) => {
      const event = new ICAL.Event(each);
      const times = [event.startDate.toICALString(), event.endDate.toICALString()];
      return [event.uid, ...times, event.summary, event.description];
    });
  } catch (error) {
    found[name] = String(error);
  }
}
console.log(JSON.stringify(found));
"""


def ical_js(feeds: Mapping[str, Path]) -> dict[str, Reading]:
    environment = require_ical_js()
    run = subprocess.run(
        ["node", "-e", ICAL_JS],
        input=json.dumps({name: str(path) for name, path in feeds.items()}),
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(run.stdout)
    return {
        name: read
        if isinstance(read, str)
        else [(uid, in_utc(starts), in_utc(ends), *rest) for uid, starts, ends, *rest in read]
        for name, read in found.items()
    }


def libical(feeds: Mapping[str, Path]) -> dict[str, Reading]:
    library = require_libical()

    def read(data: bytes) -> Events:
        names = ("UID", "DTSTART", "DTEND", "SUMMARY", "DESCRIPTION")
        _, events = library.read(data, names)
        return [
            (uid, in_utc(starts), in_utc(ends or starts), *texts)
            for uid, starts, ends, *texts in events
        ]

    return each(read)(feeds)


def calcurse(feeds: Mapping[str, Path], folder: Path) -> dict[str, Reading]:
    """Let calcurse import each feed and show the titles: it shows their first 8 kilobytes."""
    if shutil.which("calcurse") is None:
        pytest.skip("CALCURSE IS NOT INSTALLED: apt-get install calcurse")
    formats = [f"--format-{kind}=%m\n" for kind in ("apt", "event", "recur-apt", "recur-event")]
    environment = {**os.environ, "TZ": "Europe/Zurich", "LC_ALL": "C.UTF-8", "TMPDIR": str(folder)}
    readings: dict[str, Reading] = {}
    for number, (name, path) in enumerate(feeds.items()):
        data = folder / str(number)
        data.mkdir()
        command = ["calcurse", "-D", data, "-q", "-i", path, "--dump-imported", *formats]
        run = subprocess.run(command, capture_output=True, check=False, env=environment, timeout=60)
        events = expected(path.read_bytes())
        found = sorted(title[:8000] for title in run.stdout.splitlines())
        is_good = (
            run.returncode == 0
            and not run.stderr
            and found == sorted(title.encode()[:8000] for *_, title, _ in events)
        )
        readings[name] = (
            events
            if is_good
            else f"exit code {run.returncode}, {len(found)} of {len(events)}: {run.stderr.decode()}"
        )
    return readings


def radicale(feeds: Mapping[str, Path], folder: Path) -> dict[str, Reading]:
    """Put each feed as a whole calendar, and get it back."""
    port = free_port()
    options = [
        f"--server-hosts=127.0.0.1:{port}",
        "--auth-type=none",
        f"--storage-filesystem-folder={folder}",
    ]
    server = subprocess.Popen(
        [sys.executable, "-m", "radicale", "--config", "", *options, "--logging-level=error"]
    )
    readings: dict[str, Reading] = {}
    try:
        wait_for(port)
        with httpx.Client(
            base_url=f"http://127.0.0.1:{port}/school/", auth=("school", ""), timeout=60
        ) as client:
            for number, (name, path) in enumerate(feeds.items()):
                put = client.put(
                    f"{number}/",
                    content=path.read_bytes(),
                    headers={"Content-Type": "text/calendar"},
                )
                got = client.get(f"{number}/")
                readings[name] = (
                    expected(got.content)
                    if put.is_success and got.is_success
                    else f"{put} {put.text} {got}"
                )
    finally:
        server.terminate()
        server.wait()
    return readings


ORACLES: dict[str, Callable[..., dict[str, Reading]]] = {
    "our byte lint": each(our_lint),
    "ical": each(ical),
    "vobject": each(by_vobject),
    "recurring-ical-events": each(recurring),
    "ical.js": ical_js,
    "libical": libical,
    "calcurse": calcurse,
    "Radicale": radicale,
}


def findings(
    name: str, feeds: Mapping[str, Path], wanted: Mapping[str, Events], folder: Path
) -> list[str]:
    found = []
    for feed, reading in ORACLES[name](
        feeds, *([folder] if name in {"calcurse", "Radicale"} else [])
    ).items():
        if isinstance(reading, str):
            found.append(f"{feed}: {reading}")
        elif sorted(reading) != sorted(wanted[feed]):
            found.append(
                f"{feed}: {len(reading)} of {len(wanted[feed])} events;"
                f" read otherwise: {set(reading) ^ set(wanted[feed])}"
            )
    return found


@pytest.mark.parametrize("name", ORACLES)
def test_oracle_finds_nothing(
    name: str, feeds: dict[str, Path], tmp_path: Path, table: list[tuple[str, str, str]]
) -> None:
    wanted = {feed: expected(path.read_bytes()) for feed, path in feeds.items()}
    try:
        found = findings(name, feeds, wanted, tmp_path)
    except pytest.skip.Exception as missing:
        table.append((name, "SKIPPED", str(missing)))
        raise
    table.append((name, f"{len(feeds):,}", f"{len(found):,}"))
    assert found == []


@pytest.mark.parametrize("name", ["ical", "vobject", "ical.js", "libical"])
def test_oracle_accepts_an_invitation(name: str, tmp_path: Path) -> None:
    invitations = {}
    for mail in sorted(MAILS.glob("invitation*.eml")):
        message = message_from_bytes(mail.read_bytes(), policy=default)
        part = next(part for part in message.walk() if part.get_content_type() == "text/calendar")
        (tmp_path / mail.stem).write_bytes(part.get_payload(decode=True))
        invitations[mail.stem] = tmp_path / mail.stem
    assert len(invitations) == 6

    assert (
        findings(
            name,
            invitations,
            {each: expected(path.read_bytes()) for each, path in invitations.items()},
            tmp_path,
        )
        == []
    )


UID = "6f1b1b1e-0000-4000-8000-000000000001@school.example"


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("our byte lint", "\r\n", "\n"),
        ("ical", "STATUS:CONFIRMED", "STATUS:OK"),
        ("vobject", "UID:", "X-UID:"),
        ("recurring-ical-events", "DTSTART:2025", "DTSTART:2024"),
        ("ical.js", "SUMMARY:", "SUMMARY"),
        ("libical", "SEQUENCE:2", "DTSTART:20250328T071000Z"),
        ("calcurse", "DTEND:2025", "DTEND:2024"),
        (
            "Radicale",
            "END:VEVENT",
            f"END:VEVENT\r\nBEGIN:VEVENT\r\nUID:{UID}\r\nDTSTAMP:20250301T063000Z\r\nEND:VEVENT",
        ),
    ],
)
def test_oracle_finds_a_defect(name: str, old: str, new: str, tmp_path: Path) -> None:
    good = (GOLDEN / "lesson.de.ics").read_bytes()
    assert old.encode() in good
    (tmp_path / "seeded.ics").write_bytes(good.replace(old.encode(), new.encode(), 1))

    assert (
        len(
            findings(
                name, {"seeded": tmp_path / "seeded.ics"}, {"seeded": expected(good)}, tmp_path
            )
        )
        == 1
    )
