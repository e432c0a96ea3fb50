"""What a session carries for the ledger."""

from contextlib import nullcontext, suppress

import pytest
from job_rows import Plain, count, only_on_postgres, put
from nightshift.database import Session
from nightshift.jobs.models import Job
from nightshift.jobs.session import (
    BrokenTransaction,
    Carried,
    carry,
    get_carried,
    single_statement,
)
from psycopg import sql
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError


def test_session_carries_nothing_at_first():
    assert Carried() == Carried(enqueued=[], follow_ups={}, autocommit=None)
    assert Carried().trace() is None


def test_session_keeps_what_it_carries(session):
    notes = get_carried(session)
    job_id = put(session, Plain())
    assert get_carried(session) is notes
    assert notes.enqueued == [job_id]


def test_session_carries_what_it_is_given(session):
    notes = Carried(trace=lambda: {"traceparent": "00-1-2-01"})
    carry(session, notes)
    assert get_carried(session) is notes


def test_two_sessions_share_nothing(runtime):
    with runtime.unit_of_work() as session:
        put(session)
    with runtime.unit_of_work() as session:
        assert get_carried(session).enqueued == []


def test_single_statement_commits_by_itself(runtime):
    with runtime.unit_of_work() as session:
        with single_statement(session) as connection:
            connection.execute(text("insert into paused_queue values ('side', '2026-01-01')"))
        assert not session.in_transaction()
        with runtime.read_only() as other:
            assert other.execute(text("select queue from paused_queue")).scalar_one() == "side"


def refuse(runtime, *, after):
    with runtime.unit_of_work() as session:
        if after == "work":
            put(session)
        else:
            get_carried(session).autocommit = None
        with single_statement(session) as connection:
            connection.execute(text("insert into paused_queue values ('side', '2026-01-01')"))
        raise ConnectionError


@pytest.mark.parametrize("after", ["work", "session without an engine"])
def test_single_statement_is_part_of_an_open_transaction(runtime, after):
    with pytest.raises(ConnectionError):
        refuse(runtime, after=after)
    with runtime.read_only() as session:
        assert session.execute(text("select count(*) from paused_queue")).scalar_one() == 0
        assert count(session, Job.id.is_not(None)) == 0


# --- a session that is lent ---


def commit_at_the_root(session):
    session.get_transaction().commit()


def commit_within_a_savepoint(session):
    with session.begin_nested():
        session.commit()


def roll_back_at_the_root(session):
    session.get_transaction().rollback()


MISUSES = [
    Session.commit,
    commit_at_the_root,
    commit_within_a_savepoint,
    Session.rollback,
    roll_back_at_the_root,
    Session.close,
    Session.reset,
    Session.invalidate,
    lambda session: session.connection().commit(),
    lambda session: session.connection().rollback(),
    lambda session: session.execute(text("COMMIT")),
    lambda session: session.execute(text(" end")),
    lambda session: session.execute(text("select 1; End")),
    lambda session: session.execute(text("/* all\ndone */ -- now\nCOMMIT")),
    lambda session: session.execute(text("select 1; rollback")),
    lambda session: session.execute(text("Rollback")),
    lambda session: session.connection().connection.commit(),
    lambda session: session.connection().connection.rollback(),
    lambda session: session.connection().connection.driver_connection.commit(),
]


def misuse(runtime, how):
    with runtime.unit_of_work() as session:
        put(session)
        how(session)
        put(session)


@pytest.mark.parametrize("how", MISUSES)
def test_only_the_owner_ends_a_sessions_transaction(runtime, how):
    with pytest.raises(BrokenTransaction, match="must not commit, roll back or close"):
        misuse(runtime, how)
    with runtime.read_only() as session:
        assert count(session, Job.id.is_not(None)) == 0


def test_refused_commit_that_is_caught_keeps_nothing_either(runtime):
    def catching(session):
        with suppress(BrokenTransaction):
            session.commit()

    with pytest.raises(BrokenTransaction):
        misuse(runtime, catching)
    with runtime.read_only() as session:
        assert count(session, Job.id.is_not(None)) == 0


def test_connection_of_a_lent_session_may_be_used_by_others_afterwards(runtime):
    with pytest.raises(BrokenTransaction):
        misuse(runtime, Session.commit)
    with runtime.engine.begin() as connection:
        connection.execute(text("insert into paused_queue values ('side', '2026-01-01')"))
    with runtime.engine.connect() as connection:
        connection.execute(text("select 1"))
        connection.rollback()
    with runtime.read_only() as session:
        assert session.execute(text("select count(*) from paused_queue")).scalar_one() == 1


def test_savepoints_may_be_committed_and_rolled_back(runtime):
    with runtime.unit_of_work() as session:
        with session.begin_nested():
            put(session)
        undone = session.begin_nested()
        put(session)
        undone.rollback()
    with runtime.read_only() as session:
        assert count(session, Job.id.is_not(None)) == 1


@pytest.mark.parametrize(
    "statement", ["commit", "rollback", "commit and chain", "/* now */ commit", "rollback; begin"]
)
def test_transaction_is_not_ended_by_sql_that_only_the_driver_sees(runtime, statement):
    def end(session):
        session.connection().connection.cursor().execute(statement)

    with pytest.raises(BrokenTransaction):
        misuse(runtime, end)
    with runtime.read_only() as session:
        assert count(session, Job.id.is_not(None)) == 0


@only_on_postgres
def test_transaction_is_not_ended_by_bytes_or_composed_sql(runtime):
    for statement in (b"commit", sql.SQL("commit and {}").format(sql.SQL("chain"))):
        with pytest.raises(BrokenTransaction):
            misuse(runtime, lambda session, it=statement: execute_raw(session, it))
    with runtime.read_only() as session:
        assert count(session, Job.id.is_not(None)) == 0


def test_transaction_is_not_ended_by_many_executions(runtime):
    def end(session):
        session.connection().connection.cursor().executemany("commit", [()])

    with pytest.raises(BrokenTransaction):
        misuse(runtime, end)
    with runtime.read_only() as session:
        assert count(session, Job.id.is_not(None)) == 0


def execute_raw(session, statement):
    session.connection().connection.cursor().execute(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "insert into paused_queue values ('x; commit it', '2026-01-01')",
        "select 'end; rollback soon' -- ; commit",
        'select 1 as "; commit"',
    ],
)
def test_words_that_are_not_executed_end_nothing(runtime, statement):
    with runtime.unit_of_work() as session:
        put(session)
        session.execute(text(statement.replace(":", "\\:")))
    with runtime.read_only() as session:
        assert count(session, Job.id.is_not(None)) == 1


@pytest.mark.parametrize("words", ["", "transaction"])
def test_savepoint_may_be_rolled_back_by_sql(runtime, words):
    with runtime.unit_of_work() as session:
        for statement in ("savepoint mine", f"rollback {words} to savepoint mine"):
            session.execute(text(statement))
        put(session)
    with runtime.read_only() as session:
        assert count(session, Job.id.is_not(None)) == 1


def test_transaction_whose_error_was_caught_does_not_seem_to_commit(runtime):
    """Postgres answers COMMIT with a rollback then, and no library says so."""
    undone = []
    on_postgres = runtime.engine.dialect.name == "postgresql"
    with (
        pytest.raises(DBAPIError, match="nothing is kept") if on_postgres else nullcontext(),
        runtime.unit_of_work() as session,
    ):
        get_carried(session).when_undone.append(lambda: undone.append(True))
        put(session)
        with suppress(DBAPIError):
            session.execute(text("select * from nowhere"))
    with runtime.read_only() as session:
        assert count(session, Job.id.is_not(None)) == (not on_postgres)
    assert undone == [True] * on_postgres


def test_lent_session_keeps_nothing_in_autocommit(runtime):
    def write(session):
        session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
        put(session)
        raise ConnectionError

    with pytest.raises((BrokenTransaction, ConnectionError)), runtime.unit_of_work() as session:
        write(session)
    with runtime.read_only() as session:
        assert count(session, Job.id.is_not(None)) == 0


def test_unit_of_work_may_begin_with_many_rows(runtime):
    rows = [{"queue": f"side-{number}", "at": "2026-01-01"} for number in range(2_000)]

    with runtime.unit_of_work() as session:
        session.execute(text("insert into paused_queue values (:queue, :at)"), rows)

    with runtime.read_only() as session:
        assert session.execute(text("select count(*) from paused_queue")).scalar_one() == len(rows)
