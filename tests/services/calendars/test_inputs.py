"""The digest by which a sync knows that nothing has changed."""

from dataclasses import replace

import pytest

from services.calendars.inputs import digest
from services.school.models import SchoolClass
from tests.services.calendars.builders import WINDOW


@pytest.fixture
def postgres(session, school):
    """Return a session with the small school, where the database has a digest."""
    if session.get_bind().dialect.name == "sqlite":
        assert digest(session, WINDOW, "rules") is None
        pytest.skip("SQLite has no digest")
    return session


def test_digest_stays_while_nothing_changes(postgres):
    assert digest(postgres, WINDOW, "rules") == digest(postgres, WINDOW, "rules")


def test_digest_follows_the_rows(postgres):
    before = digest(postgres, WINDOW, "rules")
    postgres.add(SchoolClass(name="28Wb"))
    postgres.flush()

    assert digest(postgres, WINDOW, "rules") != before


def test_digest_follows_the_rules_and_the_window(postgres):
    before = digest(postgres, WINDOW, "rules")

    assert digest(postgres, WINDOW, "other rules") != before
    assert digest(postgres, replace(WINDOW, last=WINDOW.first), "rules") != before
