"""The first page: there in development, and only there."""

import re

from tests.conftest import make_runtime
from tests.project.pages import get


def test_first_page_shows_what_the_components_show(job_app):
    got = get(job_app.runtime, "/")

    assert got.status_code == 200
    assert "<h2>Mails</h2>" in got.text


def test_page_loads_nothing_and_runs_no_script(job_app):
    got = get(job_app.runtime, "/")

    assert got.headers["content-security-policy"].startswith("default-src 'none'; style-src")
    assert re.findall(r"<script|<link|<img|https?://(?!127)", got.text) == []


def test_production_has_no_such_page():
    runtime = make_runtime(
        environment="production",
        link_secret="one of our own",
    )

    paths = ["/", "/mails/1", "/calendars/class/1"]
    assert [get(runtime, path).status_code for path in paths] == [404, 404, 404]
