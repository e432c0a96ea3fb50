"""The page behind a calendar's secret address."""

import re
from html import unescape
from urllib.parse import parse_qs, urlsplit

import pytest
import zxingcpp
from sqlalchemy import select, update

from project.calendars.subscribing import draw_code, make_addresses
from services.calendars import serving
from services.calendars.models import Feed, FeedKind
from services.calendars.store import FeedStore
from services.school.models import Event, SchoolClass
from tests.project.pages import get
from tests.serving import load_example, sync


@pytest.fixture
def runtime(job_app):
    """Return the runtime of an installation with the example school's calendars."""
    load_example(job_app)
    sync(job_app)
    return job_app.runtime


@pytest.fixture
def token(runtime):
    """Return the token of class 27Ga's calendar."""
    with runtime.read_only() as session:
        return serving.find_token(session, FeedKind.CLASS, "27Ga")


def read_code(svg):
    """Return what a camera reads in a QR code that `segno` drew."""
    [size] = re.findall(r'viewBox="0 0 (\d+) \1"', svg)
    side = int(size)
    scale = int(re.search(r"scale\((\d+)\)", svg)[1]) if "scale(" in svg else 1
    modules = side // scale
    rows = [bytearray(b"\xff" * modules) for _ in range(modules)]
    [path] = re.findall(r'<path[^>]*stroke="#000"[^>]* d="([^"]+)"', svg) or re.findall(
        r'<path[^>]* d="(M[^"]+h[^"]+)"[^>]*stroke', svg
    )
    x = y = 0.0
    for command, first, second in re.findall(r"([Mmh])(-?[\d.]+)(?: ?(-?[\d.]+))?", path):
        if command == "M":
            x, y = float(first), float(second)
        elif command == "m":
            x, y = x + float(first), y + float(second)
        else:
            for at in range(int(x), int(x + float(first))):
                rows[int(y)][at] = 0
            x += float(first)
    zoom = 8
    pixels = b"".join(bytes(value for value in row for _ in range(zoom)) * zoom for row in rows)
    picture = memoryview(pixels).cast("B", (modules * zoom, modules * zoom))
    return [one.text for one in zxingcpp.read_barcodes(picture)]


def test_page_has_the_addresses_and_the_events(runtime, token):
    answer = get(runtime, f"/f/{token}")

    text, address = unescape(answer.text), f"{runtime.settings.public_url}/f/{token}.ics"
    assert answer.status_code == 200
    assert f'value="{address}"' in text
    assert f'href="webcal{address.removeprefix("http")}"' in text
    assert "27 a" in re.search("<h1>(.*?)</h1>", text)[1]
    assert len(re.findall('<h3 class="day">', text)) >= 1


def test_page_asks_no_other_server_and_runs_no_script(runtime, token):
    answer = get(runtime, f"/f/{token}")

    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline';")
    assert not re.search(r"<script|src=|url\(|@import|\son\w+=", answer.text)
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("language", "said"),
    [
        ("fr-CH, de;q=0.5", "Cette semaine et la suivante"),
        ("en", "This week and the next"),
        ("it", "Diese und die nächste Woche"),
        ("", "Diese und die nächste Woche"),
    ],
)
def test_page_speaks_the_browsers_language(runtime, token, language, said):
    text = get(runtime, f"/f/{token}", {"accept-language": language}).text

    assert said in text
    assert f'<html lang="{ {"C": "fr", "T": "en", "D": "de"}[said[0]] }">' in text


def test_camera_reads_the_address(runtime, token):
    text = get(runtime, f"/f/{token}").text

    [svg] = re.findall("<svg.*?</svg>", text, re.DOTALL)
    assert read_code(svg) == [f"{runtime.settings.public_url}/f/{token}"]


def test_code_holds_the_longest_address():
    address = "https://" + "a" * 180 + "/f/" + "b" * 64 + ".ics"

    assert read_code(draw_code(address)) == [address]


@pytest.mark.parametrize("token", ["A" * 32, "A" * 21, "A" * 32 + ".html", "A" * 32 + ".", "%0a"])
def test_address_of_no_calendar_is_not_found(runtime, token):
    assert get(runtime, f"/f/{token}").status_code == 404


def test_revoked_calendar_has_no_page(runtime, token):
    with runtime.unit_of_work() as session:
        serving.revoke(session, FeedKind.CLASS, "27Ga", now=runtime.now())

    assert get(runtime, f"/f/{token}").status_code == 404


@pytest.mark.parametrize("content", [None, b"BEGIN:VCALENDAR\r\nhalf of it"])
def test_calendar_without_a_whole_file_is_being_made(runtime, token, content):
    store = runtime[FeedStore]
    with runtime.read_only() as session:
        owner_id = session.scalars(select(SchoolClass.id).where(SchoolClass.name == "27Ga")).one()
    store.remove(FeedKind.CLASS, owner_id)
    if content is not None:
        store.write(FeedKind.CLASS, owner_id, content)

    answer = get(runtime, f"/f/{token}", {"accept-language": "en"})

    assert (answer.status_code, "is being made" in answer.text) == (200, True)


def test_hostile_names_and_titles_are_escaped(job_app, runtime, token):
    hostile = "<b onclick=x>\"'&amp;</b>"
    with runtime.unit_of_work() as session:
        session.execute(
            update(SchoolClass).where(SchoolClass.name == "27Ga").values(display_name=hostile)
        )
        session.execute(update(Event).values(title=hostile, location=hostile))
    sync(job_app)

    text = get(runtime, f"/f/{token}").text

    assert "<b onclick" not in text
    assert text.count("&lt;b onclick=x&gt;") > 2


def test_services_get_the_address_whole():
    name = "Klasse 27Ga & Co?"
    made = make_addresses("https://calendar.school.example/", "t" * 32, name)
    address = f"https://calendar.school.example/f/{'t' * 32}.ics"

    assert made.https == address
    assert made.webcal == address.replace("https:", "webcal:")
    assert parse_qs(urlsplit(made.google).query) == {"cid": [made.webcal]}
    for one in (made.outlook, made.office):
        assert parse_qs(urlsplit(one).query) == {"url": [address], "name": [name]}


def test_page_is_that_of_its_feed_only(runtime):
    with runtime.read_only() as session:
        tokens = session.scalars(select(Feed.token)).all()

    pages = {token: get(runtime, f"/f/{token}").text for token in tokens[:6]}

    for token, text in pages.items():
        assert [one for one in tokens if one in text] == [token]
