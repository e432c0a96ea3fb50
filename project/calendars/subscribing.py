"""The page behind a feed's secret address, `/f/<token>`: how to subscribe, and what comes next.

It needs no script and asks no other server. docs/serving.md describes it.
"""

from collections.abc import Sequence
from datetime import date, timedelta
from io import BytesIO
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, urlsplit

import segno
from icalendar import Calendar
from markupsafe import Markup
from nightshift.runtime import Runtime
from nightshift.web.server import COMMON
from starlette.requests import Request
from starlette.responses import HTMLResponse

from services.calendars.ics import CALENDAR_FOOT
from services.calendars.sync import Rules
from services.calendars.weeks import DAYS, Entry, read_weeks
from services.mail.compose import Frame, render_page
from services.translation import negotiate

TEMPLATES = Path(__file__).parent / "templates"
WEEKS = 2
HEADERS = COMMON | {
    "cache-control": "no-store",
    "content-security-policy": (
        "default-src 'none'; style-src 'unsafe-inline'; form-action 'none'; frame-ancestors 'none'"
    ),
    # The address is a secret, and the buttons lead to other servers.
    "referrer-policy": "no-referrer",
}


class Addresses(NamedTuple):
    """A calendar's page and address, and those by which programs and services subscribe to it."""

    page: str
    https: str
    webcal: str
    google: str
    outlook: str
    office: str


def make_addresses(public_url: str, token: str, name: str) -> Addresses:
    """Return the addresses of a calendar."""
    page = f"{public_url.rstrip('/')}/f/{token}"
    https = f"{page}.ics"
    webcal = urlsplit(https)._replace(scheme="webcal").geturl()
    from_web = f"addfromweb?url={quote(https, safe='')}&name={quote(name, safe='')}"
    return Addresses(
        page,
        https,
        webcal,
        f"https://calendar.google.com/calendar/r?cid={quote(webcal, safe='')}",
        f"https://outlook.live.com/calendar/0/{from_web}",
        f"https://outlook.office.com/calendar/0/{from_web}",
    )


def draw_code(text: str) -> Markup:
    """Return a QR code as an SVG to stand in a page."""
    drawn = BytesIO()
    code = segno.make(text, error="m", micro=False)
    # Dark on light with a margin, also on a dark page: otherwise cameras do not find it.
    code.save(
        drawn, kind="svg", xmldecl=False, svgns=False, scale=4, border=4, dark="#000", light="#fff",
        svgclass=None, lineclass=None, title="QR", omitsize=True,
    )  # fmt: skip
    return Markup(drawn.getvalue().decode())  # noqa: S704 - made of modules, not of the text


def answer(request: Request, runtime: Runtime, token: str, content: bytes | None) -> HTMLResponse:
    """Return the page of a calendar, in the browser's language.

    `content` is the calendar's file, or None before it is built.
    """
    rules = runtime[Rules]
    locale = negotiate(request.headers.get("accept-language", ""))
    name = rules.school_name if content is None else _read_name(content)
    addresses = make_addresses(runtime.settings.public_url, token, name)
    today = runtime.now().astimezone(rules.zone).date()
    page = render_page(
        "calendar",
        locale,
        Frame("", rules.school_name, rules.zone, TEMPLATES),
        calendar=name,
        addresses=addresses,
        code=draw_code(addresses.page),
        days=None if content is None else list_days(content, today, rules),
        today=today,
    )
    return HTMLResponse(page, headers=HEADERS)


def list_days(content: bytes, today: date, rules: Rules) -> Sequence[tuple[date, list[Entry]]]:
    """Return the days from today to the end of next week that have an event, with their events."""
    monday = today - timedelta(days=today.weekday())
    days = []
    for week in read_weeks(content, monday, rules.zone, number=WEEKS):
        for index in range(DAYS):
            day = week.days[index]
            entries = [one for one in week.all_day if one.first <= day <= one.last]
            entries += week.timed[index]
            if entries and day >= today:
                days.append((day, entries))
    return days


def _read_name(content: bytes) -> str:
    # Without the events, which take long to read.
    head = content.partition(b"BEGIN:VEVENT")[0].removesuffix(CALENDAR_FOOT) + CALENDAR_FOOT
    return str(Calendar.from_ical(head).get("X-WR-CALNAME", ""))
