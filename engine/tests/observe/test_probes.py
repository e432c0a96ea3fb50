"""The registry of probes that `doctor`, `/ready` and the metrics read."""

import json
from dataclasses import asdict

import pytest
from health import findings
from nightshift.celery.app import App
from nightshift.component import Component, Composition, Probe, Status
from nightshift.ledger import ledger
from nightshift.observe.probes import Finding, run_probes
from servers import free_port
from sqlalchemy import text


def answer(status):
    return lambda _runtime, _session: (status, "as it is")


def fail_with(message):
    def run(_runtime, _session):
        raise RuntimeError(message)

    return run


def write(_runtime, session):
    session.execute(text("delete from worker"))
    return Status.OK, "deleted"


def app_with(*probes, **values):
    component = Component(name="probes", probes=probes)
    return App("probe_app", Composition([ledger, component]), _env_file=None, **values)


@pytest.fixture
def nowhere(tmp_path):
    """Return settings of an installation without a database."""
    return {
        "database_url": f"sqlite:///{tmp_path}/none/nightshift.db",
        "broker_url": f"filesystem://{tmp_path}/broker",
    }


def run(app, *probes):
    return run_probes(app.runtime, probes, app.runtime.read_only)


def test_every_probe_of_the_engine_has_a_name_of_its_own_and_a_remedy():
    names = [(probe.name, probe.broker) for probe in ledger.probes]

    assert len(set(names)) == len(names)
    assert [probe.name for probe in ledger.probes if not probe.remedy] == []


@pytest.mark.parametrize(
    ("status", "remedy"),
    [(Status.OK, ""), (Status.SKIP, ""), (Status.WARN, "do this"), (Status.FAIL, "do this")],
)
def test_remedy_is_given_where_something_is_wrong(job_app, status, remedy):
    found = run(job_app, Probe("one", answer(status), "do this"))

    assert found == [Finding("one", status, "as it is", remedy)]


def test_exception_in_one_probe_is_its_failure_and_harms_no_other(job_app):
    one = Probe("one", fail_with("the disk is full\nand more"), "empty it")
    other = Probe("other", answer(Status.OK), "nothing")

    assert run(job_app, one, other) == [
        Finding("one", Status.FAIL, "RuntimeError: the disk is full", "empty it"),
        Finding("other", Status.OK, "as it is", ""),
    ]


def test_table_that_is_missing_fails_only_the_probe_that_reads_it(healthy):
    with healthy.runtime.unit_of_work() as session:
        session.execute(text("drop table paused_queue"))

    found = findings(healthy)

    assert found["paused queues"].status == "fail"
    assert "no such table: paused_queue" in found["paused queues"].detail
    assert found["workers"].status == "ok"


def test_probes_of_the_ledger_are_skipped_while_the_database_is_away(nowhere):
    probe = Probe("files", answer(Status.OK), "nothing", ledger=False)
    app = app_with(probe, **nowhere)

    found = findings(app)

    ledgers = [one.name for one in app.composition.probes if one.ledger]
    assert found["database"].status == "fail"
    assert {found[name].status for name in ledgers} == {"skip"}
    assert {found[name].detail for name in ledgers} == {"the database cannot be read"}
    assert (found["files"].status, found["broker"].status) == ("ok", "ok")


def test_database_that_is_not_there_is_not_made(nowhere, tmp_path):
    findings(app_with(**nowhere))

    assert [path.name for path in tmp_path.iterdir()] == ["broker"]


def test_database_that_fails_in_the_web_server_skips_the_others_too(nowhere):
    app = app_with(**nowhere | {"database_url": f"sqlite:///{nowhere['database_url'][10:-14]}"})
    probes = (Probe("database", fail_with("away"), "start it", ledger=False),)

    found = run(app, *probes, Probe("sync", answer(Status.OK), "nothing"))

    assert [one.status for one in found] == ["fail", "skip"]
    app.runtime.close()


def test_probes_of_another_broker_are_left_out(healthy):
    names = [one.probe for one in findings(healthy).values()]

    assert "broker" in names
    assert "visibility timeout" not in names


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_every_redis_has_the_probes_of_redis(scheme, nowhere):
    probe = Probe("mine", answer(Status.OK), "nothing", broker="redis", ledger=False)
    url = f"{scheme}://127.0.0.1:{free_port()}/0"

    found = findings(app_with(probe, **nowhere | {"broker_url": url}))

    assert found["mine"].status == "ok"


def test_probe_cannot_write(database_url):
    app = app_with(
        Probe("vandal", write, "nothing"),
        database_url=database_url,
    )

    found = findings(app)["vandal"]

    assert found.status == "fail"
    assert "read-only" in found.detail or "readonly" in found.detail


@pytest.mark.parametrize(
    ("user", "secrets"),
    [
        ("user:p%40ss-word", ["p@ss-word", "p%40ss-word"]),
        ("user", ["postgres-secret"]),
    ],
    ids=["password in the URL", "POSTGRES_PASSWORD"],
)
def test_no_secret_is_shown(user, secrets):
    port = free_port()
    secrets = [*secrets, "br0ker-secret", "flower-secret", "token-secret"]
    talkative = fail_with(" ".join([*secrets, "other"]))
    app = app_with(
        Probe("talkative", talkative, "nothing", ledger=False),
        environment="production",
        database_url=f"postgresql+psycopg://{user}@127.0.0.1:{port}/p@ss-word",
        postgres_password="postgres-secret",
        broker_url=f"redis://:br0ker-secret@127.0.0.1:{port}/0",
        flower_basic_auth="admin:flower-secret",
        metrics_token="token-secret",
    )

    found = findings(app)

    assert (found["database"].status, found["broker"].status) == ("fail", "fail")
    assert "other" in found["talkative"].detail
    said = json.dumps([asdict(one) for one in found.values()])
    assert [secret for secret in secrets if secret in said] == []


def test_unused_password_of_the_database_is_not_masked(nowhere):
    # The placeholder, or a word like "admin", would spoil what is said.
    app = app_with(Probe("talkative", fail_with("change-me"), "nothing", ledger=False), **nowhere)

    assert findings(app)["talkative"].detail == "RuntimeError: change-me"
