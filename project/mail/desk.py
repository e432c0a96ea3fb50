"""The outbox at the desk: messages by state, with retry, hold, release and suppress.

Neither bodies nor whole addresses are shown there, and of a sensitive message no subject.
"""

from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from nightshift.database import Session
from nightshift.desk import Cached, Desk, Form, Number, Part, Tile
from nightshift.errors import InvalidInput, NotFound
from sqlalchemy import select
from starlette.requests import Request
from starlette.responses import Response

from project.front.pages import LARGEST_ID
from services.mail import outbox
from services.mail.models import ENDED, Mail, MailState

PAGE = 50
COUNTED_EVERY = timedelta(seconds=10)
TONES = {MailState.FAILED: "bad", MailState.UNKNOWN: "warn", MailState.HELD: "warn"}
ALLOWED = {
    MailState.QUEUED: ("hold", "suppress"),
    MailState.HELD: ("release", "suppress"),
    MailState.FAILED: ("retry", "suppress"),
    MailState.UNKNOWN: ("retry", "suppress"),
}


def _hold(session: Session, mail_id: int, *, now: datetime) -> None:
    outbox.hold(session, mail_id)


def _suppress(session: Session, mail_id: int, *, now: datetime) -> None:
    recipient = session.execute(select(Mail.recipient).where(Mail.id == mail_id)).scalar()
    if recipient is None:
        raise NotFound(f"there is no mail {mail_id}")
    outbox.suppress(session, recipient, now=now)


VERBS: dict[str, tuple[Callable[..., None], str]] = {
    "retry": (outbox.retry, "queued again"),
    "hold": (_hold, "held"),
    "release": (outbox.release, "released"),
    "suppress": (_suppress, "no mail is sent to its address any more"),
}


def make_part(desk: Desk) -> Part:
    """Return the outbox's page."""
    runtime = desk.runtime

    def count() -> Counter[str]:
        with runtime.read_only() as session:
            counts: Counter[str] = Counter()
            for (_, state), number in outbox.count_mails(session).items():
                counts[state] += number
            return counts

    counts = Cached(count, COUNTED_EVERY)

    def show(request: Request) -> Response:
        given = request.query_params
        state, kind = given.get("state") or None, given.get("kind") or None
        if state is not None and state not in list(MailState):
            raise InvalidInput(f"state: {state!r} is not one of {', '.join(MailState)}")
        before = given.get("before", "")
        with runtime.read_only() as session:
            found = outbox.find_mails(
                session,
                state=None if state is None else MailState(state),
                kind=kind,
                before=int(before) if before.isdecimal() and int(before) <= LARGEST_ID else None,
                limit=PAGE + 1,
            )
            rows = [_build_row(desk, row) for row in found[:PAGE]]
        return desk.page(
            request,
            "mail/desk.html",
            rows=rows,
            state=state,
            kind=kind or "",
            states=[(one, counts.read()[one]) for one in MailState],
            before=found[PAGE - 1].id if len(found) > PAGE else None,
            first=not before,
        )

    def act(request: Request, form: Form) -> str:
        mail_id, verb = request.path_params["mail_id"], request.path_params["verb"]
        if mail_id > LARGEST_ID:
            raise NotFound(f"there is no mail {mail_id}")
        now = runtime.now()
        with runtime.unit_of_work() as session:
            if verb not in VERBS:
                raise InvalidInput(f"mail cannot be {verb!r}; it can be: {', '.join(VERBS)}")
            change, done = VERBS[verb]
            change(session, mail_id, now=now)
            desk.record(session, request, verb, f"mail {mail_id}")
        counts.forget()
        return f"Mail {mail_id}: {done}."

    def make_tile(_session: Session) -> Tile:
        numbers = [
            Number(
                state.value,
                counts.read()[state],
                TONES.get(state, "") if counts.read()[state] else "",
                f"/mail?state={state.value}",
            )
            for state in (MailState.QUEUED, MailState.HELD, MailState.FAILED, MailState.UNKNOWN)
        ]
        return Tile("Mail", "/mail", numbers)

    return Part(
        name="mail",
        title="Mail",
        pages={"/": show},
        acts={"/{mail_id:int}/{verb}": act},
        tile=make_tile,
        templates=Path(__file__).parent / "templates",
    )


def _build_row(desk: Desk, mail: Mail) -> dict[str, Any]:
    name, _, domain = mail.recipient.rpartition("@")
    return {
        "id": mail.id,
        "kind": mail.kind,
        "state": mail.state.value,
        "at": mail.ended_at or mail.due_at,
        # Enough to recognise it, and not to use it.
        "recipient": None if mail.sensitive else f"{name[:1]}…@{domain}",
        "subject": None if mail.sensitive else desk.mask.text(mail.subject),
        "attempt": mail.attempt,
        "repeats": mail.repeats,
        "reply": desk.mask.text(mail.reply or "")
        if mail.state in (*ENDED, MailState.QUEUED)
        else "",
        "verbs": ALLOWED.get(mail.state, ()),
    }
