"""The weekly digest, on both databases."""

from datetime import UTC, date, datetime, timedelta

import icalendar
import pytest
from sqlalchemy import delete, select, update

from project.letters.component import letters
from services.calendars import revisions
from services.calendars.agendas import find_showing, read_agendas
from services.calendars.window import Window
from services.letters import digests
from services.letters.jobs import QueueDigests, SendDigests
from services.mail.models import Mail
from services.school import events
from services.school.models import Subscription, User
from tests.conftest import NOW, ZONE, make_runtime
from tests.services.letters.conftest import DOMAIN, RULES

# A Monday, six in the morning in Zurich.
MONDAY = datetime(2026, 11, 30, 5, 0, tzinfo=UTC)
WEEK = date(2026, 11, 30)


@pytest.fixture
def readers(session, school):
    session.execute(
        update(User)
        .where(User.id.in_([school.ids[name] for name in ("ann", "bob", "fred")]))
        .values(mail_digest=True)
    )
    return school


def plan(school, at=MONDAY):
    digests.spawn_digests(school.session, school.run(SendDigests(), now=at), RULES)
    return school.spawned(QueueDigests)


def queue(school, *, at=MONDAY, jobs=None):
    """Do these or all jobs of a digest, and return who got one."""
    session = school.session
    revisions.record(
        session, Window.around(NOW, ZONE, days_past=31, days_ahead=465), [], domain=DOMAIN, now=NOW
    )
    before = set(session.execute(select(Mail.id)).scalars())

    def held(session, first, last, user_ids):
        return read_agendas(
            session, Window(first, last, at, ZONE), user_ids, school_name="Gymnasium"
        )

    for args in jobs or plan(school, at):
        digests.queue_digests(session, args, held, RULES, now=at)
    return school.since(before)


def test_digest_goes_out_on_monday_at_six_in_the_schools_zone():
    (entry,) = letters.schedule(make_runtime())
    times = [
        entry.after(datetime(2026, 10, 20, tzinfo=UTC)),
        entry.after(datetime(2026, 10, 26, 12, tzinfo=UTC)),
    ]
    assert [time.astimezone(UTC) for time in times] == [
        datetime(2026, 10, 26, 5, tzinfo=UTC),
        datetime(2026, 11, 2, 5, tzinfo=UTC),
    ]


@pytest.mark.parametrize(
    ("at", "week"),
    [
        (MONDAY, WEEK),
        (MONDAY + timedelta(days=6, hours=17), WEEK),
        (MONDAY + timedelta(days=6, hours=18), WEEK + timedelta(days=7)),
    ],
)
def test_week_is_the_one_that_has_begun_on_the_schools_clock(readers, at, week):
    assert [args.week for args in plan(readers, at)] == [week]


def test_digest_goes_to_those_who_asked_for_it_and_have_something_this_week(readers):
    readers.published()
    readers.published(classes=("27Gb",), starts="2026-12-07", ends="2026-12-07")
    assert queue(readers) == {"ann": "digest", "fred": "digest"}


def test_digest_lists_the_week_by_day(session, readers):
    readers.published(title="Camp", starts="2026-11-27", ends="2026-11-30", location="Scuol")
    cancelled = readers.published(title="Fair", starts="2026-12-01", ends="2026-12-01")
    events.cancel(session, cancelled.id, now=NOW)
    readers.published(title="Test", starts="2026-12-06T23:00", ends="2026-12-06T23:30")
    readers.published()
    queue(readers)
    assert readers.mail("ann")["Subject"] == "Your week from Monday, 30 November 2026"
    assert readers.text("ann") == (
        "This is what your calendar shows from Monday, 30 November 2026"
        " to Sunday, 6 December 2026.\n\n"
        "Monday, 30 November 2026\n"
        "- Friday, 27 November 2026 – Monday, 30 November 2026  Camp, Scuol\n\n"
        "Tuesday, 1 December 2026\n- all day  Fair (cancelled)\n- 08:00–12:00  Trip\n\n"
        "Sunday, 6 December 2026\n- 23:00–23:30  Test\n\n"
        "The same as a calendar file is attached.\n"
    )


def test_digest_carries_just_these_events_as_a_file(readers):
    readers.published(title="Camp")
    readers.published(title="Later", starts="2026-12-08", ends="2026-12-08")
    queue(readers)
    (file,) = readers.mail("ann").iter_attachments()
    assert (file.get_filename(), file.get_content_type()) == ("2026-W49.ics", "text/calendar")
    calendar = icalendar.Calendar.from_ical(file.get_payload(decode=True))
    assert ([str(event["SUMMARY"]) for event in calendar.events], "METHOD" in calendar) == (
        ["Camp"],
        False,
    )


def test_digest_can_be_turned_off_by_one_click(readers):
    readers.published()
    queue(readers)
    assert readers.mail("ann")["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"


@pytest.mark.parametrize(
    ("starts", "ends", "shown"),
    [
        ("2026-11-29T20:00", "2026-11-30T00:00", False),
        ("2026-11-29T20:00", "2026-11-30T00:01", True),
        ("2026-11-30T00:00", "2026-11-30T00:00", True),
    ],
)
def test_event_that_ends_as_the_week_begins_is_not_in_it(readers, starts, ends, shown):
    readers.published(starts=starts, ends=ends)
    assert set(queue(readers)) == ({"ann", "fred"} if shown else set())


def test_calendars_that_show_an_event(session, readers):
    event = readers.published(starts="2026-12-01T08:00", ends="2026-12-01T12:00")
    session.execute(update(User).where(User.id == readers.ids["ann"]).values(untis_id="1"))
    session.add(Subscription(user_id=readers.ids["fred"], follows_me=False))
    session.flush()
    people = list(readers.ids.values())
    near = Window.around(NOW, ZONE, days_past=31, days_ahead=465)
    assert find_showing(session, near, event.id, people) == {readers.ids["ann"]}
    past = Window.around(NOW - timedelta(days=900), ZONE, days_past=31, days_ahead=465)
    assert find_showing(session, past, event.id, people) == set()


def test_second_digest_of_a_week_is_none(readers):
    readers.published()
    assert queue(readers) == {"ann": "digest", "fred": "digest"}
    assert queue(readers, at=MONDAY + timedelta(days=1)) == {}


def test_who_turns_it_off_meanwhile_gets_none(session, readers):
    readers.published()
    jobs = plan(readers)
    session.execute(update(User).where(User.id == readers.ids["ann"]).values(mail_digest=False))
    session.execute(delete(User).where(User.id == readers.ids["fred"]))
    assert [args.user_ids for args in jobs] == [
        tuple(readers.ids[name] for name in ("ann", "fred", "bob"))
    ]
    assert queue(readers, jobs=jobs) == {}


def test_readers_are_cut_into_chunks(session, readers):
    columns = {
        "first_name": "A",
        "last_name": "B",
        "role": "student",
        "created_at": NOW,
        "mail_digest": True,
    }
    session.add_all(User(email=f"s{number}@school.example", **columns) for number in range(400))
    session.flush()
    assert [len(args.user_ids) for args in plan(readers)] == [200, 200, 3]
