"""The engine's own probes of the database, the ledger and the machine."""

import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy import func, select, text

from nightshift.component import Answer, Composition, Probe, Status
from nightshift.database import Session, read_clock
from nightshift.jobs import schedule, statistics
from nightshift.observe.probes import is_contained
from nightshift.runtime import Runtime

OLDEST_POSTGRES = (14, 0)
INITS = {
    "docker-init", "tini", "dumb-init", "catatonit", "podman-init",
    "s6-svscan", "systemd", "init", "launchd",
}  # fmt: skip
SKEW_NOTICED, SKEW_HARMFUL = 2.0, 30.0
STUCK_AFTER = timedelta(minutes=1)
BEAT_LATE = timedelta(minutes=2)
BEAT_SILENT = timedelta(seconds=30)
OVERDUE_AFTER = timedelta(minutes=5)


def show_time(moment: datetime) -> str:
    """Return an instant as a probe's detail shows it, in the local zone."""
    return f"{moment.astimezone():%Y-%m-%d %H:%M}"


def check_database(_runtime: Runtime, session: Session) -> Answer:
    """Warn when the database's version is too old, or its encoding or journal mode is another."""
    connection = session.connection()
    version = connection.dialect.server_version_info or ()
    name = f"{connection.dialect.name} {'.'.join(map(str, version))}"
    if connection.dialect.name == "sqlite":
        mode = connection.execute(text("PRAGMA journal_mode")).scalar_one()
        return Status.OK if mode == "wal" else Status.WARN, f"{name}, journal mode {mode}"
    encoding = connection.execute(text("SHOW server_encoding")).scalar_one()
    if encoding != "UTF8":
        why = f"its encoding is {encoding}, which cannot hold every text"
        return Status.WARN, f"{name}; {why}: make the database with ENCODING 'UTF8'"
    return Status.WARN if version < OLDEST_POSTGRES else Status.OK, name


def check_migrations(_runtime: Runtime, session: Session) -> Answer:
    """Fail when the database is not at the revisions that the code needs."""
    if not Path("alembic.ini").exists():
        return Status.WARN, "there is no alembic.ini here: run this in the project's folder"
    # Not above: commands that do not ask this start sooner without it.
    from alembic.config import Config  # noqa: PLC0415
    from alembic.migration import MigrationContext  # noqa: PLC0415
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    script = ScriptDirectory.from_config(Config("alembic.ini"))
    wanted = set(script.get_heads())
    current = MigrationContext.configure(session.connection()).get_current_heads()
    # The table holds only heads; the revisions that they depend on are applied too.
    applied = {
        one.revision for one in script.iterate_revisions(current, "base", implicit_base=True)
    }
    missing = ", ".join(sorted(wanted - applied))
    found = ", ".join(sorted(current)) or "none"
    return (
        (Status.FAIL, f"at {found}, missing {missing}") if missing else (Status.OK, f"at {found}")
    )


def check_clock(_runtime: Runtime, session: Session) -> Answer:
    """Warn, or fail, when the database's clock and this machine's differ."""
    before = time.time()
    database = read_clock(session).timestamp()
    skew = abs(database - (before + time.time()) / 2)
    detail = f"{skew:.1f} s between the database's and ours"
    if skew > SKEW_HARMFUL:
        return Status.FAIL, detail
    return Status.WARN if skew > SKEW_NOTICED else Status.OK, detail


def check_workers(runtime: Runtime, session: Session) -> Answer:
    """Fail when a queue has no living worker; name the queues with due jobs but no worker."""
    declared = runtime[Composition].queues
    living = statistics.count_workers(session, silent_after=runtime.settings.worker_silent_after)
    orphaned = [
        f"{queue} has due jobs and no worker"
        + ("" if queue in declared else ", and no component declares it")
        for queue in statistics.read_oldest_due(session)
        if not living.get(queue)
    ]
    counts = ", ".join(f"{queue}: {living.get(queue, 0)}" for queue in declared)
    good = not orphaned and all(map(living.get, declared))
    return Status.OK if good else Status.FAIL, "; ".join([counts, *orphaned])


def check_beat(runtime: Runtime, session: Session) -> Answer:
    """Fail when no beat gives a sign of life, or a slot has passed that none has started."""
    entries = runtime[Composition].schedule(runtime)
    fired, now = schedule.read_last_fires(session), read_clock(session)
    seen = schedule.read_last_sign(session, entries)
    if seen is not None and now - seen > BEAT_SILENT:
        return Status.FAIL, f"no sign of life since {show_time(seen)}"
    slots = {
        entry.name: entry.after(fired[entry.name]) if entry.name in fired else None
        for entry in entries
    }
    said = [
        f"{name}: {f'next {show_time(slot)}' if slot else 'never registered'}"
        for name, slot in slots.items()
    ]
    good = all(slot and now < slot + BEAT_LATE for slot in slots.values())
    return Status.OK if good else Status.FAIL, "; ".join(said)


def check_recurring(runtime: Runtime, session: Session) -> Answer:
    """Warn when a recurring job is paused, or had no good run since its last slot but one."""
    fired, now = schedule.read_last_fires(session), runtime.now()
    said, status = [], Status.OK
    paused = schedule.find_paused_entries(session)
    for entry in runtime[Composition].schedule(runtime):
        if entry.name in paused:
            said.append(f"{entry.name}: paused since {show_time(paused[entry.name])}")
            status = Status.WARN
            continue
        at = schedule.find_last_good(session, entry)
        said.append(f"{entry.name}: last good run {show_time(at) if at else 'never'}")
        last_fire = fired.get(entry.name)
        fresh = last_fire is not None and next(entry.before(last_fire)) != last_fire
        # An entry that was registered after its last slot need not have run. For the others, a run
        # may last until the next slot, so the last slot but one must have succeeded.
        if not fresh and (at is None or at < list(islice(entry.before(now), 2))[-1]):
            status = Status.WARN
    return status, "; ".join(said)


def expect_none(
    status: Status,
    find: Callable[[Session], Mapping[str, Any]],
    _runtime: Runtime,
    session: Session,
) -> Answer:
    """Answer with `status`, and with what `find` returns, unless that is empty."""
    found = [f"{name}: {str(what).partition('.')[0]}" for name, what in find(session).items()]
    return status if found else Status.OK, ", ".join(found) or "none"


def _find_overdue(session: Session) -> dict[str, timedelta]:
    paused = statistics.find_paused_queues(session)
    oldest = statistics.read_oldest_due(session)
    return {
        queue: age for queue, age in oldest.items() if age > OVERDUE_AFTER and queue not in paused
    }


def _check_unknown(runtime: Runtime, session: Session) -> Answer:
    find = partial(statistics.count_unknown, kinds=runtime.kinds)
    return expect_none(Status.WARN, find, runtime, session)


def check_pooler(runtime: Runtime, session: Session) -> Answer:
    """Warn when the settings do not say truly whether a pooler stands before Postgres."""
    connection = session.connection()
    if connection.dialect.name != "postgresql":
        return Status.OK, "none"
    # A pooler makes up the process id that it tells the client.
    told = connection.connection.driver_connection.info.backend_pid  # type: ignore[union-attr]
    pooled = told != session.execute(select(func.pg_backend_pid())).scalar_one()
    expected = runtime.settings.database_pooler != "none"
    detail = "a pooler is there" if pooled else "none is there"
    detail += f", and DATABASE_POOLER is {runtime.settings.database_pooler}"
    return Status.OK if pooled == expected else Status.WARN, detail


def check_first_process(runtime: Runtime, _session: Session) -> Answer:
    """Warn when PID 1 of a container in production is not an init."""
    if not is_contained(runtime.settings):
        return Status.OK, "not in a container of production"
    name = Path("/proc/1/comm").read_text(encoding="utf-8").strip()
    return Status.OK if name in INITS else Status.WARN, name


def check_tls(runtime: Runtime, _session: Session) -> Answer:
    """Warn of connections to other machines whose certificate is not verified."""
    found = runtime.settings.find_unverified()
    return Status.WARN if found else Status.OK, f"not verified: {', '.join(found)}" if found else (
        "database and broker are verified, or on this machine"
    )


PROBES = (
    Probe(
        "database",
        check_database,
        "start it, or correct DATABASE_URL; PgBouncer needs DATABASE_POOLER=transaction; `alembic"
        " upgrade heads` creates an SQLite file, which must be on a local disk",
        ready=True,
        ledger=False,
    ),
    Probe(
        "migrations",
        check_migrations,
        "alembic upgrade heads",
        contained="alembic upgrade heads; `make up` on the host does it, too",
    ),
    Probe("clock", check_clock, "synchronise the clocks of all machines (NTP)"),
    Probe(
        "workers",
        check_workers,
        "`celery -A project worker`, or `make dev`",
        contained="`make up`, on the host, starts its container",
    ),
    Probe(
        "beat",
        check_beat,
        "`celery -A project beat`, or `make dev`",
        contained="`make up`, on the host, starts its container",
    ),
    Probe(
        "recurring jobs",
        check_recurring,
        "`celery -A project jobs list` shows what became of their runs; the desk resumes one",
    ),
    Probe(
        "stuck jobs",
        partial(expect_none, Status.FAIL, partial(statistics.count_stuck, slack=STUCK_AFTER)),
        "only a worker's keeper releases them: start one, or see its log",
    ),
    Probe(
        "hung workers",
        partial(
            expect_none,
            Status.FAIL,
            partial(statistics.find_hung_workers, lately=timedelta(days=1)),
        ),
        "kill the process, and start another worker; in production its keeper kills it",
    ),
    Probe(
        "unknown kinds",
        _check_unknown,
        "start a worker of the release that knows them; after UNKNOWN_KIND_AGE they are discarded",
    ),
    Probe(
        "pooler",
        check_pooler,
        "set DATABASE_POOLER=transaction where DATABASE_URL leads to PgBouncer, also where it pools"
        " sessions; elsewhere set it to none",
    ),
    Probe(
        "overdue jobs",
        partial(expect_none, Status.WARN, _find_overdue),
        "start more workers, or look at what they do",
    ),
    Probe(
        "unsendable jobs",
        partial(expect_none, Status.WARN, statistics.count_unsendable),
        "`celery -A project jobs list --state held` shows why; correct that and release them",
    ),
    Probe(
        "failed in a day",
        partial(expect_none, Status.WARN, partial(statistics.count_failed, over=timedelta(days=1))),
        "`celery -A project jobs list --state failed` shows why; `jobs retry ID` runs one again",
    ),
    Probe(
        "paused queues",
        partial(expect_none, Status.WARN, statistics.find_paused_queues),
        "celery -A project jobs resume QUEUE",
    ),
    Probe(
        "PID 1",
        check_first_process,
        "run an init: `init: true` in Compose, `docker run --init`, tini elsewhere; without one"
        " SIGTERM may be lost",
        ledger=False,
    ),
    Probe(
        "TLS",
        check_tls,
        "use rediss:// or amqps://, and leave ?sslmode= out of DATABASE_URL; TLS_CA names an"
        " authority of your own",
        ledger=False,
    ),
)
