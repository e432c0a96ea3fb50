"""The calendars on the development server's pages."""

import re

import pytest
from sqlalchemy import select

from project.settings import WEB_PORT
from services.calendars import serving
from services.calendars.models import Feed, FeedKind
from services.calendars.store import FeedStore
from services.school.models import SchoolClass
from tests.project.pages import get
from tests.serving import load_example, sync


@pytest.fixture
def runtime(job_app):
    """Return the runtime of an installation with the example school's calendars."""
    load_example(job_app)
    sync(job_app)
    return job_app.runtime


@pytest.fixture
def page(runtime):
    """Return the path of class 27Ga's page."""
    with runtime.read_only() as session:
        owner_id = session.scalars(select(SchoolClass.id).where(SchoolClass.name == "27Ga")).one()
    return f"/calendars/class/{owner_id}"


def test_first_page_lists_every_calendar(runtime, page):
    text = get(runtime, "/").text

    with runtime.read_only() as session:
        feeds = session.execute(select(Feed.kind, Feed.owner_id)).all()
    listed = re.findall(r'<a href="/calendars/(\w+)/(\d+)">', text)
    assert sorted(listed) == sorted((kind, str(owner_id)) for kind, owner_id in feeds)
    assert f'<a href="{page}">27Ga</a>' in text


def test_first_page_without_calendars_says_how_to_get_some(job_app):
    assert "<code>make demo</code>" in get(job_app.runtime, "/").text


def test_week_shows_the_events_of_its_days(runtime, page):
    text = get(runtime, f"{page}?week=2026-W49").text

    days = dict(
        re.findall(
            r"<h3>(\w+ \d+ \w+)[^<]*</h3>(.*?)\n</div>\n(?=<div class=.day|</div>)", text, re.DOTALL
        )
    )
    assert list(days) == [
        "Mon 30 Nov", "Tue 1 Dec", "Wed 2 Dec", "Thu 3 Dec", "Fri 4 Dec", "Sat 5 Dec", "Sun 6 Dec"
    ]  # fmt: skip
    assert re.findall(r'class="clock">([^<]*)<', days["Mon 30 Nov"]) == ["07:45 – 09:20", "23:59"]
    assert re.findall(r'class="what">([^<]*)<', days["Mon 30 Nov"]) == [
        "Prüfung Mathematik: Vektoren, Matrizen",
        "Abgabe Maturaarbeit",
    ]


def test_event_of_many_days_spans_those_of_the_week(runtime, page):
    text = get(runtime, f"{page}?week=2027-W08").text

    # It ends on the Friday.
    [bar] = re.findall(r'<div class="entry bar" style="grid-column: ([^"]*)">', text)
    assert bar == "1 / 6"


def test_address_of_the_calendar_is_shown(runtime, page):
    with runtime.read_only() as session:
        token = serving.find_token(session, FeedKind.CLASS, "27Ga")

    assert f'href="http://127.0.0.1:{WEB_PORT}/f/{token}.ics"' in get(runtime, page).text


def test_revoked_address_is_not_shown(runtime, page):
    with runtime.unit_of_work() as session:
        serving.revoke(session, FeedKind.CLASS, "27Ga", now=runtime.now())

    text = get(runtime, page).text
    assert ("Its address was revoked." in text, ".ics" in text) == (True, False)


def test_calendar_without_a_file_says_what_to_do(runtime, page):
    runtime[FeedStore].remove(FeedKind.CLASS, int(page.rpartition("/")[2]))

    assert "celery -A project feeds sync" in get(runtime, page).text


@pytest.mark.parametrize(
    "path",
    [
        "/calendars/class/999",
        "/calendars/class/99999999999999999999",
        "/calendars/planet/1",
        "/calendars/class/1?week=2026-W54",
        "/calendars/class/1?week=9999-W52",
        "/calendars/class/1?week=soon",
    ],
)
def test_unknown_calendar_or_week_is_not_found(runtime, path):
    assert get(runtime, path).status_code == 404
