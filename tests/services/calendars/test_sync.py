"""Whole runs without a worker: each job is claimed, run and finished as a worker would, on a database of its own."""

import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import delete, func, insert, select, update

from project.bootstrap import Bootstrap
from project.settings import Settings
from services.calendars import feeds, revisions, sync
from services.calendars.jobs import BuildFeeds, FinishSync, SyncCalendars
from services.calendars.lint import lint
from services.calendars.models import Feed, SyncRun
from services.database import Base
from services.jobs import batches, claims, rescue
from services.jobs.models import Job, JobState
from services.jobs.run import Run
from services.school import demo
from services.school.loading import load
from services.school.models import Audience, Event, EventState, SchoolClass, User
from tests.services.calendars.conftest import LONG_AGO, House

ROOT = Path(__file__).parents[3]
NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


def summary(run: dict[str, Any]) -> dict[str, Any]:
    return {name: run[name] for name in ("state", "built", "unchanged", "failed", "removed")}


def counts(state: str = "complete", **counted: int) -> dict[str, Any]:
    return {"state": state, "built": 0, "unchanged": 0, "failed": 0, "removed": 0} | counted


FEEDS = 4 + 6 + 22


def test_run_builds_every_feed(house: House) -> None:
    run_id = house.enqueue()

    kinds = house.work_off(run_id)

    run = house.record(run_id)
    assert kinds == ["calendars.sync", "calendars.build_feeds", "calendars.finish_sync"]
    assert house.job(run_id).state == JobState.SUCCEEDED
    assert summary(run) == counts(built=FEEDS)
    assert (run["run"], run["errors"]) == (str(run_id), [])
    assert run["seconds"] > 0
    assert [lint(content) for content in house.files().values()] == [[]] * FEEDS


def test_edited_translation_renders_every_event_anew(house: House, tmp_path: Path) -> None:
    house.sync()
    before = house.files()
    release = tmp_path / "release"
    for package in ("project", "services", "tasks"):
        shutil.copytree(ROOT / package, release / package, ignore=shutil.ignore_patterns("__pycache__"))

    def sync() -> dict[str, Any]:
        command = [sys.executable, "-m", "celery", "-A", "project", "feeds", "sync", "--inline", "--json"]
        run = subprocess.run(command, cwd=release, capture_output=True, check=True, text=True, timeout=60)
        result: dict[str, Any] = json.loads(run.stdout)
        return result

    assert summary(sync()) == counts(unchanged=FEEDS)
    german = release / "services" / "locales" / "de" / "nightshift.po"
    german.write_text(german.read_text(encoding="utf-8").replace("Unterricht betroffen", "Lektionen betroffen"), encoding="utf-8")

    # One calendar holds no event. French ones hold the same events with a new number: a revision is one in all languages.
    assert summary(sync()) == counts(built=FEEDS - 1, unchanged=1)
    after = house.files()
    assert b"SEQUENCE:1" not in b"".join(before.values())
    assert b"SEQUENCE:0" not in b"".join(after.values())
    assert {name: b"Unterricht betroffen" in content for name, content in before.items()} == {
        name: b"Lektionen betroffen" in content for name, content in after.items()
    }


def test_second_run_writes_nothing(house: House) -> None:
    house.sync()
    before = house.stamps()
    run_id = house.enqueue()

    kinds = house.work_off(run_id)

    assert kinds == ["calendars.sync", "calendars.finish_sync"]
    assert summary(house.record(run_id)) == counts(unchanged=FEEDS)
    assert house.stamps() == before


def test_run_mends_what_was_lost(house: House) -> None:
    house.sync()
    before = house.files()
    lost, short, *_ = sorted(house.files())
    (house.boot.feed_store.root / lost).unlink()
    (house.boot.feed_store.root / short).write_bytes(b"BEGIN:VCALENDAR")

    run = house.sync()

    assert summary(run) == counts(built=2, unchanged=FEEDS - 2)
    assert house.files() == before


def test_run_builds_what_changed_and_tells_that_it_did(house: House) -> None:
    house.sync()
    house.change(update(Event).where(Event.title == "Prüfung Mathematik: Vektoren, Matrizen").values(location="Zimmer 1"))

    run = house.sync()

    # 27Ga, the Gymnasium, the three students, Peter who subscribed to 27Ga, and the class teacher.
    assert summary(run) == counts(built=7, unchanged=FEEDS - 7)
    told = [content for content in house.files().values() if b"SEQUENCE:1\r\n" in content]
    assert [content.count(b"SEQUENCE:1\r\n") for content in told] == [1] * 7


def test_run_removes_orphans(house: House) -> None:
    house.sync()
    house.change(delete(User).where(User.email == "beat.buehler@schueler.example"))

    run = house.sync()

    assert summary(run) == counts(unchanged=FEEDS - 1, removed=1)
    assert len(house.files()) == FEEDS - 1


def test_run_names_the_event_that_cannot_be_shown(house: House) -> None:
    bad = {
        "id": UUID(int=66),
        "state": EventState.PUBLISHED,
        "title": "Rückwärts",
        "audience": Audience.ALL,
        "starts_on": date(2026, 12, 2),
        "ends_on": date(2026, 12, 1),
        "created_at": NOW,
    }
    house.change(insert(Event).values(bad))

    run, again = house.sync(), house.sync()

    error = {
        "event": str(UUID(int=66)),
        "title": "Rückwärts",
        "error": "the event ends on 2026-12-01, before it starts on 2026-12-02",
    }
    assert summary(run) == counts("partial", built=FEEDS)
    assert run["errors"] == again["errors"] == [error]
    assert summary(again) == counts("partial", unchanged=FEEDS)
    assert [lint(content) for content in house.files().values()] == [[]] * FEEDS


# --- two at once, and runs that die ---


def test_run_is_the_only_one_until_its_record_is_written(house: House) -> None:
    run_id = house.enqueue()
    meanwhile = [house.enqueue()]
    while house.step(run_id):
        if house.job(run_id).state != JobState.SUCCEEDED:
            meanwhile.append(house.enqueue())

    assert meanwhile == [run_id] * 3
    assert house.enqueue() != run_id


def claim(house: House, job_id: UUID, worker: UUID) -> claims.Claim:
    with house.boot.unit_of_work() as session:
        taken = claims.claim(session.connection(), job_id, worker_id=worker, pid=1)
    assert taken is not None
    return taken


@pytest.mark.parametrize("kind", [SyncCalendars, BuildFeeds, FinishSync])
def test_run_whose_worker_was_killed_is_picked_up_again(house: House, kind: type[SyncCalendars]) -> None:
    run_id, killed = house.enqueue(), uuid4()
    while (job := house.next(run_id)) and job[1] != kind.policy.kind:
        house.step(run_id)
    assert job is not None
    claim(house, job[0], killed)
    with house.boot.unit_of_work() as session:
        freed = rescue.free_worker(session, killed)

    house.work_off(run_id)

    assert freed == 1
    assert summary(house.record(run_id)) == counts(built=FEEDS)
    assert house.job(run_id).state == JobState.SUCCEEDED


def test_chunk_that_died_before_its_commit_is_built_again_to_the_same_bytes(house: House) -> None:
    run_id = house.enqueue()
    house.step(run_id)
    found = house.next(run_id)
    assert found is not None
    killed = uuid4()
    taken = claim(house, found[0], killed)
    run = Run(taken, house.boot.unit_of_work, house.boot.read_only)
    with house.boot.read_only() as session:  # It writes the files, and is rolled back.
        args = BuildFeeds.model_validate(taken.args)
        sync.build_chunk(session, args, run, house.boot.feed_store, house.boot.rules)
    orphaned = house.files()
    with house.boot.unit_of_work() as session:
        rescue.free_worker(session, killed)

    house.work_off(run_id)

    assert summary(house.record(run_id)) == counts(built=FEEDS)
    assert house.files() == orphaned


def test_plan_that_lost_its_claim_starts_no_chunks(house: House) -> None:
    run_id, slow = house.enqueue(), uuid4()
    lost = Run(claim(house, run_id, slow), house.boot.unit_of_work, house.boot.read_only)
    with house.boot.unit_of_work() as session:
        rescue.free_worker(session, slow)
    house.step(run_id)

    with pytest.raises(claims.LostClaim):
        sync.plan(lost, house.boot.feed_store, house.boot.rules)
    house.work_off(run_id)

    with house.boot.read_only() as session:
        assert len(batches.children(session, run_id, "calendars.build_feeds")) == 1
    assert summary(house.record(run_id)) == counts(built=FEEDS)


# --- what fails ---


@pytest.mark.parametrize(
    ("values", "failed"),
    [
        ({"max_attempts": 1, "args": {"feed_ids": [2**70]}}, 1),
        ({"args": {"run_id": "no id"}}, 6),
    ],
    ids=["failed", "discarded"],
)
def test_run_with_a_failed_chunk_is_partial_and_still_removes_orphans(house: House, values: dict[str, Any], failed: int) -> None:
    house.sync()
    house.change(
        delete(User).where(User.email == "beat.buehler@schueler.example"),
        update(SchoolClass).values(display_name="Neuer Name"),
    )
    run_id = house.enqueue()
    house.step(run_id)
    with house.boot.read_only() as session:
        (chunk,) = batches.children(session, run_id, "calendars.build_feeds")
    house.change(update(Job).where(Job.id == chunk["id"]).values({**values, "args": chunk["args"] | values["args"]}))

    house.work_off(run_id)

    run = house.record(run_id)
    ended = house.job(chunk["id"])
    told = ended.errors[-1]["message"] if ended.errors else ended.result
    assert summary(run) == counts("partial", unchanged=FEEDS - 7, failed=failed, removed=1)
    assert run["errors"] == [{"chunk": str(chunk["id"]), "error": told}]
    assert house.job(run_id).state == JobState.FAILED
    assert house.enqueue() != run_id


def test_chunk_that_fails_is_tried_again_later(house: House) -> None:
    run_id = house.enqueue()
    house.step(run_id)
    found = house.next(run_id)
    assert found is not None
    chunk = house.job(found[0])
    house.change(
        update(Job).where(Job.id == chunk.id).values(args={**chunk.args, "feed_ids": [2**70]})
    )  # No database has such an id.
    house.step(run_id)
    failed, meanwhile = house.job(chunk.id), house.enqueue()
    house.change(update(Job).where(Job.id == chunk.id).values(args=chunk.args, run_at=LONG_AGO))

    house.work_off(run_id)

    assert (failed.state, failed.attempt, len(failed.errors or []), meanwhile) == (JobState.SCHEDULED, 1, 1, run_id)
    assert summary(house.record(run_id)) == counts(built=FEEDS)


def test_run_on_a_store_that_cannot_be_written_is_partial(house: House) -> None:
    root = house.boot.feed_store.root
    root.write_bytes(b"a file where the folder should be")

    run = house.sync()

    assert summary(run) == counts("partial", failed=FEEDS)
    assert {error["error"] for error in run["errors"]} == {f"the feed store at {root} cannot be written: Not a directory"}


def test_run_that_cannot_remove_an_orphan_is_partial(house: House) -> None:
    house.sync()
    house.change(delete(User).where(User.email == "beat.buehler@schueler.example"))
    folder = house.boot.feed_store.root / "users"
    folder.rename(folder.with_name("moved"))
    folder.write_bytes(b"a file where the folder should be")

    run = house.sync()

    assert run["state"] == "partial"


def test_run_cleans_up_after_writers_that_were_killed(house: House) -> None:
    folder = house.boot.feed_store.root / "users"
    folder.mkdir(parents=True)
    young, old = folder / ".1.a.part", folder / ".1.b.part"
    young.touch()
    old.touch()
    os.utime(old, (0, 0))

    house.sync()

    assert (young.exists(), old.exists()) == (True, False)


# --- chunks ---


def test_big_school_is_built_in_chunks(house: House) -> None:
    with house.boot.unit_of_work() as session:
        for table in reversed(Base.metadata.sorted_tables):
            session.execute(table.delete())
        demo.generate(
            session, users=600, classes=20, departments=4, events=60, seed=5, zone=house.boot.rules.zone, now=NOW, today=NOW.date()
        )
    run_id = house.enqueue()

    kinds = house.work_off(run_id)

    with house.boot.read_only() as session:
        chunks = batches.children(session, run_id, "calendars.build_feeds")
        total = session.scalar(select(func.count()).select_from(Feed))
    sizes = sorted(len(chunk["args"]["feed_ids"]) for chunk in chunks)
    assert kinds == ["calendars.sync", *["calendars.build_feeds"] * len(chunks), "calendars.finish_sync"]
    assert (max(sizes), sum(sizes)) == (sync.FEEDS_A_CHUNK, total)
    assert summary(house.record(run_id)) == counts(built=total)
    assert house.sync()["unchanged"] == total


# --- the record ---


def test_totals_are_those_of_the_feeds(house: House) -> None:
    house.sync()

    with house.boot.read_only() as session:
        totals = {row["kind"]: row for row in sync.totals(session)}
        (last,) = sync.last_runs(session)

    files = house.files()
    for kind, folder, count in (("class", "classes", 6), ("department", "departments", 4), ("user", "users", 22)):
        contents = [content for name, content in files.items() if name.startswith(folder)]
        events = sum(content.count(b"BEGIN:VEVENT") for content in contents)
        assert totals[kind] == {"kind": kind, "feeds": count, "events": events, "bytes": sum(map(len, contents))}
    assert last.built == FEEDS


def test_record_is_json(house: House) -> None:
    run = house.sync()

    assert json.loads(json.dumps(run)) == run
    assert sorted(run) == ["built", "errors", "failed", "removed", "run", "seconds", "state", "unchanged"]


def test_no_job_names_a_token(house: House) -> None:
    house.sync()

    with house.boot.read_only() as session:
        tokens = session.scalars(select(Feed.token)).all()
        told = repr(session.execute(select(Job.args, Job.result, Job.errors)).all())
    assert [token for token in tokens if token in told] == []


# --- the same everywhere ---


def build_example(url: str, folder: Path, example_school: Path) -> dict[str, bytes]:
    """Build the example school at NOW, in a transaction that is rolled back, and give the files by their owners' names."""
    boot = Bootstrap(Settings(database_url=url, feed_store=folder))
    Base.metadata.create_all(boot.engine)
    window = boot.rules.window(NOW)
    with boot.read_only() as session:
        load(session, example_school, zone=boot.rules.zone, now=NOW)
        revisions.record(session, window, [], domain="school.example", now=NOW)
        feeds.ensure(session)
        ids = session.scalars(select(Feed.id)).all()
        feeds.build(session, window, boot.feed_store, school_name="Kantonsschule", feed_ids=ids, run_id=uuid4(), now=NOW)
        paths = {(row["kind"], row["owner"]): Path(row["path"]) for row in feeds.listed(session, boot.feed_store)}
        session.rollback()
    boot.disconnect()
    return {f"{kind} {owner}": path.read_bytes() for (kind, owner), path in paths.items()}


def test_bytes_are_the_same_on_sqlite_and_postgres(
    sqlite_url: str, postgres_url: str, tmp_path: Path, example_school: Path
) -> None:
    of_sqlite, of_postgres = (
        build_example(url, tmp_path / name, example_school) for name, url in (("sqlite", sqlite_url), ("postgres", postgres_url))
    )

    assert len(of_sqlite) == FEEDS
    assert of_sqlite == of_postgres


# --- what a run knows of the one before ---


def inputs_of(house: House, run_id: UUID) -> bytes | None:
    with house.boot.read_only() as session:
        return session.execute(select(SyncRun.inputs).where(SyncRun.id == run_id)).scalar_one()


def test_run_after_an_unchanged_one_still_sees_every_change(house: House) -> None:
    house.sync()
    assert summary(house.sync()) == counts(unchanged=FEEDS)
    house.change(update(SchoolClass).where(SchoolClass.name == "27Ga").values(display_name="Umbenannt"))

    changed = house.sync()

    assert changed["built"] + changed["unchanged"] == FEEDS
    assert changed["built"] > 0
    assert any("Umbenannt" in content.decode() for content in house.files().values())


def test_change_that_is_taken_back_during_a_run_is_not_forgotten(house: House) -> None:
    """The chunks saw the change; the tables look as they did before it."""
    house.sync()
    run_id = house.enqueue()
    house.change(update(Event).values(title="Kurz anders"))
    house.step(run_id)
    house.change(update(Event).values(title="Wie vorher"))
    house.work_off(run_id)
    if house.boot.engine.dialect.name == "postgresql":
        assert inputs_of(house, run_id) is None

    house.sync()

    assert "Kurz anders" not in "".join(content.decode() for content in house.files().values())
    assert house.sync()["built"] == 0


def test_bad_event_is_told_by_every_run(house: House) -> None:
    house.sync()
    with house.boot.read_only() as session:
        # A cancelled one would just have passed.
        takes_place = (Event.state == EventState.PUBLISHED, Event.ends_at.is_not(None), Event.cancelled_at.is_(None))
        event_id = session.execute(select(Event.id).where(*takes_place, Event.deleted_at.is_(None)).limit(1)).scalar()
    house.change(update(Event).where(Event.id == event_id).values(ends_at=LONG_AGO))

    runs = [house.sync(), house.sync(), house.sync()]

    assert [(run["state"], [error["event"] for error in run["errors"]]) for run in runs] == [("partial", [str(event_id)])] * 3
