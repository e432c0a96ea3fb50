"""docs/alerts.yml: what each rule needs is there, and when each fires, by Prometheus's own tool."""

import re
import shutil
import subprocess

import pytest
from nightshift.observe.metrics import render_metrics
from ruamel.yaml import YAML

from tests.conftest import ROOT, metric

RULES = ROOT / "docs" / "alerts.yml"
GROUPS = YAML(typ="safe").load(RULES.read_text(encoding="utf-8"))["groups"]
ALERTS = {rule["alert"]: rule for group in GROUPS for rule in group["rules"]}
PREFIX = metric("")

# By alert: a series, its values by the minute, and from which minute on the alert fires.
CASES = {
    "ScrapeFails": ('up{job="JOB"}', "1x2 0x10", 5),
    "JobsAreLate": ('oldest_due_job_seconds{queue="mail"}', "0x3 301x10", 6),
    "NoWorker": ('workers{queue="mail"}', "1x3 0x10", 6),
    "ProbeFails": ('probe{probe="beat"}', "0 1 2x10", 7),
    "MailServerIsAway": ('mail_server_failing_seconds{server="a"}', "0+60x20", 11),
    "JobsFail": ('jobs{kind="a",queue="b",state="failed"}', "0x4 1x10", 5),
    "RecurringJobHasNotSucceeded": (
        'last_success_timestamp_seconds{kind="calendars.sync"}',
        "0x900",
        781,
    ),
    "FeedsFail": ('failed_feeds{kind="user"}', "0x2 1x60", 33),
}


@pytest.fixture
def promtool():
    """Return Prometheus's tool, of the package `prometheus` of Debian."""
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("NO PROMTOOL: the rules of docs/alerts.yml are not checked")
    return found


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_case():
    assert set(ALERTS) <= set(CASES)


@pytest.mark.parametrize("name", ALERTS)
def test_metrics_of_an_alert_exist(job_app, name):
    named = set(re.findall(rf"{PREFIX}\w+", ALERTS[name]["expr"]))
    there = set(
        re.findall(r"^# TYPE (\w+)", render_metrics(job_app.runtime).decode(), re.MULTILINE)
    )

    assert named <= there
    assert named or name == "ScrapeFails"


def test_rules_are_well_formed(promtool):
    run(promtool, "check", "rules", str(RULES))


@pytest.mark.parametrize("name", ALERTS)
def test_alert_fires_when_it_should(promtool, tmp_path, name):
    series, values, at = CASES[name]
    job = PREFIX.strip("_")
    series = series.replace("JOB", job) if series.startswith("up") else f"{PREFIX}{series}"

    def case(minute, alerts):
        return {"eval_time": f"{minute}m", "alertname": name, "exp_alerts": alerts}

    labels = dict(re.findall(r'(\w+)="([^"]*)"', series))
    test = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": series, "values": values}],
                "alert_rule_test": [case(at - 1, [])],
            }
        ],
    }
    path = tmp_path / "test.yml"
    yaml = YAML(typ="safe")
    yaml.dump(test, path)
    run(promtool, "test", "rules", str(path))
    test["tests"][0]["alert_rule_test"] = [case(at, [])]
    yaml.dump(test, path)
    # It expects none, and says what it got.
    done = subprocess.run(
        [promtool, "test", "rules", str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert all(f'{label}="{value}"' in done.stdout + done.stderr for label, value in labels.items())
