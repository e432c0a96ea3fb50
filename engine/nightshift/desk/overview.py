"""The first page: workers, queues, failures, what recurs, charts, and the components' tiles."""

import threading
from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import Request
from starlette.responses import Response

from nightshift.component import SEVERITY, Composition, Status
from nightshift.database import Session
from nightshift.desk.charts import draw_bars
from nightshift.desk.recurring import read_entries
from nightshift.desk.site import Cached, Desk, Form, Number, Part, Tile, show_count
from nightshift.errors import InvalidInput, first_line
from nightshift.jobs import care, rescue, statistics
from nightshift.jobs.run import repeat
from nightshift.observe.probes import Finding, examine

DAY, STEP = timedelta(days=1), timedelta(minutes=15)
LATELY = timedelta(minutes=5)
MOST_WAITING = 10_000
MOST_RUNNING, MOST_KINDS = 200, 8
CHECKED_EVERY = timedelta(minutes=1)
KEPT = timedelta(seconds=30)
SHORTLY = timedelta(seconds=4)


@dataclass
class Checks:
    """What `doctor` found last. It may take seconds, so no page waits for it."""

    desk: Desk
    found: tuple[Finding, ...] = ()
    at: datetime | None = None

    def __post_init__(self) -> None:
        self._busy = threading.Lock()

    def read(self) -> tuple[Finding, ...]:
        """Return the findings, and look again beside the caller when they are old."""
        if self.at is None or datetime.now(UTC) - self.at > CHECKED_EVERY:
            threading.Thread(target=self.look, daemon=True).start()
        return self.found

    def look(self) -> None:
        """Run the probes, unless that is being done."""
        if not self._busy.acquire(blocking=False):
            return
        try:
            self.found = tuple(examine(self.desk.runtime))
            self.at = datetime.now(UTC)
        finally:
            self._busy.release()

    def make_tile(self) -> Tile:
        """Return how many checks are well, warn and fail."""
        found = self.read()
        counts = Counter(one.status for one in found)
        numbers = [
            Number("well", counts[Status.OK], "good"),
            Number("warn", counts[Status.WARN], "warn" if counts[Status.WARN] else ""),
            Number("fail", counts[Status.FAIL], "bad" if counts[Status.FAIL] else ""),
        ]
        return Tile("Checks", "/checks", numbers if found else [Number("being asked", "…")])


def make_part(desk: Desk) -> Part:
    """Return the first page and the page of checks."""
    runtime = desk.runtime
    checks = Checks(desk)

    def draw() -> Any:
        with runtime.read_only() as session:
            return draw_day(session, datetime.now(UTC))

    def read_queues_shortly() -> Any:
        with runtime.read_only() as session:
            return read_queues(session, desk)

    chart, queues = Cached(draw, KEPT), Cached(read_queues_shortly, SHORTLY)

    def show(request: Request) -> Response:
        with runtime.read_only() as session:
            workers, failures = read_workers(session, desk), read_failures(session, desk)
            waiting = sum(row["waiting"] for row in queues.read())
            failed = sum(row["number"] for row in failures)
            numbers = [
                Number("waiting", show_count(waiting, MOST_WAITING), "", "/jobs?state=queued"),
                Number(
                    "running", sum(len(one["jobs"]) for one in workers), "", "/jobs?state=running"
                ),
                Number("failed in a day", failed, "bad" if failed else "", "/jobs?state=failed"),
            ]
            return desk.page(
                request,
                "overview.html",
                workers=workers,
                queues=queues.read(),
                failures=failures,
                entries=read_entries(session, desk),
                chart=chart.read(),
                tiles=[
                    Tile("Jobs", "/jobs", numbers),
                    checks.make_tile(),
                    *_read_tiles(desk, session),
                ],
                most=MOST_WAITING,
                day=(datetime.now(UTC) - DAY).isoformat(timespec="minutes"),
            )

    def show_checks(request: Request) -> Response:
        if checks.at is None or request.query_params.get("again"):
            checks.look()
        found = sorted(checks.read(), key=lambda one: -SEVERITY[one.status])
        return desk.page(request, "checks.html", found=found, at=checks.at)

    def change_queue(request: Request, form: Form) -> str:
        queue, verb = request.path_params["queue"], request.path_params["verb"]
        known = {*runtime[Composition].queues, *(row["queue"] for row in queues.read())}
        if queue not in known:
            raise InvalidInput(f"there is no queue {queue!r}")
        if verb not in ("pause", "resume"):
            raise InvalidInput(f"a queue is paused or resumed, and not {verb!r}")
        now = runtime.now()
        if verb == "pause":
            with runtime.unit_of_work() as session:
                changed = care.pause(session, queue, now=now)
                desk.record(session, request, "pause", f"queue {queue}", done=int(changed))
            text = f"The queue {queue} is paused." if changed else f"{queue} was paused already."
        else:
            number = repeat(runtime.unit_of_work, lambda session: care.resume(session, queue))
            with runtime.unit_of_work() as session:
                desk.record(session, request, "resume", f"queue {queue}", done=int(number > 0))
            text = f"The queue {queue} is resumed." if number else f"{queue} was not paused."
        queues.forget()
        return text

    return Part(
        name="",
        title="Overview",
        pages={"/": show, "/checks": show_checks},
        acts={"/queues/{queue}/{verb}": change_queue},
    )


def read_workers(session: Session, desk: Desk) -> list[dict[str, Any]]:
    """Return the living workers, each with its processes and what these run."""
    silent_after = desk.runtime.settings.worker_silent_after
    by_worker = defaultdict(list)
    for job in statistics.find_running(session, limit=MOST_RUNNING):
        by_worker[job.worker_id].append(job)
    living = rescue.find_living_workers(session, silent_after=silent_after)
    return [{"row": one, "jobs": by_worker.get(one.id, [])} for one in living]


def read_queues(session: Session, desk: Desk) -> list[dict[str, Any]]:
    """Return for each queue what waits, since when, whether it is paused, and what it does."""
    paused = statistics.find_paused_queues(session)
    oldest = statistics.read_oldest_due(session)
    ended = statistics.count_ended_by_queue(session, over=LATELY)
    silent_after = desk.runtime.settings.worker_silent_after
    workers = statistics.count_workers(session, silent_after=silent_after)
    declared = desk.runtime[Composition].queues
    names = sorted({*declared, *paused, *oldest})
    waiting = statistics.count_waiting(session, names, at_most=MOST_WAITING)
    return [
        {
            "queue": name,
            "waiting": waiting[name],
            "oldest": oldest.get(name),
            "paused_at": paused.get(name),
            "a_minute": ended.get(name, 0) / (LATELY / timedelta(minutes=1)),
            "workers": workers.get(name, 0),
        }
        for name in names
    ]


def read_failures(session: Session, desk: Desk) -> list[dict[str, Any]]:
    """Return the kinds that failed within a day, each with its newest error."""
    return [
        {
            "kind": kind,
            "number": number,
            "job": job,
            "error": desk.mask.value(job.errors[-1]) if job.errors else None,
        }
        for kind, number, job in statistics.find_failures(session, over=DAY, limit=MOST_KINDS)
    ]


def draw_day(session: Session, now: datetime) -> dict[str, Any]:
    """Return the jobs that ended within a day as a chart, with their sums."""
    minutes = STEP // timedelta(minutes=1)
    end = now.replace(second=0, microsecond=0)
    end += timedelta(minutes=minutes - end.minute % minutes)
    since, slots = end - DAY, DAY // STEP
    counts = statistics.count_ended(session, since=since, step=STEP)
    rows = []
    for number in range(slots):
        all_of_them, bad = counts.get(number, (0, 0))
        name = f"{(since + number * STEP).astimezone():%H:%M}"
        rows.append((name, max(0, all_of_them - bad), bad))
    good, bad = sum(row[1] for row in rows), sum(row[2] for row in rows)
    label = f"Jobs ended in the last day, by quarter of an hour: {good} succeeded, {bad} did not"
    marks = [f"{(since + number * DAY / 4).astimezone():%H:%M}" for number in range(4)]
    return {"svg": draw_bars(rows, label=label), "good": good, "bad": bad, "marks": marks,
            "most": max(row[1] + row[2] for row in rows)}  # fmt: skip


def _read_tiles(desk: Desk, session: Session) -> list[Tile]:
    """Return the tiles of the parts. One that fails says so, and the others are shown."""
    tiles = []
    for part in desk.parts:
        if part.tile is None:
            continue
        try:
            tiles.append(part.tile(session))
        except SQLAlchemyError:
            raise
        except Exception as error:  # noqa: BLE001 - the page must show the rest
            text = desk.mask.text(f"{type(error).__name__}: {first_line(error)}")
            tiles.append(Tile(part.title, part.root, [Number("cannot be read", text[:100], "bad")]))
    return tiles
