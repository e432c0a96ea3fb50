"""The feeds at the desk; and no page of the desk shows a secret of the school."""

import re
import time
from email import message_from_bytes
from email.policy import default
from pathlib import Path

import pytest
from nightshift.jobs import enqueue_many
from nightshift.jobs.models import Action, Job
from nightshift.testing import run_due
from sqlalchemy import select

from services.calendars.models import Feed
from services.calendars.store import FeedStore
from services.letters.jobs import SendKey, SendWelcome
from services.mail import outbox
from services.mail.models import Mail
from services.mail.runtime import Mailer
from services.school.models import KeyPurpose, User, UserKey
from tests.project.desk import open_desk
from tests.serving import load_example, sync


@pytest.fixture
def desk(job_app, monkeypatch):
    load_example(job_app)
    sync(job_app)
    return open_desk(job_app, monkeypatch)


def read_feed(app, feed_id):
    with app.runtime.read_only() as session:
        return session.get(Feed, feed_id)


def find_feed(app):
    with app.runtime.read_only() as session:
        return session.scalars(select(Feed.id).order_by(Feed.id)).first()


def test_feeds_are_shown_with_owner_and_events(job_app, desk):
    page = desk.get("/feeds?kind=class").text

    assert "27Ga" in page
    assert "s-built" in page
    assert desk.get("/feeds?kind=house").status_code == 400


def test_rotate_changes_the_address_and_shows_none(job_app, desk):
    feed_id = find_feed(job_app)
    old = read_feed(job_app, feed_id).token

    desk.post(f"/feeds/{feed_id}/rotate", back="/feeds")

    new = read_feed(job_app, feed_id).token
    assert new != old
    page = desk.get("/feeds").text
    assert "has a new address" in page
    assert new not in page


def test_revoke_takes_the_address_and_the_file_away(job_app, desk):
    feed_id = find_feed(job_app)
    feed = read_feed(job_app, feed_id)
    store = job_app.runtime[FeedStore]
    assert store.read(feed.kind, feed.owner_id) is not None

    desk.post(f"/feeds/{feed_id}/revoke")

    assert read_feed(job_app, feed_id).revoked_at is not None
    assert store.read(feed.kind, feed.owner_id) is None
    assert "s-revoked" in desk.get("/feeds?only=revoked").text
    with job_app.runtime.read_only() as session:
        [action] = session.scalars(select(Action))
    assert action.subject == f"feed {feed_id} of {feed.kind} {feed.owner_id}"


def test_tile_counts_fresh_late_and_failed(job_app, desk):
    tile = re.search(r'<h2><a href="/feeds">.*?</dl>', desk.get("/").text, re.DOTALL)[0]

    assert [int(one) for one in re.findall(r">(\d+)<", tile)][1:] == [0, 0]


def send_welcomes(app):
    """Send some users their keys, and return the random parts of what was sent."""
    now = app.runtime.now()
    with app.runtime.unit_of_work() as session:
        users = session.scalars(select(User.id).limit(5)).all()
        enqueue_many(session, [SendWelcome(user_id=one) for one in users], now=now)
        purpose = KeyPurpose.RESET_PASSWORD
        enqueue_many(session, [SendKey(user_id=one, purpose=purpose) for one in users], now=now)
    run_due(app)
    time.sleep(outbox.DEBOUNCE.total_seconds() + 0.2)
    run_due(app)
    folder = Path(app.runtime[Mailer].transport.folder)
    texts = [
        message_from_bytes(path.read_bytes(), policy=default).get_body(("plain",)).get_content()
        for path in folder.rglob("*.eml")
    ]
    return {key for text in texts for key in re.findall(r"[\w-]{22,}", text)}


def test_no_page_shows_a_token_a_key_or_an_address(job_app, desk):
    keys = send_welcomes(job_app)
    feed_id = find_feed(job_app)
    desk.post(f"/feeds/{feed_id}/rotate")
    desk.post("/recurring", entry="calendars.sync", verb="run-now")
    run_due(job_app)
    with job_app.runtime.read_only() as session:
        secrets = {"token": set(session.scalars(select(Feed.token)))}
        secrets["address"] = set(session.scalars(select(User.email)))
        secrets["hash"] = {one.hex() for one in session.scalars(select(UserKey.hash))}
        secrets["key"] = keys
        mails = session.scalars(select(Mail)).all()
        secrets["recipient"] = {mail.recipient for mail in mails}
        jobs = session.scalars(select(Job.id)).all()
    assert min(map(len, secrets.values())) > 3
    assert mails

    seen = set()
    todo = ["/", "/checks", "/mail", "/feeds", "/actions", "/recurring"]
    todo += [f"/jobs/{job_id}" for job_id in jobs]
    while todo:
        path = todo.pop()
        seen.add(path)
        got = desk.get(path)
        assert got.status_code == 200, path
        for what, some in secrets.items():
            assert not [one for one in some if one in got.text], (path, what)
        # And every page that this one leads to.
        links = {one.replace("&amp;", "&") for one in re.findall(r'href="(/[^"]*)"', got.text)}
        todo += sorted(links - seen - set(todo))
        if len(seen) > 400:
            break
    assert {"/jobs", "/feeds?kind=user", "/mail?state=sent"} <= seen
