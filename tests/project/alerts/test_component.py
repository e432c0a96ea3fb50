"""Alerts by the settings, and by a real worker."""

import pytest
from nightshift.jobs.models import Job
from pydantic import ValidationError
from sqlalchemy import select

from project.alerts import component
from project.alerts.settings import AlertSettings
from services.alerts.sending import AlertTerms
from tests.conftest import make_runtime


@pytest.mark.parametrize("to", ["ops@shop.example", "mailto:", "mailto:ops", "ftp://a", "https:"])
def test_address_that_is_none_is_refused(to):
    with pytest.raises(ValidationError, match="must be mailto:ADDRESS"):
        AlertSettings(_env_file=None, alerts_to=to)


@pytest.mark.parametrize(
    ("to", "address", "webhook"),
    [
        ("", "", ""),
        ("mailto:ops@shop.example", "ops@shop.example", ""),
        ("https://chat.example/hook", "", "https://chat.example/hook"),
    ],
)
def test_one_setting_says_where_alerts_go(to, address, webhook):
    terms = make_runtime(alerts_to=to)[AlertTerms]

    assert (terms.address, terms.webhook) == (address, webhook)


def test_without_the_setting_nothing_is_looked_at(tmp_path):
    # There is no such database: a look would fail.
    component.look(make_runtime(database_url=f"sqlite:///{tmp_path}/none.db"))


def test_look_enqueues_one_alert_for_what_fails(job_app):
    runtime = job_app.composition.runtime(
        _env_file=None,
        database_url=job_app.runtime.settings.database_url,
        alerts_to="mailto:ops@shop.example",
    )
    for _ in range(2):
        component.look(runtime)

    with runtime.read_only() as session:
        [args] = session.execute(select(Job.args).where(Job.kind == "alerts.send")).scalars()
    # No worker and no beat has ever run here.
    assert {"workers", "beat"} <= set(args["failing"])
    runtime.close()
