"""`school event`, on an SQLite database of the test's own."""

import json
import re
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from project.school.cli import school
from services.school import loading
from tests.conftest import NOW, ZONE

AUTHOR = "juerg.mueller@kantonsschule.example"
TIMES = ("--starts", "2026-12-01 08:00", "--ends", "2026-12-01 12:00")


@pytest.fixture
def run(job_app, example_school):
    """Return a function that runs a command on the example school and returns what it answered."""
    with job_app.runtime.unit_of_work() as session:
        loading.load(session, example_school, zone=ZONE, now=NOW)

    def call(*arguments, code=0):
        context = SimpleNamespace(app=job_app)
        result = CliRunner().invoke(school, ["event", *arguments], obj=context)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return result

    return call


@pytest.fixture
def add(run):
    """Return a function that drafts an event and returns its id."""

    def call(*arguments):
        return run("add", "--title", "Trip", *TIMES, *arguments).stdout.split()[0]

    return call


@pytest.fixture
def listed(run):
    """Return a function that returns the listed events by id."""

    def call(*arguments):
        return {row["id"]: row for row in json.loads(run("list", "--json", *arguments).stdout)}

    return call


def test_add_stores_every_option(add, listed):
    names = (
        "--class",
        "27Ga",
        "--class",
        "27GA",
        "--group",
        "28W",
        "--department",
        "Gymnasium",
        "--user",
        AUTHOR,
    )
    texts = (
        "--description",
        "Bring food",
        "--location",
        "Bern",
        "--audience",
        "all",
        "--teaching",
        "partial",
        "--author",
        AUTHOR,
    )
    event_id = add(*names, *texts)
    assert listed()[event_id] == {
        "id": event_id,
        "state": "draft",
        "version_of": None,
        "author": AUTHOR,
        "title": "Trip",
        "description": "Bring food",
        "location": "Bern",
        "starts": "2026-12-01T07:00:00Z",
        "ends": "2026-12-01T11:00:00Z",
        "repeats": "",
        "audience": "all",
        "teaching_affected": "partial",
        "classes": ["27GA", "27Ga"],
        "class_groups": ["28W"],
        "departments": ["Gymnasium"],
        "users": [AUTHOR],
        "dates": [],
        "addressed": True,
        "refusal": "",
    }


def test_life_of_an_event_by_the_first_digits_of_its_id(run, add, listed):
    event_id = add("--class", "27Ga")
    short = event_id[:6]
    assert run("submit", short).stdout == f"{event_id} review\n"
    assert run("refuse", short, "--reason", "no room").stdout == f"{event_id} refused\n"
    assert run("edit", short, "--location", "Bern", "--class", "").stdout == f"{event_id} refused\n"
    run("submit", short)
    assert run("publish", short).stdout == f"{event_id} published\n"
    version, *rest = run("edit", short, "--title", "Tour").stdout.split(maxsplit=1)
    assert rest == [f"draft, a version of {event_id}\n"]
    run("submit", version)
    assert run("publish", version).stdout == f"{event_id} published\n"
    row = listed("--state", "published")[event_id]
    assert (
        row["title"],
        row["location"],
        row["classes"],
        listed("--state", "past")[version]["title"],
    ) == (
        "Tour",
        "Bern",
        [],
        "Trip",
    )
    assert run("cancel", short).stdout == f"{event_id} cancelled\n"
    assert run("delete", short).stdout == f"{event_id} deleted\n"
    assert run("restore", short).stdout == f"{event_id} cancelled\n"
    assert run("restore", short).stdout == f"{event_id} published\n"


def test_delete_of_a_draft_removes_it(run, add, listed):
    event_id = add()
    assert run("delete", event_id).stdout == f"{event_id} removed\n"
    assert event_id not in listed()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["add"],
            (
                "title: is empty; it needs a value\n"
                "starts: is empty; it needs a value\n"
                "ends: is empty; it needs a value"
            ),
        ),
        (
            ["add", "--title", "x", *TIMES, "--class", "27GB"],
            "classes: there is no class '27GB'; did you mean 27Ga, 27GA?",
        ),
        (
            ["add", "--title", "x", *TIMES, "--author", "x@y"],
            "author: there is no user 'x@y'; correct the name, or add it first",
        ),
        (
            ["add", "--title", "x", "--starts", "2026-12-01 8:00", "--ends", "1/12/2026"],
            (
                "starts: must be a time such as 2026-05-04T08:15 or 2026-05-04T08:15+02:00,"
                " not '2026-12-01 8:00'\n"
                "ends: must be a date such as 2026-05-04, not '1/12/2026'"
            ),
        ),
        (
            ["add", "--title", "x", "--starts", "2027-03-28 02:30", "--ends", "2027-03-28 04:00"],
            (
                "starts: 2027-03-28T02:30 does not exist, the clocks skip it in Europe/Zurich; "
                "write it with an offset: 2027-03-28T02:30+01:00 or 2027-03-28T02:30+02:00"
            ),
        ),
        (
            ["submit", "fffff"],
            (
                "'fffff' is not the id of any event: ids are hexadecimal; give all of it, or at"
                " least 6 of its first digits"
            ),
        ),
    ],
)
def test_bad_input_ends_with_exit_code_2_and_what_is_wrong(run, listed, arguments, message):
    before = listed()
    assert run(*arguments, code=2).stderr == f"{message}\n"
    assert listed() == before


def test_all_that_is_wrong_is_named_at_once(run):
    said = run("add", "--class", "27GB", "--user", "x@y", *TIMES, code=2).stderr.splitlines()

    assert [line.partition(":")[0] for line in said] == ["title", "classes", "users"]


def test_show_has_the_event_and_its_versions(run, add):
    event_id = add("--class", "27Ga")
    for command in ("submit", "publish"):
        run(command, event_id)
    version = run("edit", event_id, "--location", "Bern").stdout.split()[0]

    page = run("show", event_id[:8]).stdout
    shown = json.loads(run("show", version, "--json").stdout)

    assert "27Ga" in page
    assert version[:8] in page
    assert (shown["location"], [one["id"] for one in shown["versions"]]) == ("Bern", [event_id])


def test_unknown_id_ends_with_exit_code_1(run):
    assert run("submit", "ffffff", code=1).stderr == "no event's id begins with ffffff\n"


def test_what_the_state_does_not_allow_ends_with_exit_code_1(run, add):
    event_id = add()
    refusal = f"cannot publish event {event_id}: its state is draft, which allows"
    assert run("publish", event_id, code=1).stderr == f"{refusal} edit, submit, delete\n"


def test_time_that_happens_twice_is_the_first_and_said(run, listed):
    result = run(
        "add", "--title", "x", "--starts", "2026-10-25 02:30", "--ends", "2026-10-25T02:30+01:00"
    )
    said = "starts: 2026-10-25 02:30 happens twice, the first is taken; the second is"
    assert result.stderr == f"{said} 2026-10-25T02:30+01:00\n"
    row = listed()[result.stdout.split()[0]]
    assert (row["starts"], row["ends"]) == (
        "2026-10-25T00:30:00Z",
        "2026-10-25T01:30:00Z",
    )


def test_list_as_table_says_for_whom_an_event_is(run, add):
    add("--class", "27Ga")
    add("--title", "[red]Fair[/]", "--starts", "2026-12-01", "--ends", "2026-12-02")
    lines = run(
        "list", "--state", "draft", "--from", "2026-12-01", "--to", "2026-12-01"
    ).stdout.splitlines()
    shown = [re.split(r"\s{2,}", line.strip())[2:] for line in lines[1:]]
    assert shown == [
        ["2026-12-01", "2026-12-02", "[red]Fair[/]", "the whole school", "students"],
        ["2026-12-01 08:00", "2026-12-01 12:00", "Trip", "27Ga", "students"],
    ]


def test_a_repeated_event_from_draft_to_a_cancelled_date(run, add, listed):
    rule = ("--repeats", "FREQ=WEEKLY;COUNT=5", "--without", "2026-12-29")
    event_id = add(*rule)
    run("submit", event_id)
    run("publish", event_id)
    assert run("cancel", event_id, "--on", "2026-12-08").stdout == (
        f"{event_id} cancelled on 2026-12-08\n"
    )
    moved = ("--starts", "2026-12-16 18:00", "--ends", "2026-12-16 19:00", "--location", "Church")
    version = run("edit", event_id, "--on", "2026-12-15", *moved).stdout.split()[0]

    shown = run("show", version).stdout
    assert "FREQ=WEEKLY;COUNT=5" in shown
    assert "2026-12-08 cancelled, 2026-12-15 changed starts 2026-12-16 18:00" in shown
    assert [one["state"] for one in listed()[event_id]["dates"]] == ["cancelled", "left_out"]

    run("edit", version, "--on", "2026-12-15", "--as-usual")
    run("edit", version, "--without", "")
    assert [one["state"] for one in listed()[version]["dates"]] == ["cancelled"]
    assert run("restore", event_id, "--on", "2026-12-08").stdout == (
        f"{event_id} takes place on 2026-12-08\n"
    )
    assert [one["state"] for one in listed()[event_id]["dates"]] == ["left_out"]


def test_what_a_date_cannot_have_is_a_usage_error(run, add):
    event_id = add("--repeats", "FREQ=WEEKLY;COUNT=5")
    said = run("edit", event_id, "--on", "2026-12-08", "--audience", "all", code=2).output
    assert "--on changes one date, which has no audience" in said
    said = run("edit", event_id, "--as-usual", code=2).output
    assert "--as-usual needs --on, and nothing else" in said
