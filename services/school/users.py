"""Users one by one. services/school/loading.py loads a whole school, and sends no mail."""

import unicodedata
from collections.abc import Mapping
from datetime import datetime
from zoneinfo import ZoneInfo

from nightshift.database import Session, insert_or
from nightshift.errors import Conflict, InvalidInput, NotFound
from nightshift.jobs import enqueue
from sqlalchemy import select

from services.letters.jobs import SendKey, SendWelcome
from services.school.models import KeyPurpose, SchoolClass, Subscription, User
from services.school.rows import UserRow
from services.school.sheets import clean, validate


def read_details(values: Mapping[str, str | None]) -> UserRow:
    """Return a user's details, checked by the rules of users.csv. An empty one takes its default.

    Raises:
        InvalidInput: Something is wrong. The message names each field and how to correct it.
    """
    cells = {name: clean(value) for name, value in values.items() if value}
    read, wrong = validate(UserRow, cells, ZoneInfo("UTC"))
    if read is None or wrong:
        raise InvalidInput("\n".join(f"{name}: {reason}" for name, reason in wrong))
    return read


def register(session: Session, new: UserRow, *, now: datetime) -> int:
    """Create a user with a subscription, and the job that welcomes them; return the user's id.

    Raises:
        InvalidInput: There is no such class.
        Conflict: Another user has the address or the untis_id.
    """
    values = new.model_dump(exclude={"class_name"}) | {"created_at": now}
    if new.class_name:
        values["class_id"] = session.scalar(
            select(SchoolClass.id).where(SchoolClass.name == new.class_name)
        )
        if values["class_id"] is None:
            raise InvalidInput(
                f"class: there is no class {new.class_name!r}; add it or correct the name"
            )
    put = insert_or(session, User).values(values).on_conflict_do_nothing()
    user_id: int | None = session.scalar(put.returning(User.id))
    if user_id is None:
        raise Conflict("somebody has this address or this untis_id already")
    _welcome(session, user_id, now)
    return user_id


def welcome(session: Session, email: str, *, now: datetime) -> None:
    """Enqueue a user's welcome; it may be a second one. Raises NotFound for an unknown address."""
    _welcome(session, find(session, email), now)


def _welcome(session: Session, user_id: int, now: datetime) -> None:
    # A user with a subscription has a calendar, which the mail is about.
    session.execute(
        insert_or(session, Subscription).values(user_id=user_id).on_conflict_do_nothing()
    )
    enqueue(session, SendWelcome(user_id=user_id), now=now)


def request_key(session: Session, email: str, purpose: KeyPurpose, *, now: datetime) -> None:
    """Enqueue the mail with a key for a user.

    Raises NotFound for an unknown address; a caller from the web must not learn that.
    """
    enqueue(session, SendKey(user_id=find(session, email), purpose=purpose), now=now)


def find(session: Session, email: str) -> int:
    """Return the id of the user with an address, as a person writes it. Raises NotFound."""
    # Some keyboards write a letter and its accent as two characters; addresses are kept as one.
    known = unicodedata.normalize("NFC", email).strip().lower()
    user_id = session.scalar(select(User.id).where(User.email == known))
    if user_id is None:
        raise NotFound("nobody has this address")
    return user_id
