"""What the log says of a job, for people and for machines."""

import json
import logging

import probe_app as probe
import pytest
from nightshift.celery import logs
from nightshift.jobs import claims
from nightshift.testing import run_due
from probing import put

NOISY = ("celery.worker.strategy", "celery.beat", "kombu", "amqp")
logger = logging.getLogger("nightshift.test")


@pytest.fixture
def log(capsys):
    """Return what sets the log up, and what returns the lines since then."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in NOISY}

    class Log:
        def start(self, log_format="console", level="INFO"):
            logs.setup(log_format, level)

        def lines(self):
            return capsys.readouterr().err.splitlines()

    yield Log()
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def test_line_outside_of_a_job_has_no_job(log):
    log.start()
    logger.info("hello")
    [line] = log.lines()
    assert line.endswith(" hello")


def test_every_line_of_a_job_has_its_task_and_id(log):
    log.start()
    with logs.job_context("probe.leave", "1234"):
        logger.info("hello")
        logging.getLogger("a.library").warning("careful")
    endings = [" hello task=probe.leave job=1234", " careful task=probe.leave job=1234"]
    assert [line.endswith(ending) for line, ending in zip(log.lines(), endings, strict=True)] == [
        True,
        True,
    ]


def test_line_that_is_seldom_is_logged_once_a_minute_with_how_many_there_were(log, monkeypatch):
    log.start()
    now = 1000.0
    monkeypatch.setattr(logs.time, "monotonic", lambda: now)
    for later in (0, 1, 59, 60, 61):
        now = 1000.0 + later
        logger.warning("%s is away", "it", extra=logs.SELDOM)
    logger.warning("%s is away", "another", extra=logs.SELDOM)
    logger.warning("it is away")
    endings = [line.partition("it is")[2] for line in log.lines() if "it is" in line]
    assert endings == [" away", " away (2 times more since then)", " away"]


def test_job_inside_of_another_gives_the_line_back(log):
    log.start()
    with logs.job_context("outer", "1"):
        with logs.job_context("inner", "2"):
            logger.info("a")
        logger.info("b")
    suffixes = [line.split(" a ")[-1].split(" b ")[-1] for line in log.lines()]
    assert suffixes == ["task=inner job=2", "task=outer job=1"]


def test_line_for_machines_is_one_object(log):
    log.start("json")
    with logs.job_context("probe.leave", "1234"):
        logger.warning("hello %s", "you")
    [line] = [json.loads(line) for line in log.lines()]
    assert {**line, "time": "", "process": 0} == {
        "time": "",
        "level": "WARNING",
        "logger": "nightshift.test",
        "process": 0,
        "message": "hello you",
        "task": "probe.leave",
        "job": "1234",
    }


def test_line_for_machines_outside_of_a_job_has_no_job(log):
    log.start("json")
    logger.info("hello")
    [line] = [json.loads(line) for line in log.lines()]
    assert sorted(line) == ["level", "logger", "message", "process", "time"]


def test_level_is_the_lowest_that_is_logged(log):
    log.start(level="WARNING")
    logger.info("not said")
    logger.warning("said")
    assert [line.split()[-1] for line in log.lines()] == ["said"]


def run(app, args, log):
    """Run a job; return the lines about it, without time, process and duration, and its id."""
    job_id = put(app.runtime, args)
    log.start("json")
    run_due(app)
    lines = [json.loads(line) for line in log.lines()]
    return [
        (line["level"], line["message"].split(" after ")[0], line["task"])
        for line in lines
        if line.get("job") == str(job_id)
    ]


@pytest.mark.parametrize(
    ("args", "started", "ended"),
    [
        (
            probe.Leave(),
            ("INFO", "job started, attempt 1 of 30"),
            ("INFO", "job succeeded"),
        ),
        (
            probe.Answer(what="discard"),
            ("INFO", "job started, attempt 1 of 5"),
            ("INFO", "job discarded"),
        ),
        (
            probe.Answer(what="cancel"),
            ("INFO", "job started, attempt 1 of 5"),
            ("INFO", "job cancelled"),
        ),
        (
            probe.Fail(permanent=True),
            ("INFO", "job started, attempt 1 of 3"),
            ("ERROR", "job attempt failed"),
        ),
        (
            probe.Fail(),
            ("INFO", "job started, attempt 1 of 3"),
            ("ERROR", "job attempt failed"),
        ),
    ],
    ids=["succeeded", "discarded", "cancelled", "failed", "retried"],
)
def test_outcome_is_one_line(job_app, log, args, started, ended):
    kind = args.policy.kind
    assert run(job_app, args, log) == [(*started, kind), (*ended, kind)]


def test_failure_says_what_becomes_of_the_job(job_app, log):
    put(job_app.runtime, probe.Fail())
    log.start("json")
    run_due(job_app)
    messages = [json.loads(line)["message"] for line in log.lines()]
    assert messages[-1].endswith(" s: scheduled")


def test_failure_has_its_traceback(job_app, log):
    put(job_app.runtime, probe.Fail(permanent=True))
    log.start("json")
    run_due(job_app)
    lines = [json.loads(line) for line in log.lines()]
    tracebacks = [line["exc_info"] for line in lines if "exc_info" in line]
    assert [one.splitlines()[-1] for one in tracebacks] == [
        "nightshift.errors.PermanentError: as asked"
    ]


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_long_lines_are_cut_as_in_the_ledger(log, log_format):
    log.start(log_format)
    try:
        getattr(log, "x" * 1_000_000)
    except AttributeError:
        logging.getLogger("any").exception("y" * 1_000_000)
    said = "\n".join(log.lines())
    assert all(letter * 1_000 in said for letter in "xy")
    assert len(said) < 3 * claims.LONGEST_TRACEBACK


@pytest.mark.parametrize(("name", "said"), [("probe.leave", []), ("probe.plain", ["done"])])
def test_celery_says_nothing_more_of_jobs_and_all_of_plain_tasks(job_app, log, name, said):
    log.start()
    trace = logging.getLogger("celery.app.trace")
    trace.info("done", extra={"data": {"name": name}})
    assert [line.split()[-1] for line in log.lines()] == said


def test_lines_do_not_show_the_arguments(job_app, log, tmp_path):
    put(job_app.runtime, probe.Sleep(seconds=0, marker=str(tmp_path / "secret")))
    log.start()
    run_due(job_app)
    assert "secret" not in "\n".join(log.lines())


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_wrong_call_of_the_log_raises_nothing(log, log_format, monkeypatch):
    monkeypatch.setattr(logging, "raiseExceptions", False)
    log.start(log_format)
    logger.info("%d items", "three")
