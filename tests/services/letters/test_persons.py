"""What is kept about a person, found and removed on both databases."""

from nightshift.jobs import enqueue
from nightshift.jobs.models import Job, JobState
from sqlalchemy import select

from services.letters import persons
from services.letters.jobs import SendWelcome
from services.letters.models import EventNotice
from services.mail.models import Mail
from services.school.models import User
from tests.conftest import NOW


def test_all_that_names_a_person_is_found_and_removed(session, school):
    school.queue(school.published())
    ann, fred = school.ids["ann"], school.ids["fred"]
    waiting = [enqueue(session, SendWelcome(user_id=one), now=NOW) for one in (ann, fred)]
    [notice] = session.scalars(select(EventNotice).where(EventNotice.version > 0))
    assert {ann, fred} <= set(notice.readers)
    told = {"user_account", "mail", "job", "event_notice"}

    assert told <= persons.collect(session, ann).rows.keys()
    done = persons.forget(session, ann)

    assert done.addresses == {"ann@school.example"}
    assert done.removed.keys() >= told
    session.expire_all()
    assert session.get(User, ann) is None
    assert ann not in notice.readers
    assert fred in notice.readers
    readers = set(session.scalars(select(Mail.reader_id)))
    assert (ann in readers, fred in readers) == (False, True)
    left = session.execute(select(Job.id, Job.state).where(Job.id.in_(waiting))).all()
    assert [tuple(one) for one in left] == [(waiting[1], JobState.QUEUED)]
