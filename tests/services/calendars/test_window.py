"""Which days a window has. What a calendar shows of them: test_audience.py."""

from datetime import UTC, date, datetime

from services.calendars.window import Window
from tests.conftest import ZONE


def test_window_is_the_schools_days() -> None:
    # Half past midnight on the 22nd in Zurich is still the 21st in UTC.
    window = Window.around(
        datetime(2026, 11, 21, 23, 30, tzinfo=UTC), ZONE, days_past=1, days_ahead=1
    )

    assert (window.first, window.last) == (date(2026, 11, 21), date(2026, 11, 23))
