"""Who may use the desk: users with a role and a hashed password, and a limit on guesses."""

import base64
import hashlib
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from nightshift.errors import InvalidInput
from nightshift.settings import DESK_USER, PLACEHOLDER, Settings

Role = Literal["look", "act"]

# OWASP's advice for scrypt: 2^15, 8, 3 take 32 MB and a tenth of a second.
COST, BLOCK, LANES = 2**15, 8, 3
MOST_COST, MOST_LANES = 2**20, 64
SHORTEST_PASSWORD, LONGEST_PASSWORD = 12, 200

# Failed logins that a name, and an address, may have within WINDOW. An address may be a proxy.
BY_NAME, BY_ADDRESS = 5, 30
WINDOW = 300.0
MOST_REMEMBERED = 10_000

# In development, where DESK_USERS names nobody.
USUAL_NAME = "admin"


@dataclass(frozen=True, slots=True)
class User:
    """A person with a login. `seal` changes with the password: it ends older sessions."""

    name: str
    role: Role
    hash: str

    @property
    def seal(self) -> str:
        return hashlib.sha256(f"{self.name}:{self.hash}".encode()).hexdigest()[:16]

    @property
    def may_act(self) -> bool:
        return self.role == "act"


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _derive(password: str, salt: bytes, cost: int, block: int, lanes: int) -> bytes:
    memory = 128 * block * (cost + lanes + 2)
    return hashlib.scrypt(
        password.encode(), salt=salt, n=cost, r=block, p=lanes, maxmem=2 * memory, dklen=32
    )


def make_hash(password: str) -> str:
    """Return a hash for DESK_USERS. Raises InvalidInput for a password that is soon guessed."""
    if not SHORTEST_PASSWORD <= len(password) <= LONGEST_PASSWORD:
        raise InvalidInput(
            f"the password must have {SHORTEST_PASSWORD} to {LONGEST_PASSWORD} characters"
        )
    salt = secrets.token_bytes(16)
    derived = _derive(password, salt, COST, BLOCK, LANES)
    return f"scrypt.{COST}.{BLOCK}.{LANES}.{_encode(salt)}.{_encode(derived)}"


def is_right(password: str, hashed: str) -> bool:
    """Return whether a password has this hash."""
    _, cost, block, lanes, salt, derived = hashed.split(".")
    if int(cost) > MOST_COST or int(lanes) > MOST_LANES or len(password) > LONGEST_PASSWORD:
        return False
    try:
        given = _derive(password, _decode(salt), int(cost), int(block), int(lanes))
    except ValueError:
        return False
    return secrets.compare_digest(given, _decode(derived))


def read_users(settings: Settings, *, near: bool) -> dict[str, User]:
    """Return the users by name.

    In development, and where the desk listens on this machine only (`near`), there is a user
    without DESK_USERS. Raises InvalidInput where there is none.
    """
    given = settings.desk_users.get_secret_value()
    found = [DESK_USER.fullmatch(one.strip()) for one in given.split(",") if one]
    users = {
        one["name"]: User(one["name"], "act" if one["role"] == "act" else "look", one["hash"])
        for one in found
        if one is not None
    }
    if users:
        return users
    if settings.environment == "development" and near:
        salt = b"development only"
        derived = _encode(_derive(PLACEHOLDER, salt, 2, 1, 1))
        return {USUAL_NAME: User(USUAL_NAME, "act", f"scrypt.2.1.1.{_encode(salt)}.{derived}")}
    raise InvalidInput(
        "DESK_USERS: is empty, and the desk needs a login here; `celery -A project desk hash` makes"
        " the hash for NAME:act:HASH"
    )


class Logins:
    """Tries logins, slowly and not too often. One process has one."""

    def __init__(
        self, users: dict[str, User], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.users = users
        self._clock = clock
        self._failures: dict[tuple[str, str], deque[float]] = {}
        # A name that does not exist takes as long as a wrong password.
        self._nobody = next(iter(users.values())).hash
        # One at a time: each takes memory, and a guess must not be cheaper in numbers.
        self._lock = threading.Lock()

    def try_login(self, name: str, password: str, address: str) -> User | None:
        """Return the user whose login this is, or None. Raises TooMany."""
        with self._lock:
            keys = (("name", name[:50]), ("address", address))
            if any(
                len(self._recent(key)) >= most
                for key, most in zip(keys, (BY_NAME, BY_ADDRESS), strict=True)
            ):
                raise TooMany
            user = self.users.get(name)
            right = is_right(password, user.hash if user else self._nobody)
            if user is not None and right:
                self._failures.pop(keys[0], None)
                return user
            for key in keys:
                self._failures.setdefault(key, deque()).append(self._clock())
            self._drop_old()
            return None

    def _recent(self, key: tuple[str, str]) -> deque[float]:
        times = self._failures.get(key, deque())
        while times and times[0] < self._clock() - WINDOW:
            times.popleft()
        return times

    def _drop_old(self) -> None:
        if len(self._failures) > MOST_REMEMBERED:
            for key in list(self._failures):
                if not self._recent(key):
                    del self._failures[key]
            while len(self._failures) > MOST_REMEMBERED:
                del self._failures[next(iter(self._failures))]


class TooMany(Exception):
    """There were too many failed logins; a later one may be tried."""
