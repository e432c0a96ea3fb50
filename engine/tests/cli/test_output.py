"""What every command's output has in common."""

import json
import re
import time
from datetime import UTC, date, datetime, timedelta
from types import SimpleNamespace
from uuid import UUID

import click
import pytest
from click.testing import CliRunner
from nightshift.cli.output import (
    change_each,
    end_with,
    make_console,
    make_table,
    pass_app,
    pass_runtime,
    print_json,
    print_rows,
    refusals,
    show,
    show_age,
)
from nightshift.errors import Conflict, InvalidInput, PermanentError
from rich.console import Console
from sqlalchemy.exc import OperationalError

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
ROWS = [
    {"name": "one [red]", "at": datetime(2026, 11, 21, 12, tzinfo=UTC), "more": None},
    {"name": "two", "at": None, "more": 1.5},
]


@pytest.fixture
def in_zurich(monkeypatch):
    """Let the machine's zone be Zurich."""
    monkeypatch.setenv("TZ", "Europe/Zurich")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def invoke(body, *words, obj=None):
    return CliRunner().invoke(click.command()(body), words, obj=obj)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, ""),
        (1.23456, "1.235"),
        (7, "7"),
        ("text", "text"),
        ("The last was at 2026-11-21T12:00:01+00:00", "The last was at 2026-11-21T12:00:01+00:00"),
        ("no \udcff", "no ?"),
        (datetime(2026, 11, 21, 12, 0, 1, 999, tzinfo=UTC), "2026-11-21 13:00:01"),
        ("2026-11-21T12:00:01.5+00:00", "2026-11-21 13:00:01"),
        (timedelta(minutes=5), "5 min"),
        (date(2026, 11, 21), "2026-11-21"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    ],
)
def test_value_in_a_cell(value, shown, in_zurich):
    assert show(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0 s ago"),
        (0.04, "0.0 s ago"),
        (89, "89 s ago"),
        (120, "2 min ago"),
        (7_200, "2 h ago"),
        (172_800, "2 d ago"),
        (-300, "in 5 min"),
    ],
)
def test_age_is_in_the_largest_unit(seconds, shown):
    assert show_age(NOW - timedelta(seconds=seconds), NOW) == shown


COLUMNS = {"id": 8, "state": 9, "title": 60, "queue": 20, "empty": 0}


def draw(width, monkeypatch, gives_way=("queue",)):
    """Return the lines of a table with COLUMNS on a terminal of this width."""
    monkeypatch.setattr(Console, "width", width)
    values = ["x" * length for length in COLUMNS.values()]
    table = make_table(list(COLUMNS), [values, values], gives_way=gives_way)
    with (console := make_console()).capture() as captured:
        console.print(table)
    return [line.rstrip() for line in captured.get().splitlines()]


@pytest.mark.parametrize("width", [20, 40, 80, 120, 200])
def test_table_fits_the_terminal_and_a_row_is_a_line(width, monkeypatch):
    lines = draw(width, monkeypatch)

    assert (len(lines), max(map(len, lines)) <= width) == (3, True)


def test_table_leaves_out_columns_in_their_order_and_those_without_a_value(monkeypatch):
    headers = {width: draw(width, monkeypatch)[0].split() for width in (60, 120)}

    assert headers == {60: ["id", "state", "title"], 120: ["id", "state", "title", "queue"]}


def test_text_without_room_is_cut(monkeypatch):
    assert draw(60, monkeypatch)[1].endswith("xx…")


def test_table_shows_plain_values():
    console = make_console()
    with console.capture() as captured:
        console.print(make_table(("name", "at"), [["one [red]", None]]))

    assert "one [red]" in captured.get()


def test_json_holds_instants_dates_and_ids_as_text():
    ran = invoke(
        lambda: print_json(
            [datetime(2026, 11, 21, 12, tzinfo=UTC), date(2026, 11, 21), UUID(int=1), "ü"]
        )
    )

    assert json.loads(ran.stdout) == [
        "2026-11-21T12:00:00Z",
        "2026-11-21",
        "00000000-0000-0000-0000-000000000001",
        "ü",
    ]
    assert "ü" in ran.stdout


def test_half_a_character_in_json_is_replaced():
    assert json.loads(invoke(lambda: print_json("no \udcff")).stdout) == "no ?"


def test_rows_as_json_hold_all_columns():
    ran = invoke(lambda: print_rows(ROWS, ["name"], as_json=True))

    assert json.loads(ran.stdout)[1] == {"name": "two", "at": None, "more": 1.5}


def test_rows_as_a_table_have_the_columns_that_are_asked_for():
    ran = invoke(lambda: print_rows(ROWS, ["name", "at"], as_json=False))

    assert "one [red]" in ran.stdout
    assert re.search(r"(ago|in \d+ \w+)", ran.stdout)
    assert "1.500" not in ran.stdout


def test_end_with_writes_to_standard_error_and_has_exit_code_1():
    ran = invoke(lambda: end_with("it did not work"))

    assert (ran.exit_code, ran.stdout, ran.stderr) == (1, "", "it did not work\n")


def test_refusal_of_a_service_is_a_message_and_no_traceback():
    def body():
        with refusals():
            raise Conflict("it is taken")

    ran = invoke(body)

    assert (ran.exit_code, ran.stdout, ran.stderr) == (1, "", "it is taken\n")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (InvalidInput("starts: is empty"), 2, "starts: is empty"),
        (
            OperationalError("select", {}, Exception("no such table: job")),
            2,
            (
                "the database cannot be used: (builtins.Exception) no such table: job: the tables"
                " are missing or old; `alembic upgrade heads` makes them"
            ),
        ),
        (FileNotFoundError(2, "No such file", "a.csv"), 2, "a.csv: No such file"),
    ],
)
def test_wrong_input_or_a_database_that_is_away_has_exit_code_2(error, code, said):
    def body():
        with refusals():
            raise error

    ran = invoke(body)

    assert (ran.exit_code, ran.stdout, ran.stderr) == (code, "", f"{said}\n")


def test_other_errors_are_not_hidden():
    def body():
        with refusals():
            raise ZeroDivisionError

    assert isinstance(invoke(body).exception, ZeroDivisionError)


def test_change_each_goes_on_after_a_refusal():
    def change(one):
        if one == "b":
            raise PermanentError("b is refused")
        return f"{one} is changed"

    ran = invoke(lambda: change_each("abc", change))

    assert (ran.exit_code, ran.stdout, ran.stderr) == (
        1,
        "a is changed\nc is changed\n",
        "b is refused\n",
    )


def test_change_each_without_a_refusal_has_exit_code_0():
    assert invoke(lambda: change_each("a", lambda one: one)).exit_code == 0


def test_command_is_given_the_app_and_the_runtime_that_celery_found():
    app = SimpleNamespace(runtime="the runtime")
    given = []

    @click.command()
    @click.argument("word")
    @pass_app
    def with_app(app, word):
        """Take the app."""
        given.append((app, word))

    @click.command()
    @click.argument("word")
    @pass_runtime
    def with_runtime(runtime, word):
        """Take the runtime."""
        given.append((runtime, word))

    obj = SimpleNamespace(app=app)
    for command in (with_app, with_runtime):
        CliRunner().invoke(command, ["one"], obj=obj, catch_exceptions=False)

    assert given == [(app, "one"), ("the runtime", "one")]
    assert (with_app.help, with_runtime.help) == ("Take the app.", "Take the runtime.")
