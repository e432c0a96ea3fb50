"""docs/metrics.md describes the project with all its components."""

import re

from nightshift.observe.metrics import render_metrics

from tests.conftest import ROOT

TYPE = re.compile(r"^# TYPE (nightshift_\w+?)(?:_gcount|_gsum)? ", re.MULTILINE)
ROW = re.compile(r"^\| `(nightshift_\w+)`", re.MULTILINE)


def test_documentation_names_every_metric_and_no_other(job_app):
    there = set(TYPE.findall(render_metrics(job_app.runtime).decode()))

    named = set(ROW.findall((ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")))

    assert named == there
