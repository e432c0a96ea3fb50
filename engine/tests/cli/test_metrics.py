"""`celery -A project metrics`."""

from pathlib import Path

from exposed import samples
from nightshift.cli.metrics import metrics
from nightshift.observe.metrics import render_metrics


def test_command_prints_the_same_as_the_page(job_app, run):
    said = samples(run(metrics).stdout)

    assert said == samples(render_metrics(job_app.runtime).decode())


def test_command_says_when_the_database_is_away(job_app, run):
    job_app.runtime.disconnect()
    Path(job_app.runtime.engine.url.database).unlink()

    ran = run(metrics, code=2)

    assert ran.stdout == ""
    assert ran.stderr.startswith("the database cannot be used: ")
    assert ran.stderr.count("\n") == 1
