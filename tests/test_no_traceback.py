"""Whatever a person types, and whatever the database is like: an exit code, a line, no traceback.

Every command of every component runs with HOSTILE values for each of its arguments and options; the
others have the values of LEGAL.

Exit code 2 and one line: before the migration, without the database, and for a value that nothing
could hold. On a database with all tables a value may also be legal: 0, or 1 when a service finds
nothing by it.
"""

import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from celery.bin.celery import celery
from click.testing import CliRunner
from nightshift.celery.app import App
from nightshift.component import load
from nightshift.errors import InvalidInput

import project
from tests.conftest import COMPOSITION, ROOT

HOSTILE = [
    "", " ", "-", "--", "-1", "0", "1", "1.5", "1e400", "NaN", "٣",
    str(2**31), str(2**63), str(-(2**63) - 1), "9" * 5_000,
    "\0", "a\0b", "\udcff", "a\udc80b", "\n", "a\r\nBcc: b@c.example", "\x1b[31m", "\u202e",
    "[/red]", "0001-01-01", "9999-12-31", "0001-01-01 00:00+14:00", "9999-12-31 23:59-14:00",
    "2026-02-30", "x" * 1_000_000, "' or 1=1 --", "{0}%s%n", "/etc/passwd", "ffff",
    "/proc/none", "00000000-0000-0000-0000-000000000000", "a@b", "@", "ß@ß.example",
]  # fmt: skip

# By the name of a parameter.
LEGAL = {
    "file": str(ROOT / "pyproject.toml"),
    "email": "anna@school.example",
    "emails": "anna@school.example",
    "address": "anna@school.example",
    "path": str(ROOT / "examples" / "school"),
    "folder": str(Path(tempfile.gettempdir()) / f"new-{os.getpid()}"),
    "queue": "default",
    "title": "Trip",
    "starts": "2026-12-01",
    "ends": "2026-12-01",
    "opening": "--no-open",
    "inline": "--inline",
}

# These need no database, or say more of it than a line.
WITHOUT_DATABASE = {"letters preview", "mail test", "desk hash", "doctor"}


def find_commands(command, words):
    """Yield every command below this one, by its words."""
    if isinstance(command, click.Group):
        for name, one in command.commands.items():
            yield from find_commands(one, f"{words} {name}")
    else:
        yield words, command


COMMANDS = dict(
    found
    for component in COMPOSITION.components
    for name, path in component.commands.items()
    for found in find_commands(load(path), name)
)


def legal(parameter):
    """Return a value that the parameter accepts, and that most likely names nothing."""
    if parameter.name in LEGAL:
        return LEGAL[parameter.name]
    if isinstance(parameter.type, click.Choice):
        return next(iter(parameter.type.choices))
    return "1" if isinstance(parameter.type, click.IntRange) else "ffffff"


def make_words(command, hostile, value):
    """Return the command's words with `value` for one parameter, and legal ones where needed."""
    options, arguments = [], []
    for parameter in command.params:
        given = value if parameter is hostile else legal(parameter)
        if isinstance(parameter, click.Argument):
            arguments.append(given)
        elif getattr(parameter, "is_flag", False):
            options += [given] if parameter.name in LEGAL else []
        elif parameter is hostile or parameter.required or parameter.name in LEGAL:
            options += [parameter.opts[0], given]
    return [*options, "--", *arguments]


def run(command, app, words):
    """Run a command and return its exit code, and what it wrote that is not click's usage."""
    ran = CliRunner().invoke(command, words, obj=SimpleNamespace(app=app), input=b"\xff\0" * 1_000)
    if not isinstance(ran.exception, SystemExit | None):
        return repr(ran.exception), []
    _usage, error, message = ran.stderr.rpartition("\nError: ")
    lines = (message if error else ran.stderr).splitlines()
    return ran.exit_code, lines


def try_all(name, app, judge):
    """Run a command with each hostile value for each parameter; return what `judge` refuses."""
    command = COMMANDS[name]
    attacked = [one for one in command.params if not getattr(one, "is_flag", False)]
    tries = [(one, value) for one in attacked for value in HOSTILE] or [(None, "")]
    wrong = []
    for parameter, value in tries:
        code, lines = run(command, app, make_words(command, parameter, value))
        if not judge(code, lines):
            wrong.append((parameter and parameter.name, value[:40], code, [x[:200] for x in lines]))
    return wrong


@pytest.fixture
def make_app(tmp_path, monkeypatch):
    """Return what makes an app on a database; it writes into the test's folder."""
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    made = []

    def make(url):
        files = {"feed_store": tmp_path / "feeds", "mail_url": f"folder://{tmp_path}/mail"}
        broker = f"filesystem://{tmp_path}/broker"
        app = App(
            "tests", COMPOSITION, _env_file=None, database_url=url, broker_url=broker, **files
        )
        made.append(app)
        return app

    yield make
    for app in made:
        app.runtime.close()
    signal.signal(signal.SIGTERM, before)


def is_refused(code, lines):
    """Return whether a command ended with exit code 2, and one line that says why."""
    return code == 2 and len(lines) == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_hostile_value_is_refused_or_finds_nothing(name, make_app, sqlite_url, tmp_path):
    shutil.copy(sqlite_url.removeprefix("sqlite:///"), tmp_path / "full.db")
    app = make_app(f"sqlite:///{tmp_path}/full.db")

    assert try_all(name, app, lambda code, lines: code in (0, 1, 2) and len(lines) <= 1) == []


# The first two write files, and read no table; the next looks for another database first; the last
# refuse what no package and no setting knows before they read.
READS_NO_TABLE = {
    "new job",
    "new model",
    "feeds take-stamps",
    "school holidays import",
    "school timetable sync",
}


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - WITHOUT_DATABASE - READS_NO_TABLE))
def test_command_before_the_migration_says_how_to_migrate(name, make_app, tmp_path):
    app = make_app(f"sqlite:///{tmp_path}/empty.db")

    assert try_all(name, app, is_refused) == []
    _, lines = run(COMMANDS[name], app, make_words(COMMANDS[name], None, ""))
    assert "alembic upgrade heads" in lines[0]


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - WITHOUT_DATABASE))
def test_command_without_a_database_says_that_it_is_away(name, make_app):
    app = make_app("postgresql+psycopg://127.0.0.1:1/none")

    assert try_all(name, app, is_refused) == []


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - WITHOUT_DATABASE))
def test_command_in_another_folder_names_the_projects(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BROKER_URL")
    # As in a process of its own, which has not imported the app.
    monkeypatch.delitem(sys.modules, "project.celery", raising=False)
    monkeypatch.delattr(project, "celery", raising=False)
    words = ["-A", "project", *name.split(), *make_words(COMMANDS[name], None, "")]

    ran = CliRunner().invoke(celery, words)

    assert (ran.exit_code, ran.stderr.count("\n"), [*tmp_path.iterdir()]) == (2, 1, [])
    assert f"cd {ROOT}" in ran.stderr


SETTINGS = sorted({name for one in COMPOSITION.sections for name in one.model_fields})
FOR_SETTINGS = [
    *HOSTILE, "P99999999D", "PT0S", "-P1D", "PT0.0000001S", "://", "redis://h:99999/0",
    "redis://127.0.0.1:1/x", "amqp://[", "sqlite:///", "sqlite:////proc/none/x.db", "sqlite:////tmp",
    "sqlite:///x?y=z", "mysql://u@h/d", "postgresql+asyncpg://h/d", "postgresql://h:0/d",
    "postgresql+psycopg://h/d?x=y", "filesystem:///proc/none", "folder:///proc/none", "http://[",
    "smtp://h:99999", "smtp://", "127.0.0.1:99999", "x" * 300, "../..", "Mars/Olympus",
]  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_hostile_setting_is_named_or_works(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good = {"database_url": f"sqlite:///{tmp_path}/empty.db"}
    good |= {"broker_url": f"filesystem://{tmp_path}/broker", "mail_url": f"folder://{tmp_path}/m"}
    wrong = []
    for value in FOR_SETTINGS:
        try:
            app = App("tests", COMPOSITION, _env_file=None, **{**good, name: value})
        except InvalidInput as error:
            if not str(error).startswith(name.upper()) or "\n" in str(error):
                wrong.append((value[:40], str(error)[:200]))
            continue
        for command in ("metrics", "schedule"):
            code, lines = run(COMMANDS[command], app, [])
            if code not in (0, 1, 2) or len(lines) > 1:
                wrong.append((value[:40], command, code, lines))
        app.runtime.close()

    assert wrong == []
