"""`school timetable` and `school holidays`, on an installation of the test's own."""

import json
from datetime import date

import pytest
from nightshift.errors import TransientError
from sqlalchemy import select

from services.school.models import Holiday, Lesson
from services.school.timetable.sync import Sources
from tests.services.school.timetable.builders import Paper, add_school, make_paper, sources


@pytest.fixture
def paper(job_app) -> Paper:
    """Return the timetable of the source `main`; the school has its teachers."""
    paper = make_paper(lessons=6)
    with job_app.runtime.unit_of_work() as session:
        # The command has the machine's clock.
        add_school(session, paper, last=date(2190, 1, 31))
    job_app.runtime._made[Sources] = sources(main=paper)
    return paper


def lessons(job_app):
    with job_app.runtime.read_only() as session:
        return set(session.scalars(select(Lesson.key)))


def test_sync_lists_what_comes(job_app, run, paper):
    code, said = run("timetable", "sync")

    assert code == 0
    assert "comes  lesson  L0000  Mon 07:45–08:30 Fach 0 20G0" in said
    assert said.endswith("main: applied: comes 3 class, 6 lesson\n")
    assert lessons(job_app) == set(paper.lessons)


def test_lines_fit_a_narrow_terminal(job_app, run, paper, monkeypatch):
    monkeypatch.setattr("nightshift.cli.output.WIDE", 80)
    paper.lesson("L0000", subject="Ein sehr langer Name eines Fachs, der in keine Zeile passt" * 2)

    _, said = run("timetable", "sync", "--dry-run")

    assert max(map(len, said.splitlines())) <= 80
    assert "main: would be applied: comes 3 class, 6 lesson\n" in said
    assert lessons(job_app) == set()


def test_refusal_is_said_and_accepted(job_app, run, paper):
    run("timetable", "sync")
    for key in list(paper.lessons)[:4]:
        del paper.lessons[key]

    code, said = run("timetable", "sync")

    assert code == 1
    assert said.endswith(
        "main: refused, 4 of its 6 lessons in Herbst 2026 would go, or lose their classes or"
        " teachers; nothing was changed (goes 4 lesson)\n"
        "If that is right, repeat it with --accept.\n"
    )
    assert len(lessons(job_app)) == 6
    assert run("timetable", "sync", "--accept")[0] == 0
    assert lessons(job_app) == set(paper.lessons)


def test_json_has_all(run, paper):
    code, said = run("timetable", "sync", "main", "--json")

    [result] = json.loads(said)
    assert (code, result["source"], result["state"], result["error"]) == (
        0,
        "main",
        "applied",
        None,
    )
    assert len(result["report"]) == 9
    assert result["report"][0] == {"what": "comes", "kind": "class", "row": "20G0", "detail": ""}


def test_runs_are_listed(run, paper):
    run("timetable", "sync")
    run("timetable", "sync")

    code, said = run("timetable", "runs", "--json")

    assert code == 0
    assert [(one["source"], one["state"]) for one in json.loads(said)] == [
        ("main", "unchanged"),
        ("main", "applied"),
    ]
    assert "comes 3 class, 6 lesson" in run("timetable", "runs")[1]


def test_source_that_fails_is_named_and_the_others_go_on(job_app, run, paper):
    class Broken:
        def read(self, question):
            raise TransientError("the timetable does not answer")

    job_app.runtime._made[Sources] = sources(broken=Broken(), main=paper)

    code, said = run("timetable", "sync")

    assert code == 2
    assert "broken: the timetable does not answer\n" in said
    assert "main: applied" in said


def test_unknown_source_is_refused(run, paper):
    code, said = run("timetable", "sync", "other")

    assert (code, said) == (2, "'other' is no source; TIMETABLE_SOURCES has main\n")


def test_without_a_source_there_is_nothing_to_sync(run):
    assert run("timetable", "sync") == (2, "TIMETABLE_SOURCES names no source of a timetable\n")


# --- holidays ---


def test_public_holidays_become_rows_once(job_app, run):
    code, said = run("holidays", "import", "CH", "--canton", "BE", "--year", "2027")

    assert code == 0
    assert "2027-05-06  Auffahrt" in said
    assert said.endswith("9 new, 0 there already\n")
    again = run("holidays", "import", "CH", "--canton", "BE", "--year", "2027")[1]
    assert again.endswith("0 new, 9 there already\n")


def test_changed_holiday_stays_as_it_is(job_app, run):
    run("holidays", "import", "CH", "--year", "2027")
    with job_app.runtime.unit_of_work() as session:
        session.scalars(select(Holiday).where(Holiday.key == "CH-2027-08-01")).one().name = "Fest"

    run("holidays", "import", "CH", "--year", "2027")

    said = run("holidays", "list", "--from", "2027-08-01", "--json")[1]
    assert [one["name"] for one in json.loads(said) if one["starts"] == "2027-08-01"] == ["Fest"]


def test_names_are_in_the_language_that_is_asked_for(run):
    said = run("holidays", "import", "CH", "--year", "2027", "--language", "fr")[1]

    assert "Nouvel An" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("Schweiz", "--year", "2027"), "no public holidays are known for 'Schweiz'; write"),
        (("CH", "--canton", "XX", "--year", "2027"), "CH has no part 'XX'; its parts are AG, AI,"),
        (("CH", "--year", "20270"), "the year 20270 must lie between 1900 and 2199"),
        (("CH", "--year", "2027", "--language", "xx"), "the holidays of CH have no names in 'xx'"),
    ],
)
def test_what_is_not_known_is_refused(run, words, said):
    code, found = run("holidays", "import", *words)

    assert code == 2
    assert found.startswith(said)


def test_holiday_is_removed(run):
    run("holidays", "import", "CH", "--year", "2027")

    assert run("holidays", "remove", "CH-2027-08-01") == (0, "CH-2027-08-01 removed\n")
    assert run("holidays", "remove", "CH-2027-08-01")[0] == 1
