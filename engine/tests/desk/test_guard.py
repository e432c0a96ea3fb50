"""Who may do what: every route without a login, with the wrong role, with a forged form."""

import re
from uuid import uuid4

import pytest
from desk_app import Bake, app
from desk_browser import PASSWORD, Browser
from nightshift.celery.app import App
from nightshift.desk.guard import HEADERS, SESSION_SECONDS
from nightshift.desk.server import make_app
from nightshift.errors import InvalidInput
from nightshift.jobs import enqueue
from nightshift.jobs.models import Action, Job, JobState, PausedQueue
from sqlalchemy import func, select
from starlette.routing import Route

OPEN = {"/health", "/login", "/static/{name}"}


def find_routes(runtime):
    return [one for one in make_app(runtime).routes if isinstance(one, Route)]


def fill(path, job_id):
    """Return a path with values that are there."""
    values = {
        "job_id": str(job_id), "verb": "cancel", "queue": "oven", "action_id:int": "1",
        "name": "desk.css", "path:path": "nowhere",
    }  # fmt: skip
    return re.sub(r"\{([^}]+)\}", lambda found: values[found[1]], path)


@pytest.fixture
def job_id(runtime):
    with runtime.unit_of_work() as session:
        return enqueue(session, Bake(order=7), now=runtime.now())


def is_untouched(runtime, job_id):
    with runtime.read_only() as session:
        state = session.execute(select(Job.state).where(Job.id == job_id)).scalar_one()
        others = [
            session.execute(select(func.count()).select_from(table)).scalar_one()
            for table in (Action, PausedQueue)
        ]
    return (state, others) == (JobState.QUEUED, [0, 0])


def test_every_route_without_a_login_leads_to_it(runtime, open_browser, job_id):
    nobody = open_browser()
    asked = set()
    for route in find_routes(runtime):
        if route.path in OPEN or "name" in route.path:
            continue
        for method in route.methods:
            path = fill(route.path, job_id)
            got = nobody.request(method, path)
            assert got.status_code == 303, (method, path)
            assert got.headers["location"].startswith(("/login", "/")), path
            assert "bakery" not in got.text
            asked.add(route.path)

    assert {"/", "/jobs", "/jobs/{job_id}", "/shop", "/shop/sell", "/{path:path}"} <= asked
    assert is_untouched(runtime, job_id)


def test_every_act_with_the_role_look_is_refused(runtime, bob, job_id):
    acts = [one.path for one in find_routes(runtime) if one.methods == {"POST"}]
    acts = [path for path in acts if path not in ("/login", "/logout")]

    for path in acts:
        got = bob.post(fill(path, job_id), verb="pause", entry="bakery.sweep", what="bread")
        assert (got.status_code, "may look, and not act" in got.text) == (403, True), path

    assert len(acts) >= 5
    assert is_untouched(runtime, job_id)


def test_page_of_one_who_may_look_has_no_button_that_acts(runtime, bob, job_id):
    for path in ("/", "/jobs", f"/jobs/{job_id}", "/recurring", "/jobs/all?verb=cancel"):
        page = bob.get(path).text
        actions = set(re.findall(r'method="post" action="([^"]+)"', page))
        assert actions == {"/logout"}, path


def test_role_look_sees_every_page(runtime, bob, job_id):
    for path in ("/", "/jobs", f"/jobs/{job_id}", "/recurring", "/actions", "/checks", "/shop"):
        assert bob.get(path).status_code == 200, path


@pytest.mark.parametrize(
    ("forged", "headers"),
    [
        ({"csrf": ""}, {}),
        ({"csrf": "another"}, {}),
        ({"csrf": "ÿ"}, {}),
        ({}, {"sec-fetch-site": "cross-site"}),
        ({}, {"sec-fetch-site": "same-site"}),
        ({}, {"origin": "https://evil.example"}),
        ({}, {"origin": "null"}),
        ({}, {"content-type": "text/plain"}),
        ({}, {"content-type": "multipart/form-data; boundary=x"}),
        ({"more": "x" * 70_000}, {}),
        ({f"more{number}": "" for number in range(300)}, {}),
    ],
)
def test_every_act_with_a_forged_form_is_refused(runtime, ada, job_id, forged, headers):
    for route in find_routes(runtime):
        if route.methods != {"POST"} or route.path in ("/login", "/logout"):
            continue
        form = {"csrf": ada.token(), "verb": "pause", "entry": "bakery.sweep", **forged}
        path = fill(route.path, job_id)
        got = ada.request("POST", path, data=form, headers=headers)
        assert got.status_code == 403, path

    assert is_untouched(runtime, job_id)


def test_an_act_by_get_changes_nothing(runtime, ada, job_id):
    for route in find_routes(runtime):
        if route.methods == {"POST"}:
            ada.get(fill(route.path, job_id))

    assert is_untouched(runtime, job_id)


def test_login_needs_a_token_too(open_browser):
    nobody = open_browser()
    form = {"name": "ada", "password": PASSWORD, "csrf": "forged"}

    assert nobody.request("POST", "/login", data=form).status_code == 403
    assert nobody.get("/").headers["location"] == "/login?to=%2F"


def test_wrong_login_says_not_what_is_wrong(open_browser):
    nobody = open_browser()
    texts = {
        re.sub(r'value="[^"]*"', "", nobody.log_in(name, password).text)
        for name, password in (("ada", "wrong"), ("eve", PASSWORD), ("", ""))
    }

    assert len(texts) == 1
    assert "do not belong together" in texts.pop()


def test_too_many_logins_are_put_off(open_browser):
    nobody = open_browser()
    for _ in range(5):
        assert nobody.log_in("ada", "wrong").status_code == 401

    got = nobody.log_in("ada")
    assert (got.status_code, got.headers["retry-after"]) == (429, "300")


@pytest.mark.parametrize(
    "to", ["//evil.example", "https://evil.example", "/\\evil.example", "javascript:alert(1)", ""]
)
def test_login_leads_to_no_other_site(open_browser, to):
    assert open_browser().log_in("ada", to=to).headers["location"] == "/"


def test_login_leads_to_the_page_that_was_asked_for(open_browser):
    nobody = open_browser()
    sent_to = nobody.get("/jobs?state=failed&kind=a").headers["location"]

    assert sent_to == "/login?to=%2Fjobs%3Fstate%3Dfailed%26kind%3Da"
    got = nobody.log_in("ada", to="/jobs?state=failed&kind=a")
    assert got.headers["location"] == "/jobs?state=failed&kind=a"


def test_link_from_another_site_finds_the_session_by_a_step_between(open_browser):
    got = open_browser().get("/jobs?kind=a", **{"sec-fetch-site": "cross-site"})

    assert '<meta http-equiv="refresh" content="0; url=/jobs?kind=a">' in got.text


def test_cookie_is_strict_and_no_script_reads_it(open_browser):
    cookie = open_browser().log_in("ada").headers["set-cookie"].lower()

    assert "samesite=strict" in cookie
    assert "httponly" in cookie
    assert f"max-age={SESSION_SECONDS}" in cookie


def test_over_tls_the_cookie_is_secure_and_of_this_host(database_url, hashed):
    runtime = app.composition.runtime(
        database_url=database_url, desk_users=f"ada:act:{hashed}", desk_url="https://desk.example",
        given={App: app}, _env_file=None,
    )  # fmt: skip
    cookie = Browser(make_app(runtime), "https://desk.example").get("/login").headers["set-cookie"]

    assert cookie.startswith("__Host-desk=")
    assert "secure" in cookie.lower()
    assert "domain" not in cookie.lower()


def test_cookie_that_was_changed_is_no_login(ada):
    name, value = next(iter(ada.client.cookies.items()))
    ada.client.cookies.clear()
    ada.client.cookies.set(name, value[:-2] + ("AA" if value[-2:] != "AA" else "BB"))

    assert ada.get("/").status_code == 303


def test_session_ends(ada, monkeypatch):
    import time

    then = time.time() + SESSION_SECONDS + 1
    monkeypatch.setattr("nightshift.desk.guard.time.time", lambda: then)

    assert ada.get("/").status_code == 303


def test_log_out_ends_it(ada):
    assert ada.post("/logout").headers["location"] == "/login"
    assert ada.get("/").status_code == 303


def test_every_answer_has_the_headers(ada):
    for path in ("/", "/jobs", "/nowhere", "/login", "/jobs/not-an-id", "/jobs?state=lost"):
        got = ada.get(path)
        assert {name: got.headers[name] for name in HEADERS} == HEADERS, path
    policy = HEADERS["content-security-policy"]
    assert "unsafe" not in policy
    assert "http" not in policy


def test_no_page_has_a_script_or_a_style_of_its_own_or_asks_another_server(ada, job_id):
    for path in ("/", "/jobs", f"/jobs/{job_id}", "/recurring", "/actions", "/checks", "/login"):
        page = ada.get(path).text
        assert (
            re.findall(r"<script(?! src=\"/static/)|<style|\sstyle=|\son\w+=|javascript:", page)
            == []
        )
        assert set(re.findall(r'(?:src|href|action)="(https?://[^"]+)"', page)) <= {
            "http://127.0.0.1:5555/"
        }


def test_unknown_pages_are_not_found(ada):
    for path in ("/nowhere", f"/jobs/{uuid4()}", "/jobs/x", "/actions/1", "/actions/99999999999"):
        assert ada.get(path).status_code == 404, path


def test_desk_that_would_be_open_does_not_start(database_url):
    runtime = app.composition.runtime(
        database_url=database_url, environment="production", given={App: app}, _env_file=None,
        desk_secret="a secret of our own", postgres_password="one of our own",
    )  # fmt: skip

    with pytest.raises(InvalidInput, match="DESK_USERS: is missing, and the desk needs it"):
        make_app(runtime)
