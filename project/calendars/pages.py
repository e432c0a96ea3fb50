"""The calendars on the development server's pages: a list of them, and each as a week."""

import re
from datetime import date, timedelta
from pathlib import Path

from markupsafe import Markup
from nightshift.runtime import Runtime
from nightshift.web.server import NOT_FOUND
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from project.front.pages import LARGEST_ID, Pages, is_shown
from project.school.settings import SchoolSettings
from services.calendars import serving
from services.calendars.models import FeedKind
from services.calendars.store import FeedStore
from services.calendars.weeks import read_week

pages = Pages(Path(__file__).parent / "templates")

# A year or a week beyond these cannot be counted in days.
WEEK = re.compile("(19|2[01])[0-9]{2}-W[0-9]{2}")


def make_routes(runtime: Runtime) -> list[Route]:
    """Return the routes of the calendars' pages, in development."""
    zone = runtime[SchoolSettings].school_timezone

    def week(request: Request) -> Response:
        """Show one week of a calendar: the current one, or `?week=2026-W48`."""
        kind, owner_id = request.path_params["kind"], request.path_params["owner_id"]
        today = runtime.now().astimezone(zone).date()
        monday = _read_monday(request.query_params.get("week", _name_week(today)))
        if kind not in list(FeedKind) or owner_id > LARGEST_ID or monday is None:
            return NOT_FOUND
        with runtime.read_only() as session:
            found = serving.list_calendars(session, kind=FeedKind(kind), owner_id=owner_id)
        if not found:
            return NOT_FOUND
        [calendar] = found
        content = runtime[FeedStore].read(calendar.kind, calendar.owner_id)
        return pages.answer(
            "week.html",
            calendar=calendar,
            address=f"{runtime.settings.public_url.rstrip('/')}/f/{calendar.token}.ics",
            week=None if content is None else read_week(content, monday, zone),
            today=today,
            monday=monday,
            step=timedelta(weeks=1),
            name_week=_name_week,
        )

    path = "/calendars/{kind}/{owner_id:int}"
    return [Route(path, week)] if is_shown(runtime) else []


def show_calendars(runtime: Runtime) -> Markup:
    """Return the list of calendars for the first page."""
    with runtime.read_only() as session:
        found = serving.list_calendars(session)
    kinds = {kind: [one for one in found if one.kind == kind] for kind in FeedKind}
    return pages.render("calendars.html", kinds=kinds)


def _name_week(day: date) -> str:
    return f"{day:%G-W%V}"


def _read_monday(name: str) -> date | None:
    try:
        return date.fromisoformat(f"{name}-1") if WEEK.fullmatch(name) else None
    except ValueError:
        return None
