"""What `doctor` says about reminders."""

from datetime import timedelta

import pytest
from health import findings

from services.reminders import reminders


@pytest.mark.parametrize(("late", "status"), [(timedelta(), "ok"), (timedelta(days=1), "warn")])
def test_doctor_warns_of_overdue_reminders(healthy, late, status):
    now = healthy.runtime.now()
    with healthy.runtime.unit_of_work() as session:
        reminders.add(session, "anna@shop.example", "Order paper", due_at=now - late, now=now)

    assert findings(healthy)["reminders"].status == status
