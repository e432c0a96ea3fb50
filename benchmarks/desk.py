"""The desk over a million ended and 200,000 waiting jobs: each page's time, and its slowest query.

The time is the server's: from the request to the whole page, without a network. `SELECT 1` is what
one statement costs at least in the same run.
"""

import statistics
import time
from typing import Any

from desk_browser import PASSWORD, Browser
from nightshift.component import Composition
from nightshift.desk.logins import make_hash
from nightshift.desk.server import make_app
from nightshift.runtime import Runtime
from sqlalchemy import event, text

from benchmarks.servers import installation
from project.app import COMPONENTS

ENDED, WAITING = 1_000_000, 200_000
TIMES = 7
GOAL = 0.3

# A week of jobs of eight kinds in three queues. One in a thousand fails, with tracebacks; the
# customer is a rare value of the arguments.
FILL = """
insert into job (id, kind, queue, priority, state, args, unique_until_started, created_at, run_at,
                 started_at, finished_at, attempt, max_attempts, time_limit, worker_id, errors,
                 children, children_open, children_failed)
select gen_random_uuid(), 'bench.kind' || number % 8,
       (array['default', 'calendars', 'mail'])[1 + number % 3], 5,
       case when number % 1000 = 0 then 'failed' else 'succeeded' end,
       json_build_object('number', number, 'customer', 'customer ' || number % 5000), false,
       at, at, at, at + make_interval(secs => number % 7), 1, 5, 60, gen_random_uuid(),
       case when number % 1000 = 0 then json_build_array(json_build_object(
            'attempt', 1, 'at', at, 'type', 'Error', 'message', 'it failed',
            'traceback', repeat('  File "x.py", line 1' || chr(10), 200))) end, 0, 0, 0
from (select number, now() - make_interval(secs => number * 604800.0 / :jobs) as at
      from generate_series(1, :jobs) as number) as numbers
"""
WAIT = """
insert into job (id, kind, queue, priority, state, args, unique_until_started, created_at, run_at,
                 attempt, max_attempts, time_limit, children, children_open, children_failed)
select gen_random_uuid(), 'bench.kind' || number % 8,
       (array['default', 'calendars', 'mail'])[1 + number % 3], 5,
       case when number % 10 = 0 then 'scheduled' else 'queued' end,
       json_build_object('number', number, 'customer', 'customer ' || number % 5000), false,
       now(), now() + make_interval(secs => case when number % 10 = 0 then number
                                           else -number / 100.0 end), 0, 5, 60, 0, 0, 0
from generate_series(1, :jobs) as number
"""

PAGES = (
    ("overview", "/"),
    ("jobs", "/jobs"),
    ("jobs, page 2", "next"),
    ("failed", "/jobs?state=failed"),
    ("failed of a kind", "/jobs?state=failed&kind=bench.kind3"),
    ("failed of a kind that never failed", "/jobs?state=failed&kind=bench.none"),
    ("of a rare kind", "/jobs?kind=jobs.prune"),
    ("succeeded in a queue", "/jobs?state=succeeded&queue=mail"),
    ("queued", "/jobs?state=queued"),
    ("scheduled, oldest first", "/jobs?state=scheduled&order=oldest"),
    ("by a rare argument", "/jobs?args=%22customer%3Dcustomer+77%22"),
    ("failed, by an argument", "/jobs?state=failed&args=number%3D5000"),
    ("by a text that is nowhere", "/jobs?args=nowhere"),
    ("by a worker", "/jobs?worker=00000000-0000-0000-0000-000000000000"),
    ("a time in the past", "/jobs?until=2026-01-01"),
    ("a job", "job"),
    ("recurring", "/recurring"),
    ("actions", "/actions"),
    ("mail", "/mail"),
    ("feeds", "/feeds"),
    ("before an act on all failed", "/jobs/all?verb=retry&state=failed"),
    ("before an act by a rare argument", "/jobs/all?verb=retry&args=number%3D5000"),
)


def run() -> dict[str, Any]:
    """Measure and return the figures; print each page's slowest query with its plan."""
    with installation(DESK_USERS=f"ada:act:{make_hash(PASSWORD)}", LOG_LEVEL="ERROR"):
        runtime = Composition(COMPONENTS).runtime(_env_file=None)
        for statement, jobs in ((FILL, ENDED), (WAIT, WAITING)):
            with runtime.unit_of_work() as session:
                session.execute(text("set local statement_timeout = 0"))
                session.execute(text(statement), {"jobs": jobs})
        engine = runtime.make_engine(isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text("set statement_timeout = 0"))
            connection.execute(text("vacuum analyze job"))
        engine.dispose()
        browser = Browser(make_app(runtime))
        assert browser.log_in("ada").status_code == 303
        figures: dict[str, Any] = {"SELECT 1, ms": measure_select(runtime) * 1000}
        watched = Watched(runtime)
        following = browser.get("/jobs").text.split('rel="next" href="')[1].split('"')[0]
        special = {"job": find_job(runtime), "next": following.replace("&amp;", "&")}
        for name, named in PAGES:
            path = special.get(named, named)
            watched.statements.clear()
            first, rest = 0.0, []
            for number in range(TIMES):
                began = time.perf_counter()
                got = browser.get(path)
                took = time.perf_counter() - began
                assert got.status_code == 200, (path, got.status_code)
                first, rest = (took, rest) if number == 0 else (first, [*rest, took])
            figures[f"{name}: first, ms"] = first * 1000
            figures[f"{name}: then (median), ms"] = statistics.median(rest) * 1000
            watched.explain(name)
        runtime.close()
    return figures


def measure_select(runtime: Runtime) -> float:
    """Return the median seconds of `SELECT 1`."""
    times = []
    with runtime.read_only() as session:
        for _ in range(200):
            began = time.perf_counter()
            session.execute(text("select 1"))
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def find_job(runtime: Runtime) -> str:
    with runtime.read_only() as session:
        statement = "select id from job where state = 'failed' order by finished_at limit 1"
        return f"/jobs/{session.execute(text(statement)).scalar_one()}"


class Watched:
    """The statements of an engine, with their seconds."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.statements: list[tuple[float, str, Any]] = []
        event.listen(runtime.engine, "before_cursor_execute", self._begin)
        event.listen(runtime.engine, "after_cursor_execute", self._end)

    def _begin(self, connection: Any, *_: Any) -> None:
        connection.info["began"] = time.perf_counter()

    def _end(self, connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if not statement.startswith("SELECT"):
            return
        took = time.perf_counter() - connection.info["began"]
        self.statements.append((took, statement, parameters))

    def explain(self, name: str) -> None:
        """Print the slowest statement's time and plan."""
        took, statement, parameters = max(self.statements, key=lambda one: one[0])
        print(
            f"--- {name}: the slowest of {len(self.statements) // TIMES} statements took"
            f" {took * 1000:.1f} ms"
        )
        with self.runtime.read_only() as session:
            connection = session.connection()
            plan = connection.exec_driver_sql(
                f"explain (analyze, costs off) {statement}", parameters
            )
            for (line,) in plan:
                print(f"    {line[:150]}")
