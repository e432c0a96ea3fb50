"""`celery -A project new job|model …`: write the files of a job, or of a table.

Everything is checked before the first file is written, so a refused command writes nothing.
"""

import builtins
import keyword
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import wraps
from typing import Any

import click

from nightshift.celery.app import App
from nightshift.cli import new_files
from nightshift.cli.output import pass_app
from nightshift.cli.plans import Plan, scratch_database
from nightshift.component import DEFAULT_QUEUE, Composition
from nightshift.database import Base
from nightshift.errors import Conflict, InvalidInput, ServiceError
from nightshift.jobs.args import LONGEST_QUEUE, JobArgs
from nightshift.jobs.schedule import Entry

# A line of imports with two names of this length still fits.
LONGEST_NAME = 30
LONGEST_CRON = 60
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}

# The instant of the generated tests.
NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)

# Of a model's fields.
TYPES = ("bool", "date", "datetime", "float", "int", "str")
TAKEN_FIELDS = ("id", "created_at", "metadata", "registry")

# Modules of a noun that a job's service cannot be.
KEPT = ("jobs", "models")


class Refused(click.ClickException):
    """The command wrote nothing."""

    exit_code = 2


def _refusing(command: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(command)
    def call(*args: Any, **options: Any) -> Any:
        try:
            return command(*args, **options)
        except ServiceError as error:
            raise Refused(f"{error}; nothing was written") from error

    return call


@click.group()
def new() -> None:
    """Write the files of a new job or table, and its lines in the component and project/app.py."""


@new.command("job")
@click.argument("name", metavar="NOUN.JOB")
@click.option("--queue", default=DEFAULT_QUEUE, show_default=True, help="The queue of the job.")
@click.option("--every", metavar="SPAN", help="Run it again and again: 30s, 5m, 1h or 1d.")
@click.option("--cron", metavar="RULE", help="Run it by a cron expression, in UTC: '0 6 * * 1'.")
@pass_app
@_refusing
def new_job(app: App, name: str, queue: str, every: str | None, cron: str | None) -> None:
    """Write a job: arguments, service, body, test, and where it is declared."""
    noun, job = _split(name, "reports.weekly")
    cls = "".join(part.capitalize() for part in job.split("_"))
    for one in (job, cls):
        _require_usable(one)
    if job in KEPT:
        raise Conflict(f"{name}: services/{noun}/{job}.py has another use; choose another name")
    if name in app.composition.kinds:
        raise Conflict(f"the kind {name!r} exists already; choose another name")
    _require_queue(app.composition, noun, queue)
    when = _read_when(name, every, cron)
    plan = Plan(app, noun)
    policy = "" if queue == DEFAULT_QUEUE else f', queue="{queue}"'
    # One that waits is enough, however long no worker ran.
    policy += "" if when is None else ", unique_by=()"
    names = {"noun": noun, "job": job, "cls": cls, "kind": name, "policy": policy}

    args = plan.open(f"services/{noun}/jobs.py", new_files.ARGS_MODULE.format(**names))
    args.define(cls, new_files.ARGS.format(**names), "from nightshift.jobs import JobArgs")
    plan.create(f"services/{noun}/{job}.py", new_files.SERVICE.format(**names))
    tasks = plan.open(f"tasks/{noun}.py", new_files.TASKS_MODULE.format(**names))
    ours = f"from services.{noun}.jobs import {cls}"
    tasks.define(
        job,
        new_files.TASK.format(**names),
        "from nightshift.celery.task import job",
        "from nightshift.database import Session",
        "from nightshift.jobs import Outcome",
        "from nightshift.jobs import Run",
        ours,
        f"from services.{noun}.{job} import run_{job}",
    )
    test = new_files.TEST
    if when is not None:
        slot = _find_next_slot(name, when)
        names["next_slot"] = f"datetime({slot:%Y, %-m, %-d, %-H, %-M, %-S}, tzinfo=UTC)"
        test += new_files.SCHEDULE_TEST
    plan.create(f"tests/services/{noun}/test_{job}.py", test.format(**names))

    plan.component.add_import(ours)
    plan.add_to_component("kinds", cls)
    plan.add_to_component("tasks", f'"tasks.{noun}"')
    if when is not None:
        plan.add_entry(f'Entry("{name}", {cls}(), {_write_when(when)}, UTC)', when)
    with plan.written() as lines:
        click.echo("\n".join(lines))
    click.echo(f"next: python -m pytest tests/services/{noun}/test_{job}.py")


@new.command("model")
@click.argument("name", metavar="NOUN.MODEL")
@click.argument("fields", nargs=-1, metavar="[FIELD:TYPE…]")
@pass_app
@_refusing
def new_model(app: App, name: str, fields: tuple[str, ...]) -> None:
    """Write a table: its model, its migration, and where it is declared.

    Types: bool, date, datetime, float, int and str. Each table also has an id and created_at.
    """
    noun, cls = _split(name, "reports.Report", second=r"[A-Z][A-Za-z0-9]*")
    _require_usable(cls)
    table = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", cls).lower()
    app.composition.table_branches()  # imports the models
    if table in Base.metadata.tables or table.startswith(("sqlite_", "pg_")):
        raise Conflict(f"the table {table!r} exists already, or is the database's own")
    plan = Plan(app, noun)
    columns = _read_fields(fields)
    names = {"noun": noun, "cls": cls, "table": table}

    models = plan.open(f"services/{noun}/models.py", new_files.MODELS_MODULE.format(**names))
    if "date" in columns.values():
        models.add_import("from datetime import date")
    models.define(
        cls,
        new_files.MODEL.format(**names) + "".join(map(_write_column, columns, columns.values())),
        "from datetime import datetime",
        "from nightshift.database import Base",
        "from nightshift.database import UtcDateTime",
        "from sqlalchemy.orm import Mapped",
        "from sqlalchemy.orm import mapped_column",
    )
    plan.add_to_component("models", f'"services.{noun}.models"')
    with scratch_database(plan.root) as alembic:
        # A revision has all changes since the last one: there must be no others.
        alembic("upgrade", "heads")
        alembic("check")
        with plan.written() as lines:
            alembic("revision", "--autogenerate", "-m", f"add {table.replace('_', ' ')}")
            lines += [f"wrote    {path}" for path in plan.find_new_migrations()]
            click.echo("\n".join(lines))
    click.echo(
        "next: `make migrate`; to change the table, change its model and run `make migration`"
    )


def _split(name: str, example: str, *, second: str = r"[a-z][a-z0-9_]*") -> tuple[str, str]:
    noun, _, thing = name.partition(".")
    longest = max(len(noun), len(thing))
    shape = re.fullmatch(rf"[a-z][a-z0-9_]*\.{second}", name)
    if not shape or longest > LONGEST_NAME:
        raise InvalidInput(
            f"{name[: 3 * LONGEST_NAME]!a} is not a name like {example}: two words of letters,"
            f" digits and _ (ASCII), of {LONGEST_NAME} characters at most"
        )
    _require_usable(noun)
    return noun, thing


def _require_usable(name: str) -> None:
    if keyword.iskeyword(name) or hasattr(builtins, name):
        raise InvalidInput(f"{name!r} is a word of Python; choose another name")


def _read_fields(fields: tuple[str, ...]) -> dict[str, str]:
    """Return the type of each field by its name."""
    columns: dict[str, str] = {}
    for field in fields:
        name, _, type_name = field.partition(":")
        if not re.fullmatch(rf"[a-z][a-z0-9_]{{0,{LONGEST_NAME - 1}}}", name):
            raise InvalidInput(f"{field[:60]!a} is not a field like title:str")
        if type_name not in TYPES:
            raise InvalidInput(
                f"{field[:60]!a} has no type that is known; write {name}: and one of"
                f" {', '.join(TYPES)}"
            )
        if name in TAKEN_FIELDS or name in columns or name in TYPES:
            raise Conflict(f"{field!r}: the name {name!r} is taken; choose another one")
        _require_usable(name)
        columns[name] = type_name
    return columns


def _write_column(name: str, type_name: str) -> str:
    column = " = mapped_column(UtcDateTime)" if type_name == "datetime" else ""
    return f"    {name}: Mapped[{type_name}]{column}\n"


def _require_queue(composition: Composition, noun: str, queue: str) -> None:
    if not re.fullmatch(rf"[a-z][a-z0-9_.-]{{0,{LONGEST_QUEUE - 1}}}", queue):
        raise InvalidInput(
            f"--queue {queue[:60]!a} is not a name of lower-case letters, digits, _, . and -"
        )
    for one in composition.components:
        used = {kind.policy.queue for kind in one.kinds} - {DEFAULT_QUEUE, *one.shared_queues}
        if one.name == noun and queue in one.shared_queues:
            return
        if one.name != noun and queue in used:
            raise Conflict(f"--queue {queue}: that queue belongs to the component {one.name!r}")


def _read_when(name: str, every: str | None, cron: str | None) -> timedelta | str | None:
    if every is not None and cron is not None:
        raise InvalidInput("give --every or --cron, not both")
    if every is not None:
        span = re.fullmatch(r"([1-9]\d{0,4})([smhd])", every, re.ASCII)
        if span is None:
            raise InvalidInput(f"--every {every[:60]!a} is not a span like 30s, 5m, 1h or 1d")
        return timedelta(**{UNITS[span[2]]: int(span[1])})
    if cron is not None:
        if len(cron) > LONGEST_CRON or not cron.isascii() or not cron.isprintable():
            raise InvalidInput(f"--cron {cron[:60]!a} is not a cron expression like '0 6 * * 1'")
        _find_next_slot(name, cron)
    return cron


def _find_next_slot(name: str, when: timedelta | str) -> datetime:
    """Return the first slot after the instant of the generated tests."""
    try:
        return Entry(name, JobArgs.model_construct(), when, UTC).after(NOW)
    except (ValueError, StopIteration) as error:
        reason = str(error) or "it is never due"
        raise InvalidInput(f"--cron {when!r} is not a cron expression: {reason}") from error


def _write_when(when: timedelta | str) -> str:
    if isinstance(when, str):
        return repr(when)
    seconds = when // timedelta(seconds=1)
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds % size == 0:
            return f"timedelta({unit}={seconds // size})"
    return f"timedelta(seconds={seconds})"
