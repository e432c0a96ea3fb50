"""The pages that mails lead to, over HTTP, from the header in a mail."""

import re
import shutil
import socket
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
import uvicorn
from nightshift.runtime import Runtime
from sqlalchemy import make_url, select
from starlette.applications import Starlette

from project.letters.routes import make_routes
from services.letters import accounts, unsubscribe
from services.letters.facts import Fact
from services.letters.recipients import find_recipients, make_letter
from services.letters.rules import LetterRules
from services.school.models import KeyPurpose, Role, User
from services.translation import Locale
from tests.conftest import NOW, make_runtime


class Site:
    """A served installation with one user, who reads German."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime, self.rules = runtime, runtime[LetterRules]
        user = User(
            email="ann@school.example",
            first_name="Ann",
            last_name="Muster",
            role=Role.STUDENT,
            created_at=NOW,
        )
        with runtime.unit_of_work() as session:
            session.add(user)
            session.flush()
            self.user_id = user.id
        self.client = httpx.Client(headers={"accept-language": "fr-CH, de;q=0.5"}, trust_env=False)

    def user(self) -> User:
        with self.runtime.read_only() as session:
            return session.execute(select(User)).scalar_one()

    def asked(self, flag: str) -> str:
        """Return what the page says that asks about a flag."""
        url = unsubscribe.make_link(self.rules, self.user_id, flag, now=self.runtime.now())
        return re.search("<p>(.*?)</p>", self.client.get(url).text, re.DOTALL)[1]

    def one_click(self) -> str:
        """Return what a mail program finds in a notice's header."""
        with self.runtime.read_only() as session:
            (to,) = find_recipients(session, [self.user_id])
        facts, now = [Fact("Title", "Trip"), Fact("When", "Tuesday")], self.runtime.now()
        told = {
            "title": "Trip",
            "facts": facts,
            "key": "1",
            "about": "event:1",
            "shown": True,
            "expires_at": now + timedelta(days=1),
        }
        message = make_letter("event_published", to, self.rules, now=now, **told)
        return message.content["List-Unsubscribe"].strip("<>")

    def key(self) -> str:
        with self.runtime.unit_of_work() as session:
            key, _ = accounts.issue(
                session,
                session.get_one(User, self.user_id),
                KeyPurpose.VERIFY_ADDRESS,
                now=self.runtime.now(),
            )
        return f"{self.rules.public_url}/u/verify?key={key}"


@pytest.fixture
def site(sqlite_url: str, tmp_path: Path) -> Iterator[Site]:
    # A copy of the migrated database: it is quicker than to migrate one for each test.
    shutil.copyfile(make_url(sqlite_url).database, tmp_path / "test.db")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        settings = {"database_url": f"sqlite:///{tmp_path}/test.db", "public_url": url}
        runtime = make_runtime(**settings, school_name="Muster")
        app = Starlette(routes=make_routes(runtime))
        server = uvicorn.Server(
            uvicorn.Config(app, ws="none", lifespan="off", log_config=None, access_log=False)
        )
        # The socket listens already: a client is served as soon as the server runs.
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        site = Site(runtime)
        try:
            yield site
        finally:
            site.client.close()
            server.should_exit = True
            thread.join()
            runtime.close()


def test_one_click_turns_mail_off(site):
    # As RFC 8058 has it: a POST, this body, no cookies, no redirect.
    answer = site.client.post(site.one_click(), data={"List-Unsubscribe": "One-Click"})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert '<html lang="de">' in answer.text
    assert (site.user().mail_events, site.user().mail_reviews) == (False, True)


def test_looking_at_the_link_changes_nothing(site):
    url = site.one_click()
    answers = [site.client.get(url), site.client.head(url)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert '<form method="post"><button' in answers[0].text
    assert site.user().mail_events is True


def test_page_says_which_mails_it_is_about(site):
    assert {flag: site.asked(flag).split(".")[0] for flag in unsubscribe.FLAGS} == {
        "mail_events": "Sie erhalten dann keine Mails mehr über neue und geänderte Anlässe",
        "mail_reviews": "Sie werden dann nicht mehr gebeten, Anlässe zu prüfen",
        "mail_digest": "Sie erhalten dann keine Mails mehr über Ihre Woche",
    }


def test_second_click_is_answered_as_the_first(site):
    url = site.one_click()
    first, second = (site.client.post(url) for _ in range(2))
    assert (
        (first.status_code, first.content)
        == (second.status_code, second.content)
        == (200, first.content)
    )


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    "query", ["", "?t=", "?t=nonsense", "?t=%00%ff", "?t=" + "x" * 5000, "?key=nonsense"]
)
def test_link_that_does_not_work_is_answered_the_same_whatever_it_is(site, method, query):
    url = site.one_click().partition("?")[0]
    answer = site.client.request(method, url + query)
    assert (answer.status_code, answer.content) == (404, site.client.get(url).content)
    assert '<html lang="fr">' in answer.text
    assert site.user().mail_events is True


def test_key_verifies_an_address_once_and_only_by_post(site):
    url = site.key()
    assert (site.client.get(url).status_code, site.user().email_verified_at) == (200, None)
    assert [site.client.post(url).status_code for _ in range(2)] == [200, 404]
    assert site.user().email_verified_at is not None


def test_pages_keep_secrets_to_themselves(site):
    for url in (site.one_click(), site.key()):
        answer = site.client.get(url)
        assert url.partition("=")[2] not in answer.text
        assert {
            name: answer.headers[name]
            for name in ("referrer-policy", "cache-control", "x-content-type-options")
        } == {
            "referrer-policy": "no-referrer",
            "cache-control": "no-store",
            "x-content-type-options": "nosniff",
        }


@pytest.mark.parametrize(
    ("asked", "spoken"),
    [("en-GB,en", "en"), ("it, fr", "fr"), ("it", "de"), ("", "de"), (";;,,*", "de")],
)
def test_page_speaks_the_browsers_language(site, asked, spoken):
    answer = site.client.get(site.key(), headers={"accept-language": asked})
    assert f'<html lang="{Locale(spoken)}">' in answer.text
