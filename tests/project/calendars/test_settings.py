"""The calendars' settings."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from project.calendars.settings import CalendarSettings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"feed_days_ahead": 0}, "feed_days_ahead"),
        ({"feed_days_past": -1}, "feed_days_past"),
        ({"feed_store": Path(__file__)}, "is a file; name a folder"),
        ({"sync_every": "PT0S"}, "sync_every"),
    ],
)
def test_wrong_setting_is_named(values, message):
    with pytest.raises(ValidationError, match=message):
        CalendarSettings(_env_file=None, **values)
