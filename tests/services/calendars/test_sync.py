"""Whole runs without a worker: each job is claimed, run and finished as a worker would."""

import json
import os
import re
import shutil
import subprocess
import sys
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from nightshift.database import Base
from nightshift.jobs import batches, claims, rescue
from nightshift.jobs.models import Job, JobState
from nightshift.jobs.run import Run
from sqlalchemy import delete, func, insert, select, update

from examples import made_up_school
from services.calendars import feeds, revisions, sync
from services.calendars.jobs import BuildFeeds, FinishSync, SyncCalendars
from services.calendars.models import Feed, SyncRun
from services.calendars.store import FeedStore, read_name
from services.calendars.sync import Rules
from services.school.loading import load
from services.school.models import Audience, Event, EventState, SchoolClass, User
from tests.conftest import make_runtime
from tests.lint import lint
from tests.services.calendars.conftest import LONG_AGO, Calendars, on_both_stores

ROOT = Path(__file__).parents[3]
NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


def summary(run: dict[str, Any]) -> dict[str, Any]:
    return {name: run[name] for name in ("state", "built", "unchanged", "failed", "removed")}


def counts(state: str = "complete", **counted: int) -> dict[str, Any]:
    return {"state": state, "built": 0, "unchanged": 0, "failed": 0, "removed": 0} | counted


FEEDS = 4 + 6 + 22


@on_both_stores
def test_run_builds_every_feed(calendars: Calendars) -> None:
    run_id = calendars.enqueue()

    kinds = calendars.run_all(run_id)

    run = calendars.record(run_id)
    assert kinds == ["calendars.sync", "calendars.build_feeds", "calendars.finish_sync"]
    assert calendars.job(run_id).state == JobState.SUCCEEDED
    assert summary(run) == counts(built=FEEDS)
    assert (run["run"], run["errors"]) == (str(run_id), [])
    assert run["seconds"] > 0
    assert [lint(content) for content in calendars.files().values()] == [[]] * FEEDS


def test_edited_translation_renders_every_event_anew(calendars: Calendars, tmp_path: Path) -> None:
    calendars.sync()
    before = calendars.files()
    release = tmp_path / "release"
    ignored = shutil.ignore_patterns("__pycache__")
    for package in ("project", "services", "tasks"):
        shutil.copytree(ROOT / package, release / package, ignore=ignored)

    def sync() -> dict[str, Any]:
        command = [
            sys.executable,
            "-m",
            "celery",
            "-A",
            "project",
            "feeds",
            "sync",
            "--inline",
            "--json",
        ]
        run = subprocess.run(
            command, cwd=release, capture_output=True, check=True, text=True, timeout=60
        )
        result: dict[str, Any] = json.loads(run.stdout)
        return result

    assert summary(sync()) == counts(unchanged=FEEDS)
    german = release / "services" / "locales" / "de" / "messages.po"
    german.write_text(
        german.read_text(encoding="utf-8").replace("Unterricht betroffen", "Lektionen betroffen"),
        encoding="utf-8",
    )

    # French ones hold the same events with a new number: a revision is the same in all languages.
    assert summary(sync()) == counts(built=FEEDS)
    after = calendars.files()
    assert b"SEQUENCE:1" not in b"".join(before.values())
    assert b"SEQUENCE:0" not in b"".join(after.values())
    assert {name: b"Unterricht betroffen" in content for name, content in before.items()} == {
        name: b"Lektionen betroffen" in content for name, content in after.items()
    }


@on_both_stores
def test_second_run_writes_nothing(calendars: Calendars) -> None:
    calendars.sync()
    before = calendars.stamps()
    run_id = calendars.enqueue()

    kinds = calendars.run_all(run_id)

    assert kinds == ["calendars.sync", "calendars.finish_sync"]
    assert summary(calendars.record(run_id)) == counts(unchanged=FEEDS)
    assert calendars.stamps() == before


@on_both_stores
def test_run_mends_what_was_lost(calendars: Calendars) -> None:
    calendars.sync()
    before = calendars.files()
    lost, short, *_ = sorted(calendars.files())
    calendars.store.remove(*read_name(lost))
    calendars.store.write(*read_name(short), b"BEGIN:VCALENDAR")

    run = calendars.sync()

    assert summary(run) == counts(built=2, unchanged=FEEDS - 2)
    assert calendars.files() == before


@on_both_stores
def test_run_builds_what_changed_and_tells_that_it_did(calendars: Calendars) -> None:
    calendars.sync()
    calendars.change(
        update(Event)
        .where(Event.title == "Prüfung Mathematik: Vektoren, Matrizen")
        .values(location="Zimmer 1")
    )

    run = calendars.sync()

    # 27Ga, the Gymnasium, the three students, Peter who subscribed to 27Ga, and the class teacher.
    assert summary(run) == counts(built=7, unchanged=FEEDS - 7)
    told = [content for content in calendars.files().values() if b"SEQUENCE:1\r\n" in content]
    assert [content.count(b"SEQUENCE:1\r\n") for content in told] == [1] * 7


@on_both_stores
def test_run_removes_orphans(calendars: Calendars) -> None:
    calendars.sync()
    calendars.change(delete(User).where(User.email == "beat.buehler@schueler.example"))

    run = calendars.sync()

    assert summary(run) == counts(unchanged=FEEDS - 1, removed=1)
    assert len(calendars.files()) == FEEDS - 1


@on_both_stores
def test_run_names_the_event_that_cannot_be_shown(calendars: Calendars) -> None:
    bad = {
        "id": UUID(int=66),
        "state": EventState.PUBLISHED,
        "title": "Rückwärts",
        "audience": Audience.ALL,
        "starts_on": date(2026, 12, 2),
        "ends_on": date(2026, 12, 1),
        "created_at": NOW,
    }
    calendars.change(insert(Event).values(bad))

    run, again = calendars.sync(), calendars.sync()

    error = {
        "event": str(UUID(int=66)),
        "title": "Rückwärts",
        "error": "the event ends on 2026-12-01, before it starts on 2026-12-02",
    }
    assert summary(run) == counts("partial", built=FEEDS)
    assert run["errors"] == again["errors"] == [error]
    assert summary(again) == counts("partial", unchanged=FEEDS)
    assert [lint(content) for content in calendars.files().values()] == [[]] * FEEDS


# --- two at once, and runs that die ---


@on_both_stores
def test_run_is_the_only_one_until_its_record_is_written(calendars: Calendars) -> None:
    run_id = calendars.enqueue()
    meanwhile = [calendars.enqueue()]
    while calendars.step(run_id):
        if calendars.job(run_id).state != JobState.SUCCEEDED:
            meanwhile.append(calendars.enqueue())

    assert meanwhile == [run_id] * 3
    assert calendars.enqueue() != run_id


@pytest.mark.parametrize("kind", [SyncCalendars, BuildFeeds, FinishSync])
@on_both_stores
def test_run_whose_worker_was_killed_is_picked_up_again(
    calendars: Calendars, kind: type[SyncCalendars]
) -> None:
    run_id, killed = calendars.enqueue(), uuid4()
    while (job := calendars.next(run_id)) and job[1] != kind.policy.kind:
        calendars.step(run_id)
    assert job is not None
    calendars.claim(job[0], killed)
    with calendars.runtime.unit_of_work() as session:
        released = rescue.release_worker(session, killed)

    calendars.run_all(run_id)

    assert released == 1
    assert summary(calendars.record(run_id)) == counts(built=FEEDS)
    assert calendars.job(run_id).state == JobState.SUCCEEDED


@on_both_stores
def test_chunk_that_died_before_its_commit_is_built_again_to_the_same_bytes(
    calendars: Calendars,
) -> None:
    run_id = calendars.enqueue()
    calendars.step(run_id)
    found = calendars.next(run_id)
    assert found is not None
    killed = uuid4()
    taken = calendars.claim(found[0], killed)
    run = Run(taken, calendars.runtime)
    with calendars.runtime.read_only() as session:  # It writes the files, and is rolled back.
        args = BuildFeeds.model_validate(taken.args)
        sync.build_chunk(session, args, run, calendars.store, calendars.rules)
    orphaned = calendars.files()
    with calendars.runtime.unit_of_work() as session:
        rescue.release_worker(session, killed)

    calendars.run_all(run_id)

    assert summary(calendars.record(run_id)) == counts(built=FEEDS)
    assert calendars.files() == orphaned


@on_both_stores
def test_plan_that_lost_its_claim_starts_no_chunks(calendars: Calendars) -> None:
    run_id, slow = calendars.enqueue(), uuid4()
    lost = Run(calendars.claim(run_id, slow), calendars.runtime)
    with calendars.runtime.unit_of_work() as session:
        rescue.release_worker(session, slow)
    calendars.step(run_id)

    with pytest.raises(claims.LostClaim):
        sync.plan(lost, calendars.store, calendars.rules)
    calendars.run_all(run_id)

    with calendars.runtime.read_only() as session:
        assert len(batches.read_children(session, run_id, "calendars.build_feeds")) == 1
    assert summary(calendars.record(run_id)) == counts(built=FEEDS)


# --- what fails ---


@pytest.mark.parametrize(
    ("values", "failed"),
    [
        ({"max_attempts": 1, "args": {"feed_ids": [2**70]}}, 1),
        ({"args": {"run_id": "no id"}}, 6),
    ],
    ids=["failed", "discarded"],
)
@on_both_stores
def test_run_with_a_failed_chunk_is_partial_and_still_removes_orphans(
    calendars: Calendars, values: dict[str, Any], failed: int
) -> None:
    calendars.sync()
    calendars.change(
        delete(User).where(User.email == "beat.buehler@schueler.example"),
        update(SchoolClass).values(display_name="Neuer Name"),
    )
    run_id = calendars.enqueue()
    calendars.step(run_id)
    with calendars.runtime.read_only() as session:
        (chunk,) = batches.read_children(session, run_id, "calendars.build_feeds")
    calendars.change(
        update(Job)
        .where(Job.id == chunk["id"])
        .values({**values, "args": chunk["args"] | values["args"]})
    )

    calendars.run_all(run_id)

    run = calendars.record(run_id)
    ended = calendars.job(chunk["id"])
    told = ended.errors[-1]["message"] if ended.errors else ended.result
    assert summary(run) == counts("partial", unchanged=FEEDS - 7, failed=failed, removed=1)
    assert run["errors"] == [{"chunk": str(chunk["id"]), "error": told}]
    assert calendars.job(run_id).state == JobState.FAILED
    assert calendars.enqueue() != run_id


@on_both_stores
def test_chunk_that_fails_is_tried_again_later(calendars: Calendars) -> None:
    run_id = calendars.enqueue()
    calendars.step(run_id)
    found = calendars.next(run_id)
    assert found is not None
    chunk = calendars.job(found[0])
    calendars.change(
        update(Job).where(Job.id == chunk.id).values(args={**chunk.args, "feed_ids": [2**70]})
    )  # No database has such an id.
    calendars.step(run_id)
    failed, meanwhile = calendars.job(chunk.id), calendars.enqueue()
    calendars.change(update(Job).where(Job.id == chunk.id).values(args=chunk.args, run_at=LONG_AGO))

    calendars.run_all(run_id)

    assert (failed.state, failed.attempt, len(failed.errors or []), meanwhile) == (
        JobState.SCHEDULED,
        1,
        1,
        run_id,
    )
    assert summary(calendars.record(run_id)) == counts(built=FEEDS)


def test_run_on_a_store_that_cannot_be_written_is_partial(calendars: Calendars) -> None:
    root = calendars.store.root
    root.write_bytes(b"a file where the folder should be")

    run = calendars.sync()

    assert summary(run) == counts("partial", failed=FEEDS)
    assert {error["error"] for error in run["errors"]} == {
        f"the feed store at {root} cannot be written: Not a directory"
    }


def test_run_that_cannot_remove_an_orphan_is_partial(calendars: Calendars) -> None:
    calendars.sync()
    calendars.change(delete(User).where(User.email == "beat.buehler@schueler.example"))
    folder = calendars.store.root / "users"
    folder.rename(folder.with_name("moved"))
    folder.write_bytes(b"a file where the folder should be")

    run = calendars.sync()

    assert run["state"] == "partial"


def test_run_cleans_up_after_writers_that_were_killed(calendars: Calendars) -> None:
    folder = calendars.store.root / "users"
    folder.mkdir(parents=True)
    young, old = folder / ".1.a.part", folder / ".1.b.part"
    young.touch()
    old.touch()
    os.utime(old, (0, 0))

    calendars.sync()

    assert (young.exists(), old.exists()) == (True, False)


# --- chunks ---


@on_both_stores
def test_big_school_is_built_in_chunks(calendars: Calendars) -> None:
    with calendars.runtime.unit_of_work() as session:
        for table in reversed(Base.metadata.sorted_tables):
            session.execute(table.delete())
        made_up_school.generate(
            session,
            users=600,
            classes=20,
            departments=4,
            events=60,
            seed=5,
            zone=calendars.rules.zone,
            now=NOW,
            today=NOW.date(),
        )
    run_id = calendars.enqueue()

    kinds = calendars.run_all(run_id)

    with calendars.runtime.read_only() as session:
        chunks = batches.read_children(session, run_id, "calendars.build_feeds")
        total = session.scalar(select(func.count()).select_from(Feed))
    sizes = sorted(len(chunk["args"]["feed_ids"]) for chunk in chunks)
    assert kinds == [
        "calendars.sync",
        *["calendars.build_feeds"] * len(chunks),
        "calendars.finish_sync",
    ]
    assert (max(sizes), sum(sizes)) == (sync.FEEDS_A_CHUNK, total)
    assert summary(calendars.record(run_id)) == counts(built=total)
    assert calendars.sync()["unchanged"] == total


# --- the record ---


@on_both_stores
def test_totals_are_those_of_the_feeds(calendars: Calendars) -> None:
    calendars.sync()

    with calendars.runtime.read_only() as session:
        totals = feeds.count_feeds(session)
        last = sync.find_last_run(session)

    files = calendars.files()
    for kind, folder, count in (
        ("class", "classes", 6),
        ("department", "departments", 4),
        ("user", "users", 22),
    ):
        contents = [content for name, content in files.items() if name.startswith(folder)]
        # A repeated event is several VEVENTs with one UID.
        events = sum(len(set(re.findall(rb"\r\nUID:.*", content))) for content in contents)
        assert totals[kind] == (count, 0, events, sum(map(len, contents)))
    assert last is not None
    assert last.built == FEEDS


@on_both_stores
def test_record_is_json(calendars: Calendars) -> None:
    run = calendars.sync()

    assert json.loads(json.dumps(run)) == run
    assert sorted(run) == [
        "built",
        "errors",
        "failed",
        "removed",
        "run",
        "seconds",
        "state",
        "unchanged",
    ]


@on_both_stores
def test_no_job_names_a_token(calendars: Calendars) -> None:
    calendars.sync()

    with calendars.runtime.read_only() as session:
        tokens = session.scalars(select(Feed.token)).all()
        told = repr(session.execute(select(Job.args, Job.result, Job.errors)).all())
    assert [token for token in tokens if token in told] == []


# --- the same everywhere ---


def build_example(url: str, folder: Path, example_school: Path) -> dict[str, bytes]:
    """Build the example school's feeds at NOW, and return their bytes by their owners' names.

    The transaction is rolled back.
    """
    runtime = make_runtime(database_url=url, feed_store=folder)
    rules, store = runtime[Rules], runtime[FeedStore]
    window = rules.window(NOW)
    with runtime.read_only() as session:
        load(session, example_school, zone=rules.zone, now=NOW)
        revisions.record(session, window, [], domain="school.example", now=NOW)
        feeds.add_missing(session)
        ids = session.scalars(select(Feed.id)).all()
        name = "Kantonsschule"
        run = {"feed_ids": ids, "run_id": uuid4(), "now": NOW}
        feeds.build(session, window, store, school_name=name, **run)
        paths = {
            (row["kind"], row["owner"]): Path(row["path"])
            for row in feeds.list_feeds(session, store)
        }
        session.rollback()
    runtime.close()
    return {f"{kind} {owner}": path.read_bytes() for (kind, owner), path in paths.items()}


def test_bytes_are_the_same_on_sqlite_and_postgres(
    sqlite_url: str, postgres_url: str, tmp_path: Path, example_school: Path
) -> None:
    of_sqlite, of_postgres = (
        build_example(url, tmp_path / name, example_school)
        for name, url in (("sqlite", sqlite_url), ("postgres", postgres_url))
    )

    assert len(of_sqlite) == FEEDS
    assert of_sqlite == of_postgres


# --- what a run knows of the one before ---


def inputs_of(calendars: Calendars, run_id: UUID) -> bytes | None:
    with calendars.runtime.read_only() as session:
        return session.execute(select(SyncRun.inputs).where(SyncRun.id == run_id)).scalar_one()


@on_both_stores
def test_run_after_an_unchanged_one_still_sees_every_change(calendars: Calendars) -> None:
    calendars.sync()
    assert summary(calendars.sync()) == counts(unchanged=FEEDS)
    calendars.change(
        update(SchoolClass).where(SchoolClass.name == "27Ga").values(display_name="Umbenannt")
    )

    changed = calendars.sync()

    assert changed["built"] + changed["unchanged"] == FEEDS
    assert changed["built"] > 0
    assert any("Umbenannt" in content.decode() for content in calendars.files().values())


@on_both_stores
def test_change_that_is_taken_back_during_a_run_is_not_forgotten(calendars: Calendars) -> None:
    """The chunks saw the change; the tables look as they did before it."""
    calendars.sync()
    run_id = calendars.enqueue()
    calendars.change(update(Event).values(title="Kurz anders"))
    calendars.step(run_id)
    calendars.change(update(Event).values(title="Wie vorher"))
    calendars.run_all(run_id)
    if calendars.runtime.engine.dialect.name == "postgresql":
        assert inputs_of(calendars, run_id) is None

    calendars.sync()

    assert "Kurz anders" not in "".join(content.decode() for content in calendars.files().values())
    assert calendars.sync()["built"] == 0


@on_both_stores
def test_bad_event_is_told_by_every_run(calendars: Calendars) -> None:
    calendars.sync()
    with calendars.runtime.read_only() as session:
        # A cancelled one would just have passed.
        takes_place = (
            Event.state == EventState.PUBLISHED,
            Event.ends_at.is_not(None),
            Event.cancelled_at.is_(None),
        )
        event_id = session.execute(
            select(Event.id).where(*takes_place, Event.deleted_at.is_(None)).limit(1)
        ).scalar()
    calendars.change(update(Event).where(Event.id == event_id).values(ends_at=LONG_AGO))

    runs = [calendars.sync(), calendars.sync(), calendars.sync()]

    assert [(run["state"], [error["event"] for error in run["errors"]]) for run in runs] == [
        ("partial", [str(event_id)])
    ] * 3
