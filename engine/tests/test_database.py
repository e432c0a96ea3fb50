"""Instants, the database's clock, ids by their beginnings, enums, and how a database is opened."""

import re
import threading
import time
from datetime import UTC, datetime, timedelta, timezone
from enum import StrEnum
from types import SimpleNamespace
from uuid import UUID

import pytest
from job_rows import NOW, Plain, only_on_postgres, only_on_sqlite, put
from nightshift.database import (
    KEEPALIVES,
    STATEMENT_TIMEOUT,
    Base,
    Session,
    UtcDateTime,
    ago,
    batched,
    choice,
    committed_lazily,
    insert_or,
    lend,
    make_borrowing_engine,
    make_engine,
    plain,
    reader,
    resolve,
    seconds_between,
    upsert,
    utc_now,
)
from nightshift.errors import Conflict, InvalidInput, NotFound
from nightshift.jobs import enqueue_many
from nightshift.jobs.models import Job, JobState, PausedQueue
from proxies import Proxy
from servers import POSTGRES_URL, require
from sqlalchemy import (
    Column,
    Engine,
    Index,
    Integer,
    MetaData,
    Table,
    delete,
    insert,
    literal,
    make_url,
    select,
    text,
    update,
)
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError, StatementError


@pytest.fixture
def _postgres():
    require(POSTGRES_URL, "postgres")


class Colour(StrEnum):
    LIGHT_RED = "light-red"
    BLUE = "blue"


THINGS = Table(
    "thing",
    MetaData(naming_convention=Base.metadata.naming_convention),
    Column("id", Integer, primary_key=True),
    Column("at", UtcDateTime),
    Column("colour", choice(Colour)),
)


@pytest.fixture
def things(session: Session) -> Session:
    """Return a session with a table of its own, which goes with the test."""
    THINGS.create(session.connection())
    return session


@pytest.fixture
def opened(database_url: str):
    """Yield an engine of the test's own."""
    engine = make_engine(database_url)
    yield engine
    engine.dispose()


def add(session, **values):
    return session.execute(insert(THINGS).values(**values).returning(THINGS.c.id)).scalar_one()


# --- instants ---


@pytest.mark.parametrize(
    "instant",
    [
        datetime(2026, 11, 21, 12, tzinfo=UTC),
        datetime(2026, 7, 1, 3, 4, 5, 678901, tzinfo=timezone(timedelta(hours=-7))),
        datetime.min.replace(tzinfo=UTC),
        datetime.max.replace(tzinfo=UTC),
        None,
    ],
)
def test_instant_comes_back_as_it_was_in_utc(things, instant):
    row_id = add(things, at=instant)
    found = things.execute(select(THINGS.c.at).where(THINGS.c.id == row_id)).scalar_one()
    assert found == instant
    assert found is None or found.tzinfo is UTC


def test_naive_datetime_is_refused(things):
    with pytest.raises(StatementError, match="without a time zone"):
        add(things, at=datetime(2026, 11, 21, 12))  # noqa: DTZ001 - what is refused


def test_order_of_instants_is_that_of_time(things):
    instants = [
        datetime(2026, 1, 1, tzinfo=UTC) + timedelta(microseconds=n) for n in (5, 0, 10**6, 10, 1)
    ]
    for instant in instants:
        add(things, at=instant)
    assert things.execute(select(THINGS.c.at).order_by(THINGS.c.at)).scalars().all() == sorted(
        instants
    )


def test_instant_of_another_zone_is_compared_by_its_time(things):
    add(things, at=NOW)
    elsewhere = NOW.astimezone(timezone(timedelta(hours=9)))
    assert things.execute(select(THINGS.c.at).where(THINGS.c.at == elsewhere)).scalar_one() == NOW


# --- the clock ---


def test_clock_of_the_database_is_in_utc(session):
    # A transaction's time is that of its begin, in this process or before.
    before = datetime.now(UTC) - timedelta(minutes=10)
    now = session.execute(select(utc_now())).scalar_one()
    assert (before < now < datetime.now(UTC) + timedelta(seconds=1), now.tzinfo) == (True, UTC)


@pytest.mark.parametrize("span", [timedelta(seconds=1.5), timedelta(days=400), timedelta()])
def test_so_long_ago_is_by_the_clock_of_the_database(session, span):
    now, earlier = session.execute(select(utc_now(), ago(span))).one()
    assert abs(now - earlier - span) < timedelta(seconds=1)


def test_clock_goes_on_within_a_transaction(session):
    first = session.execute(select(utc_now())).scalar_one()
    time.sleep(0.05)
    assert session.execute(select(utc_now())).scalar_one() > first


def test_clock_is_written_and_compared_as_instants_are(things):
    row_id = add(things, at=utc_now())
    is_past = THINGS.c.at <= utc_now()
    assert things.execute(select(THINGS.c.id).where(is_past)).scalars().all() == [row_id]
    is_old = THINGS.c.at < ago(timedelta(minutes=1))
    assert things.execute(select(THINGS.c.id).where(is_old)).scalars().all() == []


@pytest.mark.parametrize(
    "span", [timedelta(milliseconds=1), timedelta(days=400), -timedelta(hours=2)]
)
def test_seconds_between_two_instants(things, span):
    add(things, at=NOW)
    (seconds,) = things.execute(
        select(seconds_between(THINGS.c.at, literal(NOW + span, UtcDateTime)))
    ).one()
    assert seconds == pytest.approx(span.total_seconds(), abs=0.001)


def test_seconds_since_an_instant_of_the_clock(session):
    (seconds,) = session.execute(
        select(seconds_between(ago(timedelta(minutes=1)), utc_now()))
    ).one()
    assert seconds == pytest.approx(60, abs=0.01)


def test_lazy_commit_is_asked_for_beside_other_columns(session):
    assert session.execute(select(text("1"), committed_lazily())).one()[0] == 1


# --- ids by their beginnings ---


def test_resolve_takes_a_unique_beginning(session):
    # More than there are first digits.
    ids = enqueue_many(session, [Plain() for _ in range(40)], now=NOW)
    assert resolve(session, Job, str(ids[0])) == ids[0]
    assert resolve(session, Job, ids[0].hex[:20]) == ids[0]
    digit = next(
        digit
        for digit in "0123456789abcdef"
        if sum(job_id.hex.startswith(digit) for job_id in ids) > 1
    )
    with pytest.raises(Conflict, match="several"):
        resolve(session, Job, digit)
    for unknown in ("", "xyz", "0" * 31, "1" * 40):
        with pytest.raises(NotFound if unknown == "0" * 31 else InvalidInput):
            resolve(session, Job, unknown)


def test_resolve_takes_capitals_and_dashes(session):
    job_id = put(session)
    assert resolve(session, Job, str(job_id).upper()[:14]) == job_id


def test_resolve_finds_ids_at_both_ends_of_their_range(session):
    first, last = put(session), put(session)
    for job_id, other in ((first, UUID(int=0)), (last, UUID(int=2**128 - 1))):
        session.execute(update(Job).where(Job.id == job_id).values(id=other))
    assert resolve(session, Job, "0000") == UUID(int=0)
    assert resolve(session, Job, "f" * 32) == UUID(int=2**128 - 1)


def test_resolve_asks_for_enough_digits(session):
    job_id = put(session)
    with pytest.raises(InvalidInput, match="at least 8"):
        resolve(session, Job, job_id.hex[:7], digits=8)
    assert resolve(session, Job, job_id.hex[:8], digits=8) == job_id


# --- enums ---


def test_choice_is_stored_as_its_value(things):
    add(things, colour=Colour.LIGHT_RED)
    assert things.execute(text("select colour from thing")).scalar_one() == "light-red"
    assert things.execute(select(THINGS.c.colour)).scalar_one() is Colour.LIGHT_RED


def test_value_that_is_no_choice_is_refused_by_the_database(things):
    with pytest.raises(IntegrityError):
        things.execute(text("insert into thing (colour) values ('green')"))


def test_plain_choice_is_its_text(session):
    put(session)
    (found,) = reader(session)(select(plain(Job.state)))
    assert (found.state, type(found.state)) == (JobState.QUEUED, str)


# --- insert or ---


def test_insert_may_do_nothing_or_update(session):
    for paused_at in (NOW, NOW + timedelta(hours=1)):
        row = {"queue": "side", "paused_at": paused_at}
        session.execute(insert_or(session, PausedQueue).values(row).on_conflict_do_nothing())
    assert session.execute(select(PausedQueue.paused_at)).scalar_one() == NOW
    changed = {"paused_at": paused_at}
    session.execute(
        insert_or(session, PausedQueue)
        .values(row)
        .on_conflict_do_update(index_elements=[PausedQueue.queue], set_=changed)
    )
    assert session.execute(select(PausedQueue.paused_at)).scalar_one() == paused_at


def test_upsert_inserts_and_overwrites_rows(session):
    mail, side = ({"queue": queue, "paused_at": NOW} for queue in ("mail", "side"))
    upsert(session, PausedQueue, [mail])

    upsert(session, PausedQueue, [mail | {"paused_at": NOW + timedelta(days=1)}, side])

    rows = session.execute(
        select(PausedQueue.queue, PausedQueue.paused_at).order_by(PausedQueue.queue)
    )
    assert rows.all() == [("mail", NOW + timedelta(days=1)), ("side", NOW)]


@pytest.mark.parametrize(
    ("number", "tuples"), [(0, []), (2, [(0, 1)]), (5, [(0, 1), (2, 3), (4,)])]
)
def test_batches_hold_all_items_in_order(number, tuples):
    assert list(batched(range(number), 2)) == tuples


# --- names ---


def test_every_constraint_has_a_name(things):
    names = {constraint.name for constraint in THINGS.constraints}
    assert names == {"pk_thing", "ck_thing_colour"}
    assert Index(None, THINGS.c.at).name == "ix_thing_at"


# --- how a database is opened ---


def test_engine_opens_nothing_yet(tmp_path):
    make_engine("postgresql+psycopg://nobody@127.0.0.1:1/none")
    make_engine(f"sqlite:///{tmp_path}/test.db")
    assert list(tmp_path.iterdir()) == []


def test_folder_of_sqlite_is_created(tmp_path):
    engine = make_engine(f"sqlite:///{tmp_path}/new/folder/test.db")
    with engine.connect() as connection:
        assert connection.execute(text("select 1")).scalar_one() == 1
    engine.dispose()
    assert (tmp_path / "new" / "folder" / "test.db").exists()


def test_exceptions_hide_the_parameters(opened):
    with opened.connect() as connection, pytest.raises(DBAPIError) as refused:
        connection.execute(text("select :secret from nowhere"), {"secret": "hunter2"})
    assert "hunter2" not in str(refused.value)


@only_on_sqlite
def test_sqlite_is_opened_for_one_writer_and_many_readers(opened):
    with opened.connect() as connection:
        pragmas = [
            connection.execute(text(f"PRAGMA {name}")).scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        ]
    assert pragmas == ["wal", 1, 1, 20_000]


@only_on_sqlite
def test_writer_of_sqlite_waits_for_its_turn_before_it_reads(opened: Engine):
    writing = opened.execution_options(sqlite_begin="IMMEDIATE")
    began = threading.Event()

    def second():
        with writing.begin():
            began.set()

    thread = threading.Thread(target=second)
    with writing.begin():
        thread.start()
        assert not began.wait(0.3)
        with opened.connect() as reading:
            assert reading.execute(text("select count(*) from job")).scalar_one() == 0
    assert began.wait(100)
    thread.join(100)


@only_on_sqlite
def test_text_that_is_not_utf_8_does_not_make_a_table_unreadable(things):
    things.execute(text("create table odd (name text)"))
    things.execute(text("insert into odd values (cast(x'41ff42' as text))"))
    assert (
        things.execute(text("select name from odd")).scalar_one() == "A\N{REPLACEMENT CHARACTER}B"
    )


@only_on_postgres
def test_postgres_is_opened_in_utc_and_with_a_statement_timeout(opened):
    with opened.connect() as connection:
        settings = [
            connection.execute(text(f"show {name}")).scalar_one()
            for name in ("statement_timeout", "timezone", "client_encoding", "application_name")
        ]
    assert settings == [f"{STATEMENT_TIMEOUT}s", "UTC", "UTF8", "nightshift"]


@only_on_postgres
def test_connection_that_was_cut_while_it_was_idle_is_replaced(opened, engine):
    with opened.connect() as connection:
        pid = connection.execute(text("select pg_backend_pid()")).scalar_one()
    with engine.begin() as other:
        other.execute(text("select pg_terminate_backend(:pid)"), {"pid": pid})
    time.sleep(1.1)
    with opened.connect() as connection:
        assert connection.execute(text("select pg_backend_pid()")).scalar_one() != pid


def test_password_is_used_where_the_url_has_none():
    assert make_engine("postgresql+psycopg://u@h/d", password="p").url.password == "p"
    assert make_engine("postgresql+psycopg://u:own@h/d", password="p").url.password == "own"
    assert make_engine("postgresql+psycopg://u@h/d", password="").url.password is None


def test_database_that_is_away_is_noticed():
    away = make_url(POSTGRES_URL).set(port=1).render_as_string(hide_password=False)
    engine = make_engine(away)
    with pytest.raises(OperationalError, match=re.compile("refused", re.IGNORECASE)):
        engine.connect()
    engine.dispose()


@only_on_postgres
def test_other_options_are_passed_on(database_url):
    engine = make_engine(database_url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(insert(PausedQueue).values(queue="side", paused_at=NOW))
        connection.rollback()
        removed = connection.execute(delete(PausedQueue))
    engine.dispose()
    assert removed.rowcount == 1


@pytest.mark.usefixtures("_postgres")
def test_silent_database_is_given_up():
    with Proxy(POSTGRES_URL) as proxy:
        engine = make_engine(proxy.url, silence=0.5)
        with engine.connect() as connection:
            connection.execute(text("select 1"))
            proxy.silent = True
            with pytest.raises(OperationalError, match=r"the database gave no answer for 0\.5 s"):
                connection.execute(text("select 2"))
        proxy.silent = False
        with engine.connect() as connection:
            assert connection.execute(text("select 3")).scalar_one() == 3
        engine.dispose()


@pytest.mark.usefixtures("_postgres")
def test_database_that_works_on_many_rows_is_not_silent(monkeypatch):
    monkeypatch.setattr("nightshift.database.MOST_AT_ONCE", 3)
    engine = make_engine(POSTGRES_URL, silence=2)
    with engine.begin() as connection:
        connection.execute(text("create temporary table slow (number int)"))
        # Each takes a tenth of what would count as silence; all of them twice as much.
        insert = text("insert into slow select :number from pg_sleep(0.2)")
        written = connection.execute(insert, [{"number": number} for number in range(20)])
        assert written.rowcount == 20
        assert connection.execute(text("select count(*) from slow")).scalar_one() == 20
    engine.dispose()


@pytest.mark.usefixtures("_postgres")
def test_statement_may_take_as_long_as_the_server_lets_it():
    engine = make_engine(POSTGRES_URL)
    with engine.connect() as connection:
        driver = connection.connection.driver_connection
        assert driver.silence > STATEMENT_TIMEOUT
    engine.dispose()


@pytest.mark.usefixtures("_postgres")
def test_connection_notices_a_peer_that_is_gone():
    engine = make_engine(POSTGRES_URL)
    with engine.connect() as connection:
        given = connection.connection.driver_connection.info.get_parameters()
    engine.dispose()
    wanted = {name: str(value) for name, value in KEEPALIVES.items()}
    assert {name: given.get(name) for name in wanted} == wanted


@pytest.mark.usefixtures("_postgres")
def test_pooler_is_given_settings_for_each_transaction_and_nothing_to_keep():
    engine = make_engine(POSTGRES_URL, pooler=True)
    with engine.connect() as connection:
        shown = [
            connection.execute(text(f"show {name}")).scalar_one()
            for name in ("statement_timeout", "timezone")
        ]
        assert shown == [f"{STATEMENT_TIMEOUT}s", "UTC"]
        driver = connection.connection.driver_connection
        assert (driver.prepare_threshold, driver.info.get_parameters().get("options")) == (
            None,
            None,
        )
    engine.dispose()


CHANGES = [
    "set default_transaction_read_only = on",
    "select 1; SET SESSION search_path = nowhere",
    "/* app */ set search_path = nowhere",
    "select set_config('search_path', 'nowhere', false)",
    "create temp table mine (id int)",
    "listen channel",
    "select pg_advisory_lock(77)",
]


@pytest.mark.usefixtures("_postgres")
@pytest.mark.parametrize(
    ("url", "changes", "harmless"),
    [
        (POSTGRES_URL, CHANGES, ["set local statement_timeout = 1000", "select 1 as settings"]),
        (
            "sqlite:///{}/changed.db",
            ["create temp table mine (id int)", "pragma query_only = on"],
            ["select 1"],
        ),
    ],
)
def test_connection_that_a_lent_session_has_changed_for_good_is_not_used_again(
    url, changes, harmless, tmp_path
):
    engine = make_engine(url.format(tmp_path))
    notes = SimpleNamespace(ending=False, broken=False, check=lambda _: None)
    for statement in [*changes, *harmless]:
        with engine.connect() as connection:
            driver = lend(connection, notes)
            connection.execute(text(statement))
        with engine.connect() as connection:
            again = connection.connection.driver_connection
        assert (again is driver) == (statement in harmless), statement
    engine.dispose()


# --- a connection of another library ---


@only_on_postgres
def test_only_the_lender_ends_the_transaction_of_a_borrowed_connection(engine):
    with engine.connect() as lender:
        lent = lender.connection.driver_connection
        with Session(make_borrowing_engine(lambda: lent)) as session:
            job_id = put(session)
            session.commit()
        with engine.connect() as other:
            assert other.scalar(select(Job.id).where(Job.id == job_id)) is None
        assert not lent.closed
        lent.rollback()
        assert lender.scalar(select(Job.id).where(Job.id == job_id)) is None


@only_on_postgres
def test_rollback_and_close_leave_what_the_lender_wrote(engine):
    with engine.connect() as lender:
        lent = lender.connection.driver_connection
        lender.execute(insert(PausedQueue).values(queue="lent", paused_at=NOW))
        with Session(make_borrowing_engine(lambda: lent)) as session:
            session.execute(select(1))
            session.rollback()
        assert lender.scalar(select(PausedQueue.queue)) == "lent"
        lender.rollback()
