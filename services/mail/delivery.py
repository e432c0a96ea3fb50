"""Send the messages that are due.

A job claims a message and commits the claim before the server gets the message. It lets a check
look whether the message is still true and wanted. Then it records what became of that message, and
claims the next one in the same commit. Every record carries the claim, so a job that was presumed
dead cannot change a message that another job has claimed since.
"""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from math import ceil
from time import monotonic, sleep
from typing import Any, TypeVar
from uuid import UUID

from nightshift.database import Base, Session, insert_or, read_clock, utc_now
from nightshift.jobs import Backoff, Run, enqueue, enqueue_many
from nightshift.jobs.models import Job, JobState
from nightshift.jobs.session import single_statement
from sqlalchemy import (
    Select,
    Update,
    and_,
    bindparam,
    case,
    exists,
    func,
    literal_column,
    null,
    select,
    true,
    update,
)
from sqlalchemy.exc import OperationalError

from services.mail import outbox
from services.mail.jobs import DeliverMail
from services.mail.models import Mail, MailServer, MailState
from services.mail.outbox import Check, Claimed, Halt, MailCheck
from services.mail.transport import Answer, Transport, Verdict

logger = logging.getLogger(__name__)

T = TypeVar("T")

SLICE = 50
# Measured from the job's start. Less than a fifth of its time limit: the last message may take
# long.
LONGEST_SLICE = timedelta(minutes=1)
MAX_ATTEMPTS = 12

# A job waits this long for a database that is being restarted: no other process knows what the job
# has to write.
DATABASE_PATIENCE = timedelta(seconds=30)

# A message that could not be checked is checked again after this time.
UNCHECKED_WAITS = timedelta(minutes=5)

TABLE = Base.metadata.tables[Mail.__tablename__]


@dataclass(frozen=True, slots=True)
class Terms:
    """How mail may be sent to a server.

    `sender` is the envelope's; with `sign`, each message has the one that this returns for its
    number. `concurrency` is how many connections there may be at a time, `rate` how many messages a
    minute (0: any number). A message that the server put off waits by
    `backoff`; a server that is away is asked again by `away`. A job starts no further slice after
    `work_for`, because other jobs need the process too.
    """

    server: str
    sender: str
    concurrency: int
    rate: int
    backoff: Backoff
    away: Backoff
    work_for: timedelta = timedelta(seconds=5)
    sign: Callable[[int], str] | None = None


def _build_claim() -> Update:
    queued = TABLE.c.state == literal_column("'queued'")
    # Written so that Postgres can only filter by it. Otherwise it guesses that few messages are
    # due, and sorts the whole queue for each message.
    due = case((and_(TABLE.c.due_at <= utc_now(), TABLE.c.expires_at > utc_now()), 1)).is_not(None)
    in_turn = (
        select(TABLE.c.id)
        .where(queued, due)
        .order_by(TABLE.c.priority, TABLE.c.due_at)
        .limit(literal_column("1"))
    )
    first = in_turn.with_for_update(skip_locked=True).scalar_subquery()
    ours = exists().where(
        Job.claim_id == bindparam("claim"), Job.state == literal_column("'running'")
    )
    paused = exists().where(
        MailServer.name == bindparam("server"), MailServer.paused_until > utc_now()
    )
    claimed = {
        "state": MailState.SENDING,
        "claim_id": bindparam("claim"),
        "claimed_at": utc_now(),
        "attempt": TABLE.c.attempt + 1,
    }
    taken = (TABLE.c[name] for name in Claimed._fields)
    return (
        update(TABLE)
        .where(TABLE.c.id == first, queued, ours, ~paused)
        .values(claimed)
        .returning(*taken)
    )


# The claim's own record counts, also after the message was marked as unknown: what its sender knows
# is better. It does not count once the message was queued again: then another job may send it.
OURS = (
    TABLE.c.id == bindparam("mail"),
    TABLE.c.claim_id == bindparam("claim"),
    TABLE.c.state.in_([literal_column("'sending'"), literal_column("'unknown'")]),
)
ERASED = case((TABLE.c.sensitive, null()), else_=TABLE.c.body)

# The two statements of a message that is sent are built once and bypass the ORM: building one takes
# longer than running it. The states and the limit are literals, so that Postgres can plan once and
# still use the partial indexes.
CLAIM = _build_claim()
SENT = (
    update(TABLE)
    .where(*OURS)
    .values(state=MailState.SENT, ended_at=utc_now(), reply=bindparam("said"), body=ERASED)
)


def _build_sent_and_claim() -> Select[Any]:
    sent, claimed = SENT.returning(TABLE.c.id).cte("sent"), CLAIM.cte("claimed")
    recorded = select(func.count().label("recorded")).select_from(sent).subquery()
    return select(recorded.c.recorded, *claimed.c).select_from(recorded.outerjoin(claimed, true()))


# On Postgres the two are one statement that commits by itself: one round trip instead of four.
SENT_AND_CLAIM = _build_sent_and_claim()


def deliver(
    run: Run, lane: int, transport: Transport, terms: Terms, check: MailCheck | None = None
) -> None:
    """Send what is due, in slices of up to fifty messages; enqueue the next job if more is left.

    A message that `check` halts is not sent.
    """
    began, tally = monotonic(), Counter[str]()
    kinds, look = (frozenset[str](), None) if check is None else (check.kinds, check.begin())
    with run.unit_of_work() as session:
        release_orphans(session, terms)
        failing = _ensure_server(session, terms.server).failures > 0
        if lane == 0 and not failing:
            _start_lanes(session, terms, now=run.now)
        # While the server fails, only lane 0 asks whether it is back.
        taken = _claim(session, run.claim_id, terms) if lane == 0 or not failing else None
    while taken is not None:
        halt = _examine(run, taken, look) if look and taken.kind in kinds else None
        sender = terms.sender if terms.sign is None else terms.sign(taken.id)
        answer = halt or transport.send(sender, taken.recipient, taken.body)
        ends = (tally.total() + 1) % SLICE == 0
        going_on = monotonic() - began < (terms.work_for if ends else LONGEST_SLICE).total_seconds()
        step = partial(
            _record_and_claim, run, taken, answer, terms, failing=failing, going_on=going_on
        )
        became, following = _transact(run, step)
        tally[became] += 1
        logger.info("mail %d: %s", taken.id, became)
        if isinstance(answer, Answer):
            if answer.pause:
                logger.error(
                    "the mail server %s does not take our mail: %s", terms.server, answer.reply
                )
            failing = answer.pause or (failing and answer.verdict is not Verdict.SENT)
        taken = following
    _transact(run, partial(_finish, run, lane, tally, terms))


def _examine(run: Run, taken: Claimed, check: Check) -> Halt | None:
    """Return what the check says of a message that is claimed, by what is committed now."""

    def look() -> Halt | None:
        with run.read_newest() as session:
            return check(session, taken)

    try:
        return _insist(look)
    except OperationalError:
        raise
    except Exception:  # only this message waits
        logger.exception("mail %d cannot be checked, and waits", taken.id)
        return Halt("it could not be checked: see the worker's log", wait=UNCHECKED_WAITS)


def _record_and_claim(
    run: Run,
    taken: Claimed,
    answer: Answer | Halt,
    terms: Terms,
    session: Session,
    *,
    failing: bool,
    going_on: bool,
) -> tuple[str, Claimed | None]:
    if isinstance(answer, Halt):
        became = _record_halt(session, run.claim_id, taken, answer)
        return became, _claim(session, run.claim_id, terms) if going_on else None
    as_usual = answer.verdict is Verdict.SENT and going_on and not failing and not terms.rate
    if as_usual and session.get_bind().dialect.name == "postgresql":
        known = {
            "mail": taken.id,
            "claim": run.claim_id,
            "said": answer.reply,
            "server": terms.server,
        }
        with single_statement(session) as connection:
            recorded, *following = connection.execute(SENT_AND_CLAIM, known).one()
        return "sent" if recorded else "lost", None if following[0] is None else Claimed(*following)
    became = _record(session, run.claim_id, taken, answer, terms)
    if answer.pause or (failing and answer.verdict is Verdict.SENT):
        _record_answer(session, answer, terms)
    return became, _claim(session, run.claim_id, terms) if going_on else None


def release_orphans(session: Session, terms: Terms) -> None:
    """Release the messages whose sender died, and end those that are past their deadline.

    Of each at most outbox.BATCH, the oldest first; the next call takes more.
    """
    running = select(Job.claim_id).where(Job.state == JobState.RUNNING, Job.claim_id.is_not(None))
    lost = select(Mail.id, Mail.attempt).where(
        Mail.state == MailState.SENDING, Mail.claim_id.not_in(running)
    )
    oldest = lost.order_by(Mail.claimed_at).limit(outbox.BATCH)
    found = session.execute(oldest.with_for_update(skip_locked=True)).all()
    for row in found:
        values = _make_unknown(row.attempt, terms, now=read_clock(session)) | {
            "reply": "its sender died"
        }
        session.execute(
            update(TABLE)
            .where(TABLE.c.id == row.id, TABLE.c.state == MailState.SENDING)
            .values(values)
        )
        logger.warning("mail %d: its sender died, the server may have it", row.id)
    if found:
        outbox.suppress_queued(session, [row.id for row in found])
    outbox.fail_expired(session)


def _claim(session: Session, claim_id: UUID, terms: Terms) -> Claimed | None:
    """Claim the next message.

    Return None when the job is no longer ours, the server is paused, or the rate is used up.
    """
    slot = _find_slot(session, terms)
    if slot is not None and not slot[0]:
        return None
    row = (
        session.connection()
        .execute(CLAIM, {"claim": claim_id, "server": terms.server})
        .one_or_none()
    )
    if row is not None and slot is not None:
        session.execute(
            update(MailServer).where(MailServer.name == terms.server).values(rate_at=slot[1])
        )
    return None if row is None else Claimed(*row)


def _record(session: Session, claim_id: UUID, taken: Claimed, answer: Answer, terms: Terms) -> str:
    """Record what became of a message and return its new state, "lost" without a valid claim."""
    known = {"mail": taken.id, "claim": claim_id, "said": answer.reply}
    if answer.verdict is Verdict.SENT:
        return "sent" if session.connection().execute(SENT, known).rowcount else "lost"
    now = read_clock(session)
    # It may have been marked as unknown meanwhile, and so have ended.
    later: dict[str, Any] = {"state": MailState.QUEUED, "claim_id": None, "ended_at": None}
    match answer.verdict:
        case Verdict.UNKNOWN:
            values = _make_unknown(taken.attempt, terms, now=now)
        case Verdict.AWAY:
            # Not the message's fault, so it does not count as an attempt.
            values = {**later, "attempt": taken.attempt - 1}
        case Verdict.LATER if taken.attempt < MAX_ATTEMPTS:
            values = {**later, "due_at": now + terms.backoff.delay(taken.attempt)}
        case _:
            values = {"state": MailState.FAILED, "ended_at": now, "body": ERASED}
    recorded = (
        update(TABLE)
        .where(*OURS)
        .values(values | {"reply": bindparam("said")})
        .returning(TABLE.c.state)
    )
    state = session.execute(recorded, known).scalar()
    if answer.dead_address:
        outbox.record_refusal(session, taken.recipient, now=now)
    if state == MailState.QUEUED and outbox.suppress_queued(session, [taken.id]):
        return "suppressed"
    return "lost" if state is None else str(state)


def _record_halt(session: Session, claim_id: UUID, taken: Claimed, halt: Halt) -> str:
    """Record that a message was not sent and return its new state, as `_record` does."""
    now = read_clock(session)
    values: dict[str, Any] = {"state": MailState.CANCELLED, "ended_at": now, "body": ERASED}
    if halt.wait is not None:
        values = {"state": MailState.QUEUED, "claim_id": None, "due_at": now + halt.wait}
    # Nobody tried to send it.
    values |= {"reply": halt.reason, "attempt": taken.attempt - 1}
    recorded = update(TABLE).where(*OURS).values(values).returning(TABLE.c.state)
    state = session.execute(recorded, {"mail": taken.id, "claim": claim_id}).scalar()
    if state is None:
        return "lost"
    if halt.job is not None:
        enqueue(session, halt.job, now=now)
    if state == MailState.QUEUED and outbox.suppress_queued(session, [taken.id]):
        return "suppressed"
    return "put off" if state == MailState.QUEUED else str(state)


def _make_unknown(attempt: int, terms: Terms, *, now: datetime) -> dict[str, Any]:
    """Return the values of a message that the server may have.

    It is queued again if its kind allows that and it has attempts and time left, and else unknown.
    """
    due_at = now + terms.backoff.delay(attempt)
    again = and_(TABLE.c.resend, TABLE.c.attempt < MAX_ATTEMPTS, TABLE.c.expires_at > due_at)
    return {
        "state": case((again, MailState.QUEUED.value), else_=MailState.UNKNOWN.value),
        "due_at": case((again, due_at), else_=TABLE.c.due_at),
        "claim_id": case((again, null()), else_=TABLE.c.claim_id),
        "ended_at": case((again, null()), else_=now),
        "repeats": case((again, TABLE.c.repeats + 1), else_=TABLE.c.repeats),
    }


# --- What the workers share about the server ---


def _ensure_server(session: Session, name: str, *, lock: bool = False) -> MailServer:
    found = (
        select(MailServer).where(MailServer.name == name).execution_options(populate_existing=True)
    )
    found = found.with_for_update() if lock else found
    server = session.execute(found).scalar_one_or_none()
    if server is None:
        session.execute(
            insert_or(session, MailServer).values(name=name, failures=0).on_conflict_do_nothing()
        )
        server = session.execute(found).scalar_one()
    return server


def _record_answer(session: Session, answer: Answer, terms: Terms) -> None:
    """Pause a server that is away, longer each time; end the pause when it takes a message."""
    server = _ensure_server(session, terms.server, lock=True)
    if answer.verdict is Verdict.SENT:
        server.failures, server.error = 0, None
        server.failing_since = server.paused_until = None
        return
    now = read_clock(session)
    # While the server is paused, another lane has just recorded the same.
    if server.paused_until is None or server.paused_until <= now:
        server.failures += 1
        server.paused_until = now + terms.away.delay(server.failures)
    server.failing_since, server.error = server.failing_since or now, answer.reply
    session.flush()


def _find_slot(session: Session, terms: Terms) -> tuple[bool, datetime] | None:
    """Return whether one more message may be sent now, and the `rate_at` to write if it is.

    None means that there is no rate. The server's row is locked, so lanes ask one after the other.
    Slots follow each other at a fixed distance, and a tenth of a minute's slots may be used at
    once: in no minute are more messages sent than the rate.
    """
    if not terms.rate:
        return None
    row, now = _ensure_server(session, terms.server, lock=True), read_clock(session)
    burst, gap = _compute_pace(terms.rate)
    rate_at = max(row.rate_at or now, now)
    return rate_at - (burst - 1) * gap <= now, rate_at + gap


def _compute_pace(rate: int) -> tuple[int, timedelta]:
    burst = max(1, rate // 10)
    # Rounded up.
    return burst, timedelta(minutes=1) / (rate - burst + 1) + timedelta.resolution


# --- Going on ---


def _start_lanes(session: Session, terms: Terms, *, now: datetime) -> None:
    enough = (
        select(Mail.id)
        .where(Mail.state == MailState.QUEUED, Mail.due_at <= utc_now())
        .limit(SLICE * terms.concurrency)
    )
    due = session.execute(select(func.count()).select_from(enough.subquery())).scalar_one()
    lanes = min(terms.concurrency, ceil(due / SLICE))
    enqueue_many(session, [DeliverMail(lane=number) for number in range(1, lanes)], now=now)


def _finish(run: Run, lane: int, tally: Counter[str], terms: Terms, session: Session) -> None:
    """End the job, and enqueue the next one if messages are left.

    The end comes first, because it locks the job's row. A caller that queues a message at the same
    time has that lock before us, and we see the message; or after us, and enqueues a new job.
    """
    run.finish(session, dict(tally))
    oldest = session.execute(
        select(func.min(Mail.due_at)).where(Mail.state == MailState.QUEUED)
    ).scalar()
    if oldest is None:
        return
    server, now = _ensure_server(session, terms.server), read_clock(session)
    times = [oldest, server.paused_until or oldest]
    if terms.rate and server.rate_at is not None:
        burst, gap = _compute_pace(terms.rate)
        times.append(server.rate_at - (burst - 1) * gap / 2)
    at = max(times)
    if lane == 0:
        enqueue(session, DeliverMail(lane=0), now=now, run_at=at if at > now else None)
    elif at <= now and server.failures == 0 and lane < terms.concurrency:
        enqueue(session, DeliverMail(lane=lane), now=now)
    else:
        # Lane 0 may have ended while we held a message, or may wait longer than for the one that we
        # put off.
        outbox.enqueue_delivery(session, now=now)


def _transact(run: Run, work: Callable[[Session], T]) -> T:
    def once() -> T:
        with run.unit_of_work() as session:
            return work(session)

    return _insist(once)


def _insist(work: Callable[[], T]) -> T:
    give_up = monotonic() + DATABASE_PATIENCE.total_seconds()
    while True:
        try:
            return work()
        except OperationalError:
            if monotonic() > give_up:
                raise
            sleep(0.5)
