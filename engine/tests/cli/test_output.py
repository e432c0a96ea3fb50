"""What every command's output has in common."""

import json
from datetime import UTC, date, datetime
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
)
from nightshift.errors import Conflict, InvalidInput, PermanentError
from sqlalchemy.exc import OperationalError

ROWS = [
    {"name": "one [red]", "at": datetime(2026, 11, 21, 12, tzinfo=UTC), "more": None},
    {"name": "two", "at": None, "more": 1.5},
]


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
        (datetime(2026, 11, 21, 12, 0, 1, 999, tzinfo=UTC), "2026-11-21T12:00:01Z"),
        ("2026-11-21T12:00:01.5+00:00", "2026-11-21T12:00:01Z"),
        (date(2026, 11, 21), "2026-11-21"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    ],
)
def test_value_in_a_cell(value, shown):
    assert show(value) == shown


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
        "2026-11-21T12:00:00+00:00",
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
    assert "2026-11-21T12:00:00Z" in ran.stdout
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
