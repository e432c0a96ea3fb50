"""Sending what is due. A message is claimed, and that committed, before the server hears of it; what became of it is written for each.

The record of one message and the claim of the next share a commit. Every record carries the claim: who was presumed dead changes nothing
that somebody else has begun since.
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

from sqlalchemy import Select, Update, and_, bindparam, case, exists, func, literal_column, null, select, true, update
from sqlalchemy.exc import OperationalError

from services.database import Base, Session, insert_or, single_statement, utc_now
from services.jobs import Backoff, Run, enqueue, enqueue_many
from services.jobs.models import Job, JobState
from services.mail import outbox
from services.mail.jobs import DeliverMail
from services.mail.models import Mail, MailServer, MailState
from services.mail.transport import Answer, Transport, Verdict

logger = logging.getLogger(__name__)

T = TypeVar("T")

SLICE = 50
# From the job's beginning. Under a fifth of its time limit: the last message may take long.
LONGEST_SLICE = timedelta(minutes=1)
MAX_ATTEMPTS = 12

# A database that is being restarted is waited for with what there is to write: nobody else knows it.
DATABASE_PATIENCE = timedelta(seconds=30)

TABLE = Base.metadata.tables[Mail.__tablename__]


@dataclass(frozen=True, slots=True)
class Terms:
    """How mail may be sent to a server: the envelope's sender, connections at a time, messages a minute (0: any number).

    A message that was put off waits by `backoff`; a server that is away is asked again by `away`. A job begins no slice after `stint`:
    other jobs want the process too.
    """

    server: str
    sender: str
    concurrency: int
    rate: int
    backoff: Backoff
    away: Backoff
    stint: timedelta = timedelta(seconds=5)


@dataclass(frozen=True, slots=True)
class Taken:
    """A message that is ours to send."""

    id: int
    recipient: str
    body: bytes
    attempt: int


def _claiming() -> Update:
    queued = TABLE.c.state == literal_column("'queued'")
    # Said so that Postgres can only filter by it: else it guesses that few are due, and sorts the whole queue for each message.
    due = case((and_(TABLE.c.due_at <= utc_now(), TABLE.c.expires_at > utc_now()), 1)).is_not(None)
    in_turn = select(TABLE.c.id).where(queued, due).order_by(TABLE.c.priority, TABLE.c.due_at).limit(literal_column("1"))
    first = in_turn.with_for_update(skip_locked=True).scalar_subquery()
    ours = exists().where(Job.claim_id == bindparam("claim"), Job.state == literal_column("'running'"))
    paused = exists().where(MailServer.name == bindparam("server"), MailServer.paused_until > utc_now())
    claimed = {"state": MailState.SENDING, "claim_id": bindparam("claim"), "claimed_at": utc_now(), "attempt": TABLE.c.attempt + 1}
    taken = (TABLE.c[name] for name in Taken.__slots__)
    return update(TABLE).where(TABLE.c.id == first, queued, ours, ~paused).values(claimed).returning(*taken)


# Whose record counts. Also when the message was given up as unknown meanwhile: what its sender knows is better. Not when it was queued
# again: then it is another's.
OURS = (
    TABLE.c.id == bindparam("mail"),
    TABLE.c.claim_id == bindparam("claim"),
    TABLE.c.state.in_([literal_column("'sending'"), literal_column("'unknown'")]),
)
ERASED = case((TABLE.c.sensitive, null()), else_=TABLE.c.body)

# The two statements of a message that is sent, made once and run past the ORM: to make one takes longer than to run it. The states and
# the limit are written out, so that Postgres can plan once and still use the partial indexes.
CLAIM = _claiming()
SENT = update(TABLE).where(*OURS).values(state=MailState.SENT, ended_at=utc_now(), reply=bindparam("said"), body=ERASED)


def _both() -> Select[Any]:
    sent, claimed = SENT.returning(TABLE.c.id).cte("sent"), CLAIM.cte("claimed")
    recorded = select(func.count().label("recorded")).select_from(sent).subquery()
    return select(recorded.c.recorded, *claimed.c).select_from(recorded.outerjoin(claimed, true()))


# On Postgres the two are one, which commits by itself: one round trip instead of four.
SENT_AND_CLAIM = _both()


def deliver(run: Run, lane: int, transport: Transport, terms: Terms) -> None:
    """Send what is due, in slices of up to fifty messages, and leave the next job behind if there is more to do."""
    began, tally = monotonic(), Counter[str]()
    with run.unit_of_work() as session:
        clear_up(session, terms)
        failing = _server(session, terms.server).failures > 0
        if lane == 0 and not failing:
            _start_lanes(session, terms, now=run.now)
        # While the server fails, lane 0 alone finds out when it is back.
        taken = _claim(session, run.claim_id, terms) if lane == 0 or not failing else None
    while taken is not None:
        answer = transport.send(terms.sender, taken.recipient, taken.body)
        ends = (tally.total() + 1) % SLICE == 0
        going_on = monotonic() - began < (terms.stint if ends else LONGEST_SLICE).total_seconds()
        step = partial(_record_and_claim, run, taken, answer, terms, failing=failing, going_on=going_on)
        became, following = _transact(run, step)
        tally[became] += 1
        logger.info("mail %d: %s", taken.id, became)
        if answer.pause:
            logger.error("the mail server %s does not take our mail: %s", terms.server, answer.reply)
        failing = answer.pause or (failing and answer.verdict is not Verdict.SENT)
        taken = following
    _transact(run, partial(_finish, run, lane, tally, terms))


def _record_and_claim(
    run: Run, taken: Taken, answer: Answer, terms: Terms, session: Session, *, failing: bool, going_on: bool
) -> tuple[str, Taken | None]:
    as_usual = answer.verdict is Verdict.SENT and going_on and not failing and not terms.rate
    if as_usual and session.get_bind().dialect.name == "postgresql":
        known = {"mail": taken.id, "claim": run.claim_id, "said": answer.reply, "server": terms.server}
        with single_statement(session) as connection:
            recorded, *following = connection.execute(SENT_AND_CLAIM, known).one()
        return "sent" if recorded else "lost", None if following[0] is None else Taken(*following)
    became = _record(session, run.claim_id, taken, answer, terms)
    if answer.pause or (failing and answer.verdict is Verdict.SENT):
        _remember(session, answer, terms)
    return became, _claim(session, run.claim_id, terms) if going_on else None


def clear_up(session: Session, terms: Terms) -> None:
    """See to what has no owner: messages whose sender died, and those past their deadline."""
    running = select(Job.claim_id).where(Job.state == JobState.RUNNING, Job.claim_id.is_not(None))
    lost = select(Mail.id, Mail.attempt).where(Mail.state == MailState.SENDING, Mail.claim_id.not_in(running))
    found = session.execute(lost.with_for_update(skip_locked=True)).all()
    for row in found:
        values = _unknown(row.attempt, terms, now=_now(session)) | {"reply": "its sender died"}
        session.execute(update(TABLE).where(TABLE.c.id == row.id, TABLE.c.state == MailState.SENDING).values(values))
        logger.warning("mail %d: its sender died, the server may have it", row.id)
    if found:
        outbox.bar(session, [row.id for row in found])
    outbox.expire(session)


def _claim(session: Session, claim_id: UUID, terms: Terms) -> Taken | None:
    """Take the next message, if the job is still ours, the server is not to be left alone, and the rate allows it."""
    slot = _slot(session, terms)
    if slot is not None and not slot[0]:
        return None
    row = session.connection().execute(CLAIM, {"claim": claim_id, "server": terms.server}).one_or_none()
    if row is not None and slot is not None:
        session.execute(update(MailServer).where(MailServer.name == terms.server).values(rate_at=slot[1]))
    return None if row is None else Taken(*row)


def _record(session: Session, claim_id: UUID, taken: Taken, answer: Answer, terms: Terms) -> str:
    """Write what became of a message and return its new state."""
    known = {"mail": taken.id, "claim": claim_id, "said": answer.reply}
    if answer.verdict is Verdict.SENT:
        return "sent" if session.connection().execute(SENT, known).rowcount else "lost"
    now = _now(session)
    # It may have been given up as unknown meanwhile, and so have ended.
    later: dict[str, Any] = {"state": MailState.QUEUED, "claim_id": None, "ended_at": None}
    match answer.verdict:
        case Verdict.UNKNOWN:
            values = _unknown(taken.attempt, terms, now=now)
        case Verdict.AWAY:
            # Not the message's fault, so no attempt of it.
            values = {**later, "attempt": taken.attempt - 1}
        case Verdict.LATER if taken.attempt < MAX_ATTEMPTS:
            values = {**later, "due_at": now + terms.backoff.delay(taken.attempt)}
        case _:
            values = {"state": MailState.FAILED, "ended_at": now, "body": ERASED}
    recorded = update(TABLE).where(*OURS).values(values | {"reply": bindparam("said")}).returning(TABLE.c.state)
    state = session.execute(recorded, known).scalar()
    if answer.dead_address:
        outbox.refused(session, taken.recipient, now=now)
    if state == MailState.QUEUED and outbox.bar(session, [taken.id]):
        return "suppressed"
    return "lost" if state is None else str(state)


def _unknown(attempt: int, terms: Terms, *, now: datetime) -> dict[str, Any]:
    """Return what becomes of a message that the server may have: sent again if its kind allows that and it has attempts and time left."""
    due_at = now + terms.backoff.delay(attempt)
    again = and_(TABLE.c.resend, TABLE.c.attempt < MAX_ATTEMPTS, TABLE.c.expires_at > due_at)
    return {
        "state": case((again, MailState.QUEUED.value), else_=MailState.UNKNOWN.value),
        "due_at": case((again, due_at), else_=TABLE.c.due_at),
        "claim_id": case((again, null()), else_=TABLE.c.claim_id),
        "ended_at": case((again, null()), else_=now),
        "repeats": case((again, TABLE.c.repeats + 1), else_=TABLE.c.repeats),
    }


# --- What the workers know together about the server ---


def _server(session: Session, name: str, *, lock: bool = False) -> MailServer:
    found = select(MailServer).where(MailServer.name == name).execution_options(populate_existing=True)
    found = found.with_for_update() if lock else found
    server = session.execute(found).scalar_one_or_none()
    if server is None:
        session.execute(insert_or(session, MailServer).values(name=name, failures=0).on_conflict_do_nothing())
        server = session.execute(found).scalar_one()
    return server


def _remember(session: Session, answer: Answer, terms: Terms) -> None:
    """Leave a server that is away alone, longer each time; forget it when it takes a message."""
    server = _server(session, terms.server, lock=True)
    if answer.verdict is Verdict.SENT:
        server.failures, server.failing_since, server.paused_until, server.error = 0, None, None, None
        return
    now = _now(session)
    if server.paused_until is None or server.paused_until <= now:  # else another lane has just said the same
        server.failures += 1
        server.paused_until = now + terms.away.delay(server.failures)
    server.failing_since, server.error = server.failing_since or now, answer.reply
    session.flush()


def _slot(session: Session, terms: Terms) -> tuple[bool, datetime] | None:
    """Return whether one more may go now and what to note if it does; None when there is no rate. Lanes take turns for it.

    Slots follow each other at a fixed distance, and a tenth of a minute's may be used at once: no minute sees more than the rate.
    """
    if not terms.rate:
        return None
    row, now = _server(session, terms.server, lock=True), _now(session)
    burst, gap = _rhythm(terms.rate)
    rate_at = max(row.rate_at or now, now)
    return rate_at - (burst - 1) * gap <= now, rate_at + gap


def _rhythm(rate: int) -> tuple[int, timedelta]:
    burst = max(1, rate // 10)
    # Rounded up.
    return burst, timedelta(minutes=1) / (rate - burst + 1) + timedelta.resolution


# --- Going on ---


def _start_lanes(session: Session, terms: Terms, *, now: datetime) -> None:
    enough = select(Mail.id).where(Mail.state == MailState.QUEUED, Mail.due_at <= utc_now()).limit(SLICE * terms.concurrency)
    due = session.execute(select(func.count()).select_from(enough.subquery())).scalar_one()
    lanes = min(terms.concurrency, ceil(due / SLICE))
    enqueue_many(session, [DeliverMail(lane=number) for number in range(1, lanes)], now=now)


def _finish(run: Run, lane: int, tally: Counter[str], terms: Terms, session: Session) -> None:
    """End the job and see that the next one comes when there is something to do.

    The end first: it takes the job's row. Who queues a message at the same time has it before us, and we see the message, or after us,
    and writes a new job.
    """
    run.finish(session, dict(tally))
    oldest = session.execute(select(func.min(Mail.due_at)).where(Mail.state == MailState.QUEUED)).scalar()
    if oldest is None:
        return
    server, now = _server(session, terms.server), _now(session)
    times = [oldest, server.paused_until or oldest]
    if terms.rate and server.rate_at is not None:
        burst, gap = _rhythm(terms.rate)
        times.append(server.rate_at - (burst - 1) * gap / 2)
    at = max(times)
    if lane == 0:
        enqueue(session, DeliverMail(lane=0), now=now, run_at=at if at > now else None)
    elif at <= now and server.failures == 0 and lane < terms.concurrency:
        enqueue(session, DeliverMail(lane=lane), now=now)
    else:
        # Lane 0 may have ended while a message was ours, or wait for a later one than what we put off.
        outbox.wake(session, now=now)


def _now(session: Session) -> datetime:
    return session.execute(select(utc_now())).scalar_one()


def _transact(run: Run, work: Callable[[Session], T]) -> T:
    give_up = monotonic() + DATABASE_PATIENCE.total_seconds()
    while True:
        try:
            with run.unit_of_work() as session:
                return work(session)
        except OperationalError:
            if monotonic() > give_up:
                raise
            sleep(0.5)
