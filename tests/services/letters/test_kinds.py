"""The kinds of letters."""

from services.letters.kinds import LETTERS
from services.school.models import User


def test_kinds_name_flags_that_a_user_has():
    assert {kind.wanted_by for kind in LETTERS.values()} - {None} <= {
        column.key for column in User.__table__.columns
    }
