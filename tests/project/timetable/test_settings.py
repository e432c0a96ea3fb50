"""The timetable's settings."""

import pytest
from pydantic import ValidationError

from project.timetable.settings import TimetableSettings


def test_sources_are_named_places():
    settings = TimetableSettings(
        _env_file=None, timetable_sources=" main=/srv/plan  music=https://school.example/plan.ics "
    )

    assert settings.places == {"main": "/srv/plan", "music": "https://school.example/plan.ics"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"timetable_sources": "/srv/plan"}, "'/srv/plan': write NAME=PLACE, as main=/srv/timeta"),
        ({"timetable_sources": "Main=/srv/plan"}, "a name has small letters"),
        ({"timetable_sources": "a=/srv/a a=/srv/b"}, "the name 'a' stands there twice; rename one"),
        ({"timetable_sources": "a=ftp://x/y"}, "a: ftp:// is not read; name a folder, a file"),
        ({"timetable_sources": "a=webuntis://server"}, "a: write webuntis://SERVER/SCHOOL"),
        (
            {"timetable_sources": "a=webuntis://server/school"},
            "TIMETABLE_USER: WebUntis needs it, and TIMETABLE_PASSWORD",
        ),
        ({"timetable_at": "at three"}, "cannot be due at 'at three'"),
    ],
)
def test_wrong_setting_is_named(values, message):
    with pytest.raises(ValidationError, match=message):
        TimetableSettings(_env_file=None, **values)
