"""What the pages show, and what acts do, on each database."""

import re
from datetime import timedelta
from html import unescape
from uuid import uuid4

import pytest
from desk_app import Bake, Knead, Sweep
from nightshift.database import read_clock
from nightshift.jobs import actions, care, enqueue, schedule
from nightshift.jobs.jobs import ActOnJobs
from nightshift.jobs.models import (
    Action,
    Job,
    JobLog,
    JobState,
    PausedQueue,
    ScheduleEntry,
    Worker,
)
from nightshift.jobs.run import Snooze
from sqlalchemy import delete, select, update

HOSTILE = "\"><script>alert(1)</script><img src=x onerror=alert(2)>'{{7*7}}\u202e&lt;"
SECRET = "a-token-of-the-settings"
LINK = "https://school.example/f/Zm9vYmFyYmF6cXV4MTIzNDU2Nzg5.ics"


@pytest.fixture
def put(runtime):
    """Return what writes a job with these columns, and returns its id."""

    def put(job=None, /, **values):
        with runtime.unit_of_work() as session:
            job_id = enqueue(session, job or Bake(order=7), now=runtime.now())
            if values:
                session.execute(update(Job).where(Job.id == job_id).values(values))
        return job_id

    return put


@pytest.fixture
def fail(put, runtime):
    """Return what writes a job that failed."""

    def fail(job=None, /, **values):
        error = {
            "attempt": 1, "at": runtime.now().isoformat(), "type": "OvenCold",
            "message": "the oven is cold", "traceback": "Traceback: in bake",
        }  # fmt: skip
        ended = {"started_at": runtime.now(), "finished_at": runtime.now(), "attempt": 1}
        return put(job, **{"state": JobState.FAILED, "errors": [error], **ended, **values})

    return fail


@pytest.fixture
def state(runtime):
    def state(job_id):
        with runtime.read_only() as session:
            return session.execute(select(Job.state).where(Job.id == job_id)).scalar_one()

    return state


def read_actions(runtime):
    with runtime.read_only() as session:
        return [
            (one.by, one.verb, one.subject, one.done, one.skipped)
            for one in session.scalars(select(Action).order_by(Action.id))
        ]


def test_hostile_texts_in_every_field_of_a_job_are_shown_and_do_nothing(runtime, ada, put):
    parent = put(Knead(loaves=1))
    job_id = put(
        kind=HOSTILE[:100], queue=HOSTILE[:50], args={HOSTILE: HOSTILE, "n": [{HOSTILE: HOSTILE}]},
        state=JobState.FAILED, started_at=runtime.now(), finished_at=runtime.now(), attempt=1,
        result={HOSTILE: HOSTILE}, parent_id=parent, unique_key=HOSTILE[:200],
        errors=[{"attempt": HOSTILE, "at": HOSTILE, "type": HOSTILE, "message": HOSTILE,
                 "traceback": HOSTILE}],
    )  # fmt: skip
    with runtime.unit_of_work() as session:
        session.add(JobLog(job_id=job_id, attempt=1, at=runtime.now(), line=HOSTILE))
        session.execute(
            update(Job).where(Job.id == parent).values(state=JobState.WAITING, children=1)
        )
        worker = Worker(
            id=uuid4(), name=HOSTILE, queues=HOSTILE, pid=1, started_at=runtime.now(),
            heartbeat_at=runtime.now(),
        )  # fmt: skip
        session.add(worker)
        session.flush()
        session.execute(update(Job).where(Job.id == job_id).values(worker_id=worker.id))
    try:
        for path in ("/", "/jobs", f"/jobs/{job_id}", f"/jobs/{parent}", "/jobs/all?verb=retry"):
            got = ada.get(path)
            assert got.status_code == 200, path
            assert "<script>alert" not in got.text, path
            assert "<img src=x" not in got.text, path
            assert "49" not in re.findall(r">\s*(49)\s*<", got.text), path
        assert HOSTILE in unescape(ada.get(f"/jobs/{job_id}").text)
    finally:
        with runtime.unit_of_work() as session:
            session.execute(delete(Worker).where(Worker.name == HOSTILE))


@pytest.mark.parametrize("name", ["kind", "queue", "args", "since", "worker", "state", "from"])
def test_hostile_texts_in_the_address_are_shown_and_do_nothing(ada, name):
    got = ada.request("GET", "/jobs", params={name: HOSTILE})

    assert got.status_code in (200, 400)
    assert "<script>alert" not in got.text
    assert "<img src=x" not in got.text


@pytest.mark.parametrize("query", ["args=%00", "kind=%00", "kind=%ff%fe", "args=" + "%22" * 99])
def test_what_no_database_holds_is_refused_or_not_found(ada, query):
    assert ada.get(f"/jobs?{query}").status_code in (200, 400)


def test_secrets_are_masked_wherever_a_job_holds_one(runtime, ada, put):
    text = f"asked with {SECRET} at {LINK}"
    job_id = put(
        args={"note": text, "password": "hunter2hunter2", "list": [text]}, result={"said": text},
        state=JobState.FAILED, started_at=runtime.now(), finished_at=runtime.now(),
        errors=[{"attempt": 1, "at": "2026-01-01T00:00:00+00:00", "type": "E", "message": text,
                 "traceback": text}],
    )  # fmt: skip
    with runtime.unit_of_work() as session:
        session.add(JobLog(job_id=job_id, attempt=1, at=runtime.now(), line=text))

    for path in ("/", "/jobs", f"/jobs/{job_id}"):
        page = ada.get(path).text
        assert SECRET not in page
        assert "Zm9vYmFyYmF6" not in page
        assert "hunter2" not in page
    assert "asked with *** at https://school.example/f/…" in unescape(
        ada.get(f"/jobs/{job_id}").text
    )


def test_job_is_shown_with_all_that_the_ledger_knows(runtime, ada, fail):
    job_id = fail(Bake(order=7, customer="Anna"))
    with runtime.unit_of_work() as session:
        session.add(JobLog(job_id=job_id, attempt=1, at=runtime.now(), line="in the oven"))

    page = ada.get(f"/jobs/{job_id}").text

    for part in (
        "bakery.bake", "customer", "Anna", "OvenCold", "the oven is cold", "Traceback: in bake",
        "in the oven", "attempt 1 began, and failed", f'action="/jobs/{job_id}/retry"',
    ):  # fmt: skip
        assert part in page, part
    assert f"/jobs/{job_id}/hold" not in page


def test_family_is_a_tree(ada, put, runtime):
    parent = put(Knead(loaves=2))
    children = [put(parent_id=parent) for _ in range(2)]
    values = {"started_at": runtime.now() - timedelta(hours=1), "state": JobState.WAITING}
    with runtime.unit_of_work() as session:
        session.execute(update(Job).where(Job.id == parent).values(children=2, **values))

    assert all(f"/jobs/{child}" in ada.get(f"/jobs/{parent}").text for child in children)
    assert f"/jobs/{parent}" in ada.get(f"/jobs/{children[0]}").text
    assert "2 queued" in ada.get(f"/jobs/{parent}").text


def test_list_filters_and_pages(ada, fail, monkeypatch):
    monkeypatch.setattr("nightshift.desk.jobs.PAGE", 3)
    there = {str(fail(Bake(order=number))) for number in range(7)}
    fail(Sweep())

    seen, path = [], "/jobs?state=failed&kind=bakery.bake"
    while path:
        page = ada.get(path).text
        assert "7 match" in page
        seen += re.findall(r'<th scope="row"><a href="/jobs/([0-9a-f-]{36})"', page)
        further = re.search(r'rel="next" href="([^"]+)"', page)
        path = further and unescape(further[1])

    assert sorted(seen) == sorted(there)


@pytest.mark.parametrize(
    ("before", "verb", "after"),
    [
        (JobState.QUEUED, "hold", JobState.HELD),
        (JobState.HELD, "release", JobState.QUEUED),
        (JobState.QUEUED, "cancel", JobState.CANCELLED),
        (JobState.SCHEDULED, "run-now", JobState.QUEUED),
        (JobState.CANCELLED, "retry", JobState.SCHEDULED),
    ],
)
def test_act_on_one_job_is_done_and_kept(runtime, ada, *, put, state, before, verb, after):
    job_id = put(state=before)

    got = ada.post(f"/jobs/{job_id}/{verb}", back=f"/jobs/{job_id}")

    assert (got.status_code, got.headers["location"]) == (303, f"/jobs/{job_id}")
    assert state(job_id) == after
    assert read_actions(runtime) == [("ada", verb, f"job {job_id} (bakery.bake)", 1, {})]
    assert verb in ada.get("/actions").text


def test_act_that_comes_too_late_changes_nothing_and_says_why(runtime, ada, put, state):
    job_id = put(state=JobState.RUNNING, started_at=runtime.now())

    ada.post(f"/jobs/{job_id}/hold")

    assert state(job_id) == JobState.RUNNING
    assert ada.said() == "The job is not held: it is running."
    assert read_actions(runtime)[0][3:] == (0, {"it is running": 1})


@pytest.mark.parametrize("back", ["//evil.example", "https://evil.example", "/\\evil.example"])
def test_act_leads_to_no_other_site(ada, put, back):
    assert ada.post(f"/jobs/{put()}/hold", back=back).headers["location"] == "/jobs"


def test_queue_is_paused_and_resumed(runtime, ada):
    ada.post("/queues/oven/pause")

    assert ada.said() == "The queue oven is paused."
    assert "/queues/oven/resume" in ada.get("/").text
    with runtime.read_only() as session:
        assert session.scalars(select(PausedQueue.queue)).all() == ["oven"]
    ada.post("/queues/oven/resume")
    assert "/queues/oven/pause" in ada.get("/").text
    assert ada.post("/queues/nowhere/pause").status_code == 400
    assert [one[1] for one in read_actions(runtime)] == ["pause", "resume"]


def test_recurring_job_is_told_in_words_run_paused_and_resumed(runtime, ada):
    assert "every 6 hours" in ada.get("/recurring").text
    ada.post("/recurring", entry="bakery.sweep", verb="run-now")
    ada.post("/recurring", entry="bakery.sweep", verb="pause")

    with runtime.read_only() as session:
        assert session.execute(select(Job.kind)).scalars().all() == ["bakery.sweep"]
        assert list(schedule.find_paused_entries(session)) == ["bakery.sweep"]
    assert '<span class="badge s-paused">paused</span>' in ada.get("/recurring").text
    assert "paused" in ada.get("/").text
    ada.post("/recurring", entry="bakery.sweep", verb="resume")
    with runtime.read_only() as session:
        assert schedule.find_paused_entries(session) == {}
    assert ada.post("/recurring", entry="nothing", verb="pause").status_code == 400


def test_part_of_a_component_is_there_and_acts(runtime, ada):
    assert '<a href="/shop">Shop</a>' in ada.get("/").text
    assert "is open" in ada.get("/shop").text
    ada.post("/shop/sell", what="bread")
    assert ada.said() == "Bread is sold."
    ada.post("/shop/sell", what="gold")
    assert ada.said() == "there is only bread"
    assert read_actions(runtime) == [("ada", "sell", "bread", 1, {})]


def test_overview_shows_failures_queues_and_the_last_day(runtime, ada, fail, put):
    for _ in range(3):
        fail()
    put()

    page = ada.get("/").text

    assert "OvenCold: the oven is cold" in page
    assert "0 succeeded, 3 did not" in page
    assert "No worker lives" in page


# --- Actions on all that match ---


class RunHere:
    """Runs the job of an action as a worker does, without the claim."""

    def __init__(self, runtime):
        self.runtime = runtime
        self.id = uuid4()
        self.ended = None
        self.read_only, self.unit_of_work = runtime.read_only, runtime.unit_of_work
        with runtime.read_only() as session:
            self.now = read_clock(session)

    def progress(self, done, total):
        self.seen = (done, total)

    def finish(self, session, outcome):
        self.ended = outcome


def work(runtime):
    """Run the only action's job to its end; return its result."""
    with runtime.read_only() as session:
        action_id = session.scalars(select(Action.id).order_by(Action.id.desc())).first()
    run = RunHere(runtime)
    while run.ended is None:
        outcome = actions.work_through(run, action_id, kinds=runtime.kinds)
        assert outcome is None or isinstance(outcome, Snooze)
    return run.ended


def test_retry_of_all_that_match_counts_what_was_done_and_skipped(runtime, ada, fail, put, state):
    failed = [fail(Bake(order=number, customer="Anna")) for number in range(5)]
    other = fail(Bake(order=9, customer="Bob"))
    running = put(Bake(order=1, customer="Anna"), state=JobState.RUNNING, started_at=runtime.now())

    page = ada.get("/jobs/all?verb=retry&kind=bakery.bake&args=customer%3DAnna").text
    assert "Retry 6 jobs?" in page
    query = unescape(re.search(r'name="query" value="([^"]*)"', page)[1])
    got = ada.post("/jobs/all", verb="retry", query=query)
    path = got.headers["location"]
    result = work(runtime)

    assert result == {"done": 5, "skipped": {"it is running": 1}}
    assert [state(one) for one in failed] == [JobState.SCHEDULED] * 5
    assert (state(other), state(running)) == (JobState.FAILED, JobState.RUNNING)
    page = ada.get(path).text
    assert "because it is running" in page
    assert ("ada", "retry", "jobs", 5, {"it is running": 1}) in read_actions(runtime)


def test_action_goes_on_where_a_killed_worker_left_it(runtime, ada, fail, state, monkeypatch):
    monkeypatch.setattr(actions, "CHUNK", 2)
    failed = [fail(Bake(order=number)) for number in range(5)]
    ada.post("/jobs/all", verb="retry", query="state=failed")
    with runtime.read_only() as session:
        action_id = session.scalars(select(Action.id)).one()

    class Killed(Exception):
        pass

    run = RunHere(runtime)
    run.progress = lambda *_: (_ for _ in ()).throw(Killed)
    with pytest.raises(Killed):
        actions.work_through(run, action_id, kinds=runtime.kinds)
    assert work(runtime) == {"done": 5, "skipped": {}}
    assert {state(one) for one in failed} == {JobState.SCHEDULED}


def test_what_fails_again_meanwhile_is_not_retried_for_ever(runtime, ada, fail, state):
    job_id = fail()
    ada.post("/jobs/all", verb="retry", query="state=failed")
    late = fail()

    assert work(runtime) == {"done": 1, "skipped": {}}
    assert (state(job_id), state(late)) == (JobState.SCHEDULED, JobState.FAILED)


@pytest.mark.parametrize(
    ("verb", "before", "after"),
    [
        ("cancel", JobState.QUEUED, JobState.CANCELLED),
        ("hold", JobState.SCHEDULED, JobState.HELD),
        ("release", JobState.HELD, JobState.QUEUED),
        ("run-now", JobState.SCHEDULED, JobState.QUEUED),
    ],
)
def test_each_verb_is_done_to_all(runtime, ada, *, put, state, monkeypatch, verb, before, after):
    monkeypatch.setattr(actions, "CHUNK", 3)
    there = [put(state=before) for _ in range(7)]
    ada.post("/jobs/all", verb=verb, query=f"kind=bakery.bake&state={before.value}")

    assert work(runtime) == {"done": 7, "skipped": {}}
    assert [state(one) for one in there] == [after] * 7


def test_action_on_all_does_not_cancel_itself(runtime, ada, put, state):
    put()
    ada.post("/jobs/all", verb="cancel", query="state=queued")
    with runtime.read_only() as session:
        own = session.scalars(select(Job.id).where(Job.kind == ActOnJobs.policy.kind)).one()
    run = RunHere(runtime)
    run.id = own
    actions.work_through(run, find_action(runtime), kinds=runtime.kinds)

    assert run.ended == {"done": 1, "skipped": {}}
    assert state(own) == JobState.QUEUED


def find_action(runtime):
    with runtime.read_only() as session:
        return session.scalars(select(Action.id)).one()


def test_nothing_to_do_is_said(ada):
    got = ada.post("/jobs/all", verb="retry", query="state=failed")

    assert (got.status_code, "no job matches" in got.text) == (400, True)


def test_number_of_matches_is_exact_up_to_the_most(ada, put, monkeypatch):
    for module in ("nightshift.jobs.search", "nightshift.desk.jobs"):
        monkeypatch.setattr(f"{module}.MOST_COUNTED", 3)
    for _ in range(3):
        put()
    assert "Hold 3 jobs" in ada.get("/jobs/all?verb=hold&state=queued").text
    put()
    assert "Hold more than 3 jobs" in ada.get("/jobs/all?verb=hold&state=queued").text


def test_old_actions_are_deleted(runtime, ada, put):
    ada.post(f"/jobs/{put()}/hold")
    with runtime.unit_of_work() as session:
        assert care.prune_actions(session, before=runtime.now() - timedelta(days=1)) == 0
        assert care.prune_actions(session, before=runtime.now() + timedelta(days=1)) == 1


def test_paused_recurring_job_lets_its_slots_pass(runtime):
    entry = schedule.Entry("bakery.sweep", Sweep(), timedelta(hours=6), runtime.now().tzinfo)
    now = runtime.now()
    with runtime.unit_of_work() as session:
        session.add(ScheduleEntry(entry=entry.name, last_fire_at=now - timedelta(days=1)))
        schedule.pause_entry(session, entry.name, now=now)
    with runtime.unit_of_work() as session:
        assert schedule.enqueue_due(session, [entry], now=now) == []
        fires = schedule.read_last_fires(session)
        assert fires[entry.name] > now - timedelta(hours=6)
        assert schedule.resume_entry(session, entry.name)
        assert schedule.enqueue_due(session, [entry], now=now) == []
        [(name, _)] = schedule.enqueue_due(session, [entry], now=now + timedelta(hours=6))
        assert name == entry.name
