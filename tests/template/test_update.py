"""An update from one tag to the next brings the engine's changes and keeps the project's."""

import pytest

from tests.conftest import ROOT
from tests.making import Project, make_environment, make_project

pytestmark = pytest.mark.proofs

ENGINE = "engine/nightshift/observe/metrics.py"
OLD = "LATELY = timedelta(minutes=5)"
NEW = "LATELY = timedelta(minutes=6)"
REMOVED = ".editorconfig"
IMAGE = "image: redis:7.4.9-bookworm"


@pytest.fixture
def template(tmp_path):
    """Return a clone of this repository's last commit, which is the release 1.0.0."""
    clone = Project(tmp_path / "template")
    Project(ROOT).run("git", "clone", "--quiet", str(ROOT), str(clone.folder))
    clone.run("git", "tag", "v1.0.0")
    return clone


@pytest.fixture
def shop(template, tmp_path):
    """Return a project that was made from the release 1.0.0."""
    shop = make_project(
        tmp_path / "shop", school=False, name="shop", source=template.folder, ref="v1.0.0"
    )
    make_environment(shop)
    shop.run("git", "init", "--quiet")
    shop.commit("Start from Nightshift")
    return shop


def release(template, *changes):
    """Change the template, and tag it as the release 1.1.0."""
    for change in changes:
        template.change(*change)
    template.commit("Change")
    template.run("git", "tag", "v1.1.0")


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_update_brings_the_engine_and_keeps_what_was_changed(template, shop):
    job = ('"37 3 * * *"', '"47 4 * * *"')
    shop.change("project/reminders/component.py", *job)
    shop.change("project/reminders/settings.py", "timedelta(days=30)", "timedelta(days=60)")
    shop.change(".env.example", "REMINDERS_KEEP=P30D", "REMINDERS_KEEP=P60D")
    shop.change("docker-compose.yml", "shm_size: 128m", "shm_size: 256m")
    (shop.folder / REMOVED).unlink()
    shop.commit("Make it ours")
    release(
        template,
        (ENGINE, OLD, NEW),
        ("docker-compose.yml", IMAGE, "image: redis:7.4.10-bookworm"),
        (REMOVED, "max_line_length = 100", "max_line_length = 99"),
    )

    shop.run("make", "update")

    assert NEW in shop.read(ENGINE)
    assert not (shop.folder / REMOVED).exists()
    assert job[1] in shop.read("project/reminders/component.py")
    assert "timedelta(days=60)" in shop.read("project/reminders/settings.py")
    assert "REMINDERS_KEEP=P60D" in shop.read(".env.example")
    assert "shm_size: 256m" in shop.read("docker-compose.yml")
    assert "image: redis:7.4.10-bookworm" in shop.read("docker-compose.yml")
    assert "_commit: v1.1.0" in shop.read(".copier-answers.yml")
    shop.commit("Update")
    shop.run("make", "check")
    shop.run("make", "test")


def test_conflict_is_named_by_the_check(template, shop):
    shop.change("docker-compose.yml", IMAGE, "image: redis:7.2.0-bookworm")
    shop.commit("Keep an older Redis")
    release(template, ("docker-compose.yml", IMAGE, "image: redis:7.4.10-bookworm"))

    shop.run("make", "update")

    refused = shop.try_to_run("make", "check")
    assert refused.returncode == 2
    assert refused.stdout.splitlines() == ["docker-compose.yml"]
    assert refused.stderr.splitlines()[0] == (
        "these files have conflict markers: choose between the two sides, and remove the markers"
    )


@pytest.mark.faults
def test_edited_engine_meets_an_update_with_markers(template, shop):
    shop.change(ENGINE, OLD, "LATELY = timedelta(minutes=7)")
    shop.commit("Edit the engine")
    release(template, (ENGINE, OLD, NEW))

    shop.run("make", "update")

    refused = shop.try_to_run("make", "check")
    assert refused.stdout.splitlines() == [ENGINE]


def test_make_new_makes_and_commits_a_project_of_the_last_commit(template, tmp_path):
    make_environment(template)
    (template.folder / "services/stray.py").touch()

    said = template.run("make", "new", "NAME=new-shop", f"DIR={tmp_path}/new-shop")

    made = Project(tmp_path / "new-shop")
    assert said.splitlines()[:2] == [
        "The last commit is used: what was changed since is not in the new project.",
        f"new-shop is made. Next: cd {tmp_path}/new-shop && make demo",
    ]
    assert made.run("git", "log", "--format=%s") == "Start from Nightshift\n"
    assert made.run("git", "status", "--porcelain") == ""
    assert "services/stray.py" not in made.files()


def refuse(template, *words):
    """Return the line that `make new` ends with, before make's own."""
    refused = template.try_to_run("make", "new", *words)
    assert refused.returncode == 2
    line, own = refused.stderr.splitlines()
    assert own.startswith("make: ")
    return line


def test_make_new_says_what_is_wrong_in_one_line(template, tmp_path):
    make_environment(template)
    (tmp_path / "shop").mkdir()

    assert refuse(template) == "the name is missing: make new NAME=shop"
    there = "../shop is there already: name another folder with DIR="
    assert refuse(template, "NAME=shop") == there
    assert "Write small letters" in refuse(template, "NAME=It's", "DIR=../its")
    assert not (tmp_path / "its").exists()
