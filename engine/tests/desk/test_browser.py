"""The desk in a real browser, with a real worker and a real beat.

Playwright drives Debian's Chromium; where there is none, these tests are skipped, and say so.
"""

import os
import re
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest
from desk_app import Bake, Knead, Sweep
from desk_browser import PASSWORD
from installations import QUICK, Installation, any_installation
from nightshift.jobs import enqueue, enqueue_many
from nightshift.jobs.models import ENDED, Job, JobState
from servers import free_port
from sqlalchemy import func, select

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
missing = [] if CHROMIUM else ["chromium (apt-get install chromium)"]
missing += [one for one in ("playwright", "axe_playwright_python") if find_spec(one) is None]

pytestmark = [
    pytest.mark.worker,
    pytest.mark.skipif(bool(missing), reason=f"NO BROWSER TEST RUNS: missing {', '.join(missing)}"),
]

SIZES = {"wide": (1280, 900), "phone": (375, 800)}
PICTURES = os.environ.get("DESK_PICTURES", "")


@pytest.fixture(scope="module")
def bakery(tmp_path_factory: pytest.TempPathFactory, hashed: str) -> Iterator[Any]:
    """Yield an installation of the bakery with a worker, a beat and a desk, and its address."""
    folder = tmp_path_factory.mktemp("bakery")
    options = {
        **QUICK,
        "desk_bind": f"127.0.0.1:{free_port()}",
        "desk_users": f"ada:act:{hashed},bob:look:{hashed}",
        "desk_mended": str(folder / "mended"),
        "flower_port": str(free_port()),
    }
    with any_installation("embedded", "desk_app", folder, **options) as installation:
        installation.worker()
        installation.start("beat")
        installation.start("desk")
        address = f"http://{options['desk_bind']}"
        installation.until(lambda: answers(f"{address}/health"))
        yield installation, address, folder / "mended"


def answers(address: str) -> bool:
    try:
        return httpx.get(address, timeout=5).text == "ok\n"
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Root, as in a container, has no sandbox.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Any, bakery: Any) -> Iterator[Any]:
    """Return what opens a page for a user who has logged in; at the end no page has complained."""
    complaints: list[str] = []
    contexts = []

    def open_page(
        name: str = "ada", *, size: str = "wide", scheme: str = "light", **more: Any
    ) -> Any:
        width, height = SIZES[size]
        context = chromium.new_context(
            viewport={"width": width, "height": height},
            color_scheme=scheme,
            base_url=bakery[1],
            **more,
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on(
            "console", lambda said: complaints.append(said.text) if said.type == "error" else None
        )
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda one: complaints.append(one.url) if not one.url.startswith(bakery[1]) else None,
        )
        page.goto("/login")
        page.fill("#name", name)
        page.fill("#password", PASSWORD)
        page.click("main button")
        page.wait_for_url("**/")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def count(installation: Installation, *which: Any) -> int:
    with installation.runtime.read_only() as session:
        return session.execute(select(func.count()).select_from(Job).where(*which)).scalar_one()


def test_forty_jobs_fail_alike_are_found_read_retried_and_watched(
    bakery: Any, open_page: Any
) -> None:
    installation, _, mended = bakery
    runtime = installation.runtime
    with runtime.unit_of_work() as session:
        alike = [Bake(order=number, customer="Hotel Bellevue") for number in range(40)]
        enqueue_many(session, alike, now=runtime.now())
        enqueue_many(session, [Bake(order=n, customer="Anna") for n in range(5)], now=runtime.now())
    installation.until(lambda: count(installation, Job.state == JobState.FAILED) == 45)
    page = open_page()

    # Find them by an argument.
    page.click("text=Jobs >> nth=0")
    page.get_by_role("link", name="failed", exact=True).first.click()
    page.fill("#args", 'customer="Hotel Bellevue"')
    page.click("text=Find")
    assert page.inner_text("#total") == "40 match"
    found = page.url
    # Read why.
    page.locator("#jobs tbody a").first.click()
    assert "the oven is cold" in page.inner_text("#errors")
    assert "Traceback" in page.inner_text("#errors pre")
    assert "is in the oven" in page.inner_text("#log")
    # The link can be sent: it is the filter.
    page.goto(found)
    assert page.input_value("#args") == 'customer="Hotel Bellevue"'
    # Mend it, retry all, and watch them succeed.
    mended.touch()
    page.click("text=Retry …")
    assert "Retry 40 jobs?" in page.inner_text("h1")
    page.click("main button.main")
    page.wait_for_url(re.compile(r"/actions/\d+"))
    page.wait_for_selector("#action .s-succeeded")  # by the refreshing: nobody reloads
    assert "40" in page.inner_text("#action dl")
    page.goto("/jobs?state=succeeded&args=customer%3D%22Hotel+Bellevue%22")
    page.wait_for_function("document.getElementById('total').innerText === '40 match'")
    assert count(installation, Job.state == JobState.FAILED) == 5
    mended.unlink()


def test_each_act_by_its_button(bakery: Any, open_page: Any) -> None:
    installation, _, _ = bakery
    runtime = installation.runtime
    page = open_page()
    page.locator("#queues tr", has_text="oven").get_by_role("button", name="Pause").click()
    assert "The queue oven is paused." in page.inner_text("[role=status]")
    with runtime.unit_of_work() as session:
        job_id = enqueue(session, Bake(order=100), now=runtime.now())
        later = enqueue(
            session, Sweep(), now=runtime.now(), run_at=runtime.now().replace(year=2120)
        )

    page.goto(f"/jobs/{job_id}")
    for button, said in (
        ("Hold", "The job is held."),
        ("Release", "The job is released."),
        ("Cancel", "The job is cancelled."),
        ("Retry", "The job is scheduled again."),
    ):
        page.get_by_role("button", name=button, exact=True).click()
        assert page.inner_text("[role=status]") == said
    page.goto(f"/jobs/{later}")
    page.get_by_role("button", name="Run now").click()
    assert page.inner_text("[role=status]") == "The job is due now."
    page.wait_for_selector("#head .s-succeeded")
    page.goto("/")
    page.locator("#queues tr", has_text="oven").get_by_role("button", name="Resume").click()
    assert "The queue oven is resumed." in page.inner_text("[role=status]")
    installation.until(lambda: count(installation, Job.id == job_id, Job.state.in_(ENDED)))
    # What recurs.
    page.goto("/recurring")
    for button, said in (
        ("Run now", "is enqueued as job"),
        ("Pause", "is paused"),
        ("Resume", "is resumed"),
    ):
        page.locator("tr", has_text="bakery.sweep").get_by_role("button", name=button).click()
        assert said in page.inner_text("[role=status]")
    # Who did what.
    page.goto("/actions")
    said = page.inner_text("#actions")
    assert all(one in said for one in ("ada", "pause", "resume", "hold", "release", "run-now"))
    page.get_by_role("button", name="Log out").click()
    page.wait_for_url("**/login")


def test_pages_work_without_a_script_and_by_the_keyboard(bakery: Any, open_page: Any) -> None:
    installation, _, _ = bakery
    runtime = installation.runtime
    with runtime.unit_of_work() as session:
        job_id = enqueue(
            session, Bake(order=7), now=runtime.now(), run_at=runtime.now().replace(year=2120)
        )
    page = open_page(java_script_enabled=False)

    page.goto(f"/jobs/{job_id}")
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.locator("button:focus", has_text="Hold").count():
            break
    page.keyboard.press("Enter")
    page.wait_for_selector("text=The job is held.")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_axe_finds_nothing_and_no_page_is_too_wide(
    bakery: Any, open_page: Any, size: str, scheme: str
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    installation, _, _ = bakery
    runtime = installation.runtime
    with runtime.unit_of_work() as session:
        parent = enqueue(session, Knead(loaves=3), now=runtime.now())
        failed = enqueue(session, Bake(order=7, customer="x" * 300), now=runtime.now())
    installation.until(lambda: count(installation, Job.id == failed, Job.state.in_(ENDED)))
    installation.until(lambda: count(installation, Job.id == parent, Job.state.in_(ENDED)))
    page = open_page(size=size, scheme=scheme)
    page.goto(f"/jobs/{failed}")
    page.get_by_role("button", name="Retry").click()
    paths = [
        "/", "/jobs", "/jobs?state=failed", "/jobs?kind=none", f"/jobs/{failed}", f"/jobs/{parent}",
        "/jobs/all?verb=retry&state=failed", "/recurring", "/checks", "/actions", "/shop",
    ]  # fmt: skip
    found = {}
    for path in paths:
        page.goto(path)
        results = Axe().run(page, options={"resultTypes": ["violations"]})
        found |= {
            f"{path}: {one['id']}": [node["html"][:200] for node in one["nodes"]]
            for one in results.response["violations"]
        }
        wide = page.evaluate("document.documentElement.scrollWidth")
        if wide > SIZES[size][0]:
            found[f"{path}: too wide"] = wide
        if PICTURES:
            name = re.sub(
                r"\W+", "-", path.replace(str(failed), "failed").replace(str(parent), "parent")
            )
            page.screenshot(path=Path(PICTURES) / f"{name}-{size}-{scheme}.png", full_page=True)
    page.context.clear_cookies()
    page.goto("/login")
    found |= {f"login: {one['id']}": one for one in Axe().run(page).response["violations"]}

    assert found == {}
