"""A made project is green at once: its checks, its tests, its demo.

The one without the school is tried in each run, the other in the long ones.
"""

from email import message_from_bytes
from email.utils import parseaddr

import pytest

pytestmark = pytest.mark.proofs


def test_nothing_is_left_to_commit(made):
    assert made.run("git", "status", "--porcelain") == ""


@pytest.mark.timeout(600)
def test_checks_are_green(made):
    made.run("make", "check")


@pytest.mark.timeout(1800)
def test_tests_are_green(made):
    made.run("make", "test")


@pytest.mark.timeout(300)
def test_demo_ends_in_mails(made):
    shown = made.run("make", "demo")

    # The school's demo shares its folders with `make dev`.
    mails = list((made.folder / "var").glob("**/mail/*.eml"))
    assert len(mails) == 2
    for mail in mails:
        assert parseaddr(message_from_bytes(mail.read_bytes())["To"])[1] in shown


def test_tables_are_those_of_the_migrations(made, tmp_path):
    database = {"DATABASE_URL": f"sqlite:///{tmp_path}/shop.db"}

    made.run("alembic", "upgrade", "heads", **database)

    made.run("alembic", "check", **database)


def test_edited_engine_is_named(made):
    kept = made.read("engine/nightshift/errors.py")
    try:
        (made.folder / "engine/nightshift/errors.py").write_text(kept + "\n", encoding="utf-8")
        (made.folder / "engine/nightshift/more.py").touch()

        refused = made.try_to_run("python", "engine/check.py")
    finally:
        (made.folder / "engine/nightshift/errors.py").write_text(kept, encoding="utf-8")
        (made.folder / "engine/nightshift/more.py").unlink()
    assert refused.returncode == 1
    assert refused.stderr.splitlines() == [
        "engine/nightshift/errors.py was edited",
        "engine/nightshift/more.py was added",
        "engine/ comes from the template, and is not for editing: docs/updating.md",
    ]
