"""What could be wrong with an installation, looked at from inside: nothing is written, no secret is shown.

A check is a function under `@check` with its name and what to do about it. It answers with a status and what it found, or raises:
that is a failure too, and touches no other check.
"""

import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from kombu import Connection, Queue
from sqlalchemy import Engine, create_engine, make_url, select, text

from project import filebroker
from project.bootstrap import Bootstrap, make_engine
from project.celery import app
from project.celeryconfig import QUEUES, TIME_LIMIT
from project.schedule import entries
from project.settings import PLACEHOLDER, Settings
from services.calendars import feeds
from services.database import Session, utc_now
from services.jobs import metrics, schedule
from services.jobs.args import KINDS
from services.jobs.models import ScheduleEntry
from services.mail import outbox

OLDEST_POSTGRES = (14, 0)
INITS = {"docker-init", "tini", "dumb-init", "catatonit", "podman-init", "s6-svscan", "systemd", "init", "launchd"}
SKEW_NOTICED, SKEW_HARMFUL = 2.0, 30.0
STUCK_AFTER, BEAT_LATE, OVERDUE_AFTER = timedelta(minutes=1), timedelta(minutes=2), timedelta(minutes=5)
LEAST_FREE_BYTES = 200_000_000
BROKER_PATIENCE = 3.0

OK, WARN, FAIL, SKIP = "ok", "warn", "fail", "skip"
Answer = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the table: `broker` is the scheme that it is about, `ledger` says that it reads the database."""

    name: str
    remedy: str
    run: Callable[["Observer", Session], Answer]
    broker: str
    ledger: bool


CHECKS: list[Check] = []


def check(
    name: str, remedy: str, *, broker: str = "", ledger: bool = False
) -> Callable[[Callable[["Observer", Session], Answer]], None]:
    return lambda run: CHECKS.append(Check(name, remedy, run, broker, ledger))


class Observer(Bootstrap):
    """The settings' collaborators, whose connections to the database cannot write."""

    @cached_property
    def engine(self) -> Engine:
        url = make_url(self.settings.database_url)
        if url.get_backend_name() != "sqlite":
            return make_engine(self.settings).execution_options(postgresql_readonly=True)
        path = f"{Path(url.database or '').absolute().as_uri()}?mode=ro"
        return create_engine(url, creator=lambda: sqlite3.connect(path, uri=True, check_same_thread=False))

    @cached_property
    def _at_once(self) -> Engine:
        return self.engine


def examine(settings: Settings) -> list[dict[str, str]]:
    """Make every check that suits the settings, and return name, status, detail and remedy of each."""
    app.loader.import_default_modules()
    boot, found = Observer(settings), list[dict[str, str]]()
    scheme = "redis" if settings.broker_url.startswith(("redis", "valkey")) else settings.broker_url.partition(":")[0]
    for one in CHECKS:
        if one.broker in ("", scheme):
            status, detail = _answer(one, boot, database_is_away=bool(found) and found[0]["status"] == FAIL)
            remedy = one.remedy if status in (WARN, FAIL) else ""
            found.append({"check": one.name, "status": status, "detail": detail, "remedy": remedy})
    boot.disconnect()
    return found


def _answer(one: Check, boot: "Observer", *, database_is_away: bool) -> Answer:
    if one.ledger and database_is_away:
        return SKIP, "the database cannot be read"
    try:
        with boot.read_only() as session:  # connects when it is first used
            return one.run(boot, session)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is this check's finding
        return FAIL, f"{type(error).__name__}: {_without_secrets(str(error).partition(chr(10))[0], boot.settings)}"


def _without_secrets(detail: str, settings: Settings) -> str:
    # What drivers put into their messages is theirs; a password in an address may be quoted or not.
    given = [urlsplit(url).password or "" for url in (settings.database_url, settings.broker_url)]
    given += [
        settings.postgres_password.get_secret_value(),
        settings.mail_password.get_secret_value(),
        settings.link_secret.get_secret_value(),
        settings.flower_basic_auth.get_secret_value().partition(":")[2],
    ]
    for secret in sorted({*given, *map(unquote, given)} - {"", PLACEHOLDER}, key=len, reverse=True):
        detail = detail.replace(secret, "***")
    return detail


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M %Z}"


@check("database", "start it, or mend DATABASE_URL; a new SQLite file is made by `alembic upgrade head`, WAL needs a local disk")
def _database(boot: Observer, _session: Session) -> Answer:
    with boot.engine.connect() as connection:
        version = connection.dialect.server_version_info or ()
        name = f"{connection.dialect.name} {'.'.join(map(str, version))}"
        if connection.dialect.name == "sqlite":
            mode = connection.execute(text("PRAGMA journal_mode")).scalar_one()
            return OK if mode == "wal" else WARN, f"{name}, journal mode {mode}"
        return WARN if version < OLDEST_POSTGRES else OK, name


@check("migrations", "alembic upgrade head", ledger=True)
def _migrations(_boot: Observer, session: Session) -> Answer:
    wanted = set(ScriptDirectory(str(Path(__file__).parent.parent / "migrations")).get_heads())
    found = set(MigrationContext.configure(session.connection()).get_current_heads())
    return OK if found == wanted else FAIL, f"at {', '.join(sorted(found)) or 'none'}, the code needs {', '.join(sorted(wanted))}"


@check("clock", "synchronise the clocks of all machines (NTP)", ledger=True)
def _clock(_boot: Observer, session: Session) -> Answer:
    before = time.time()
    skew = abs(session.execute(select(utc_now())).scalar_one().timestamp() - (before + time.time()) / 2)
    return FAIL if skew > SKEW_HARMFUL else WARN if skew > SKEW_NOTICED else OK, f"{skew:.1f} s between the database's and ours"


@contextmanager
def _broker() -> Iterator[Connection]:
    options = {"socket_connect_timeout": BROKER_PATIENCE, "socket_timeout": BROKER_PATIENCE}
    with app.connection_for_read(connect_timeout=BROKER_PATIENCE, transport_options=options) as connection:
        connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0, timeout=BROKER_PATIENCE)
        yield connection


@check("broker", "start Redis, or mend BROKER_URL; it needs `--appendonly yes --maxmemory-policy noeviction`", broker="redis")
def _redis(_boot: Observer, _session: Session) -> Answer:
    with _broker() as connection:
        # INFO and not CONFIG, which hosted servers refuse.
        info = connection.default_channel.client.info("everything")
    status = FAIL if info["maxmemory_policy"] != "noeviction" else OK if info["aof_enabled"] else WARN
    return status, f"Redis {info['redis_version']}, appendonly {'on' if info['aof_enabled'] else 'off'}, {info['maxmemory_policy']}"


@check("visibility timeout", "raise VISIBILITY_TIMEOUT above that, or Redis delivers what still runs", broker="redis")
def _visibility_timeout(boot: Observer, _session: Session) -> Answer:
    given = boot.settings.visibility_timeout
    longest = max(job.policy.time_limit for job in KINDS.values()) + timedelta(seconds=TIME_LIMIT)
    return OK if given > longest else WARN, f"{given}; the longest job and its wait may take {longest}"


@check("broker", "give the folder to the process's user; a worker's keeper tidies it", broker="filesystem")
def _files(_boot: Observer, _session: Session) -> Answer:
    options, oldest = app.conf.broker_transport_options, time.time() - filebroker.KEEP_SECONDS
    folders = [Path(options[name]) for name in ("data_folder_in", "control_folder", "processed_folder")]
    closed = ", ".join(str(folder) for folder in folders if not os.access(folder, os.W_OK | os.X_OK))
    # The control folder holds tables, which stay.
    left = 0 if closed else sum(entry.stat().st_mtime < oldest for folder in folders[::2] for entry in folder.iterdir())
    return (FAIL, f"not writable: {closed}") if closed else (WARN if left else OK, f"writable, {left} files older than an hour")


@check(
    "broker", "start RabbitMQ, or mend BROKER_URL; a worker declares missing queues, delete those of another type", broker="amqp"
)
def _rabbitmq(_boot: Observer, _session: Session) -> Answer:
    wrong = []
    with _broker() as connection:
        for queue in app.conf.task_queues:
            try:
                # Only a queue that is there is declared: that changes nothing, and fails unless it is of the type we want.
                connection.channel().queue_declare(queue.name, passive=True)
                Queue(queue.name, queue_arguments=queue.queue_arguments)(connection.channel()).queue_declare()
            except connection.channel_errors as error:
                wrong.append(f"{queue.name}: {str(error).partition(chr(10))[0]}")
    return WARN if wrong else OK, "; ".join(wrong) or "RabbitMQ, quorum queues"


@check("workers", "celery -A project worker", ledger=True)
def _workers(boot: Observer, session: Session) -> Answer:
    living = metrics.workers(session, silent_after=boot.settings.worker_silent_after)
    return OK if all(map(living.get, QUEUES)) else FAIL, ", ".join(f"{queue}: {living.get(queue, 0)}" for queue in QUEUES)


def _last_fires(session: Session) -> dict[str, datetime]:
    return {row.entry: row.last_fire_at for row in session.execute(select(ScheduleEntry)).scalars()}


@check("beat", "celery -A project beat", ledger=True)
def _beat(boot: Observer, session: Session) -> Answer:
    # It leaves a trace only when it starts something: between two slots a dead one looks like a living.
    fired, everything = _last_fires(session), entries(boot.settings)
    slots = {entry.name: entry.after(fired[entry.name]) if entry.name in fired else None for entry in everything}
    said = "; ".join(f"{name}: {f'next {_time(slot)}' if slot else 'never registered'}" for name, slot in slots.items())
    return OK if all(slot and boot.now() < slot + BEAT_LATE for slot in slots.values()) else FAIL, said


@check("recurring jobs", "`celery -A project jobs list` shows what became of their runs", ledger=True)
def _recurring(boot: Observer, session: Session) -> Answer:
    fired, said, status = _last_fires(session), [], OK
    for entry in entries(boot.settings):
        at = schedule.last_success(session, entry.job.policy.kind)
        said.append(f"{entry.name}: last good run {_time(at) if at else 'never'}")
        fresh = entry.name in fired and next(entry.before(fired[entry.name])) != fired[entry.name]
        # One that was registered since its last slot need not have run. A run may last until the next slot, so of the others the
        # last slot but one is the newest that must have succeeded.
        if not fresh and (at is None or at < list(islice(entry.before(boot.now()), 2))[-1]):
            status = WARN
    return status, "; ".join(said)


def _overdue(session: Session) -> dict[str, timedelta]:
    paused = metrics.paused(session)
    return {queue: age for queue, age in metrics.oldest_due(session).items() if age > OVERDUE_AFTER and queue not in paused}


def _failed_feeds(session: Session) -> dict[str, int]:
    return {kind: failed for kind, (_, failed) in feeds.counts(session).items() if failed}


def _should_be_empty(status: str, find: Callable[[Session], Mapping[str, Any]], _boot: Observer, session: Session) -> Answer:
    found = [f"{name}: {str(what).partition('.')[0]}" for name, what in find(session).items()]
    return status if found else OK, ", ".join(found) or "none"


for _name, _status, _find, _remedy in (
    ("stuck jobs", FAIL, partial(metrics.stuck, slack=STUCK_AFTER), "only a worker's keeper frees them: start one, or see its log"),
    ("overdue jobs", WARN, _overdue, "start more workers, or look at what they do"),
    ("failed in a day", WARN, partial(metrics.failed, over=timedelta(days=1)), "`celery -A project jobs` shows why, and retries"),
    ("failed feeds", WARN, _failed_feeds, "`celery -A project feeds list` says why; each keeps its last good file"),
    ("paused queues", WARN, metrics.paused, "celery -A project jobs resume QUEUE"),
):
    check(_name, _remedy, ledger=True)(partial(_should_be_empty, _status, _find))


@check("mail", "mend what it says, or MAIL_URL; then all goes by itself. `celery -A project mail list` shows messages", ledger=True)
def _mail(boot: Observer, session: Session) -> Answer:
    for server in outbox.failing(session):
        return FAIL, f"{server.name} takes no mail since {_time(server.failing_since or boot.now())}: {server.error}"
    undecided, oldest = outbox.undecided(session), outbox.oldest_due(session)
    said = f"{undecided} may have been sent, and wait for `mail retry`" if undecided else "none waits for a person"
    if oldest is not None and boot.now() - oldest > OVERDUE_AFTER:
        return WARN, f"one is due since {_time(oldest)}; {said}"
    return WARN if undecided else OK, said


@check("feed store", "give the process's user a writable folder with 200 MB free, or another one as FEED_STORE")
def _feed_store(boot: Observer, _session: Session) -> Answer:
    root = boot.settings.feed_store.absolute()
    folder = next(path for path in (root, *root.parents) if path.exists())
    disk = os.statvfs(folder)
    free, writable = disk.f_bavail * disk.f_frsize, os.access(folder, os.W_OK | os.X_OK) and not disk.f_flag & os.ST_RDONLY
    return (
        OK if writable and free > LEAST_FREE_BYTES else FAIL,
        f"{root}, {free // 10**6} MB free{'' if writable else ', not writable'}",
    )


@check("PID 1", "run an init: `init: true` in Compose, `docker run --init`, tini elsewhere; without one SIGTERM may be lost")
def _first_process(_boot: Observer, _session: Session) -> Answer:
    if not (Path("/.dockerenv").exists() or Path("/run/.containerenv").exists() or "KUBERNETES_SERVICE_HOST" in os.environ):
        return OK, "not in a container"
    name = Path("/proc/1/comm").read_text(encoding="utf-8").strip()
    return OK if name in INITS else WARN, name


@check("grace period", "")
def _grace_period(_boot: Observer, _session: Session) -> Answer:
    longest = max((job.policy for job in KINDS.values()), key=lambda policy: policy.time_limit)
    return (
        OK,
        f"a worker killed before its job ends runs it again; {longest.kind} may take {longest.time_limit}, most {TIME_LIMIT} s",
    )


@check("Flower", "set FLOWER_BASIC_AUTH=NAME:PASSWORD in the environment that Flower starts in; it does not read .env")
def _flower(boot: Observer, _session: Session) -> Answer:
    login = os.environ.get("FLOWER_BASIC_AUTH", "")
    if login and PLACEHOLDER not in login:
        return OK, "has a login"
    severity = FAIL if boot.settings.environment == "production" else WARN
    return severity, "its login is the placeholder" if login else "the environment gives it no login"
