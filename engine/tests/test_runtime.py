"""The collaborators of one process: two runtimes share nothing."""

import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from nightshift.component import Component, Composition
from nightshift.jobs import enqueue_many
from nightshift.jobs.models import Job
from nightshift.ledger import ledger
from nightshift.runtime import SENT_BY_THE_CALLER, Runtime
from nightshift.settings import Settings
from probe_app import Effect, Leave, app
from sqlalchemy import delete, func, select
from sqlalchemy.exc import SQLAlchemyError

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


class Greeter:
    """Something that a component provides, and that has to be closed."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


class Stranger:
    """Something that no component provides."""


class RecordingPublisher:
    """Keeps what it is told to send, and how many of the jobs were committed by then."""

    def __init__(self) -> None:
        self.sent: list[list[UUID]] = []
        self.committed: list[int] = []
        self.closed = 0

    def send_soon(self, runtime: Runtime, ids: list[UUID]) -> None:
        self.sent.append(list(ids))
        with runtime.read_only() as session:
            found = select(func.count()).where(Job.id.in_(ids))
            self.committed.append(session.execute(found).scalar_one())

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def publisher():
    return RecordingPublisher()


@pytest.fixture
def runtime(database_url, publisher):
    made = app.composition.runtime(_env_file=None, database_url=database_url, publisher=publisher)
    yield made
    with made.unit_of_work() as session:
        session.execute(delete(Effect))
        session.execute(delete(Job))
    made.close()


def an_effect():
    return Effect(job_id="1", attempt=1, at=0.0)


def count(runtime, table):
    with runtime.read_only() as session:
        return session.execute(select(func.count()).select_from(table)).scalar_one()


def enqueue_some(runtime, number):
    with runtime.unit_of_work() as session:
        return enqueue_many(session, [Leave(number=n) for n in range(number)], now=NOW)


def test_two_runtimes_in_one_process_share_nothing(tmp_path):
    component = Component(
        name="greeter", provides={Greeter: lambda runtime: Greeter(runtime.settings.public_url)}
    )
    composition = Composition([ledger, component])
    one, other = (
        composition.runtime(
            _env_file=None,
            database_url=f"sqlite:///{tmp_path}/{name}.db",
            public_url=f"https://{name}.example",
        )
        for name in ("one", "other")
    )
    with one.unit_of_work() as session:
        Effect.metadata.create_all(session.connection(), tables=[Effect.__table__])
        session.add(an_effect())

    assert (one[Greeter].name, other[Greeter].name) == (
        "https://one.example",
        "https://other.example",
    )
    assert count(one, Effect) == 1
    with pytest.raises(SQLAlchemyError, match="no such table: effect"):
        count(other, Effect)
    one.close()
    assert (one[Greeter].closed, other[Greeter].closed) == (1, 0)
    other.close()


def test_what_is_provided_is_made_once_when_it_is_first_asked_for():
    made = []

    def make(_runtime):
        made.append(Greeter("one"))
        return made[-1]

    runtime = Runtime(Settings(_env_file=None), providers={Greeter: make})
    assert made == []

    assert runtime[Greeter] is runtime[Greeter]
    assert made == [runtime[Greeter]]


def test_provider_may_ask_the_runtime_for_others():
    runtime = Runtime(
        Settings(_env_file=None),
        providers={Greeter: lambda _: Greeter("one"), list: lambda one: [one[Greeter]]},
    )

    assert runtime[list] == [runtime[Greeter]]


def test_what_is_given_wins_over_a_provider():
    given = Greeter("given")

    runtime = Runtime(
        Settings(_env_file=None),
        given={Greeter: given},
        providers={Greeter: lambda _: Greeter("made")},
    )

    assert runtime[Greeter] is given


def test_type_that_no_component_provides_is_named():
    with pytest.raises(LookupError) as missing:
        Runtime(Settings(_env_file=None))[Stranger]

    assert str(missing.value) == (
        "no component provides Stranger: add it to `provides` in the component that owns it, and"
        " that component to the project's list"
    )


def test_unit_of_work_commits_at_its_end(runtime):
    with runtime.unit_of_work() as session:
        session.add(an_effect())

    assert count(runtime, Effect) == 1


def test_unit_of_work_rolls_back_on_an_exception(runtime):
    with pytest.raises(ZeroDivisionError), runtime.unit_of_work() as session:  # noqa: PT012
        session.add(an_effect())
        session.flush()
        raise ZeroDivisionError

    assert count(runtime, Effect) == 0


def test_jobs_are_handed_to_the_publisher_after_the_commit(runtime, publisher):
    ids = enqueue_some(runtime, 2)

    assert [sorted(sent) for sent in publisher.sent] == [sorted(ids)]
    assert publisher.committed == [2]


def test_jobs_that_were_rolled_back_are_not_sent(runtime, publisher):
    with pytest.raises(ZeroDivisionError), runtime.unit_of_work() as session:  # noqa: PT012
        enqueue_many(session, [Leave()], now=NOW)
        raise ZeroDivisionError

    assert publisher.sent == []
    assert count(runtime, Job) == 0


def test_unit_of_work_without_jobs_does_not_use_the_publisher(runtime, publisher):
    with runtime.unit_of_work() as session:
        session.add(an_effect())

    assert publisher.sent == []


def test_job_that_is_due_later_is_not_sent(runtime, publisher):
    with runtime.unit_of_work() as session:
        enqueue_many(session, [Leave()], now=NOW, run_at=NOW)

    assert publisher.sent == []


@pytest.mark.parametrize(("more", "batches"), [(0, 1), (1, 0)], ids=["at most", "one more"])
def test_many_jobs_are_left_to_the_relay(runtime, publisher, more, batches):
    enqueue_some(runtime, SENT_BY_THE_CALLER + more)

    assert SENT_BY_THE_CALLER == 200
    assert len(publisher.sent) == batches


def test_without_a_publisher_jobs_are_left_to_the_relay(database_url):
    runtime = app.composition.runtime(_env_file=None, database_url=database_url)
    enqueue_some(runtime, 1)
    assert count(runtime, Job) == 1

    with runtime.unit_of_work() as session:
        session.execute(delete(Job))
    runtime.close()


def test_read_only_keeps_nothing(runtime):
    with runtime.read_only() as session:
        session.add(an_effect())
        session.flush()

    assert count(runtime, Effect) == 0


def test_read_only_does_not_wait_for_a_writer(runtime):
    with runtime.unit_of_work() as session:
        session.add(an_effect())
        session.flush()
        assert count(runtime, Effect) == 0


def test_read_newest_reads_what_another_has_committed_since(runtime):
    effects = select(func.count()).select_from(Effect)
    seen = []
    for _ in range(2):
        with runtime.read_newest() as session:
            seen.append(session.execute(effects).scalar_one())
            with runtime.unit_of_work() as other:
                other.add(an_effect())
                other.flush()
                # A writer that is not ready is neither seen nor waited for.
                seen.append(session.execute(effects).scalar_one())

    assert seen == [0, 0, 1, 1]


def test_single_statement_commits_by_itself(runtime):
    with runtime.single_statement() as connection:
        connection.execute(Effect.__table__.insert().values(job_id="1", attempt=1, at=0.0))

    assert count(runtime, Effect) == 1


def test_trace_of_the_caller_is_kept_with_its_jobs(database_url):
    runtime = app.composition.runtime(
        _env_file=None, database_url=database_url, trace=lambda: {"traceparent": "00-1-2-03"}
    )
    enqueue_some(runtime, 1)

    with runtime.unit_of_work() as session:
        traces = session.execute(select(Job.trace)).scalars().all()
        session.execute(delete(Job))
    runtime.close()
    assert traces == [{"traceparent": "00-1-2-03"}]


@pytest.fixture
def pooled(tmp_path):
    """Yield a runtime and the driver's connection that its pool holds."""
    runtime = Composition([ledger]).runtime(
        _env_file=None, database_url=f"sqlite:///{tmp_path}/one.db"
    )
    with runtime.engine.connect() as connection:
        driver = connection.connection.dbapi_connection
    yield runtime, driver
    driver.close()
    runtime.close()


def next_connection(runtime):
    with runtime.engine.connect() as connection:
        return connection.connection.dbapi_connection


def test_child_drops_its_parents_connections_without_closing_them(pooled):
    runtime, parents = pooled
    assert next_connection(runtime) is parents

    runtime.disconnect(close=False)

    assert next_connection(runtime) is not parents
    assert parents.execute("select 1").fetchall() == [(1,)]


@pytest.mark.parametrize("method", ["disconnect", "close"])
def test_connections_are_closed_and_opened_again_at_the_next_use(pooled, method):
    runtime, before = pooled

    getattr(runtime, method)()

    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        before.execute("select 1")
    assert next_connection(runtime) is not before


def test_nothing_is_opened_for_a_runtime_that_is_not_used(tmp_path):
    runtime = app.composition.runtime(
        _env_file=None, database_url=f"sqlite:///{tmp_path}/{uuid4()}/one.db"
    )
    runtime.disconnect(close=False)
    runtime.close()

    assert list(Path(tmp_path).iterdir()) == []


def test_close_closes_what_was_made_and_the_publisher_and_not_what_was_given(publisher):
    given = Greeter("given")
    runtime = Runtime(
        Settings(_env_file=None),
        given={Stranger: given},
        providers={Greeter: lambda _: Greeter("made"), dict: lambda _: {}, list: lambda _: []},
        publisher=publisher,
    )
    made, _without_close = runtime[Greeter], runtime[dict]

    runtime.close()

    assert (made.closed, given.closed, publisher.closed) == (1, 0, 1)
