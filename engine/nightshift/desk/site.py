"""The frame of the desk's pages, and what a component gives to it.

A component names in `desk` a function that takes a `Desk` and returns a `Part`. guard.py makes
routes of its pages and acts, so none of them is reached without a login.
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlencode

from jinja2 import ChoiceLoader, Environment, FileSystemLoader, PrefixLoader, StrictUndefined
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from nightshift.component import Composition, load
from nightshift.database import Session
from nightshift.desk.logins import User
from nightshift.jobs import actions
from nightshift.observe.masks import Mask
from nightshift.observe.words import show_age, show_span
from nightshift.runtime import Runtime

HERE = Path(__file__).parent
STATIC = {path.name: path.read_bytes() for path in sorted((HERE / "static").iterdir())}
VERSION = sha256(b"".join(STATIC.values())).hexdigest()[:12]

LOOPBACK = ("127.0.0.1", "localhost", "::1")

Form = Mapping[str, str]


class Said(NamedTuple):
    """What an act tells the person, and the page that it leads to; by default where they were."""

    text: str
    to: str = ""


class Number(NamedTuple):
    """A number of a tile. `tone`: good, warn or bad, or empty."""

    label: str
    value: int | str
    tone: str = ""
    href: str = ""


@dataclass(frozen=True, slots=True)
class Tile:
    """What a component shows on the first page."""

    title: str
    href: str
    numbers: Sequence[Number]


@dataclass(frozen=True, kw_only=True)
class Part:
    """Pages of the desk below `/NAME`, and what may be done there.

    `pages` and `acts`: by path, as in `/{mail_id:int}`, a function. A page's gets the request and
    returns what `Desk.page` returns. An act's gets the request and its form, and returns what it
    did, as a sentence; it is called only for a user who may act, by a form of the desk. Both may
    raise a ServiceError, which the person reads. `tile` returns the part's tile for the first page.
    `templates`: a folder; its files are called `NAME/FILE`, and extend `page.html`.
    """

    name: str
    title: str
    pages: Mapping[str, Callable[[Request], Response]]
    acts: Mapping[str, Callable[[Request, Form], str | Said]] = field(default_factory=dict)
    tile: Callable[[Session], Tile] | None = None
    templates: Path | None = None

    @property
    def root(self) -> str:
        return f"/{self.name}"


class Desk:
    """What the pages have in common: the runtime, the templates, and what is masked."""

    def __init__(self, runtime: Runtime, own: Sequence[Callable[["Desk"], Part]] = ()) -> None:
        self.runtime = runtime
        self.mask = Mask(runtime)
        made = [load(one.desk) for one in runtime[Composition].components if one.desk]
        self.parts = [make(self) for make in (*own, *made)]
        names = [part.name for part in self.parts]
        if len(set(names)) < len(names):
            raise ValueError(f"two parts of the desk have one name: {', '.join(sorted(names))}")
        folders = {
            part.name: FileSystemLoader(part.templates) for part in self.parts if part.templates
        }
        self._templates = Environment(
            loader=ChoiceLoader([FileSystemLoader(HERE / "templates"), PrefixLoader(folders)]),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters |= {
            "age": self._show_age,
            "moment": show_moment,
            "span": show_span,
            "count": show_count,
            "filter": show_filter,
            "query": urlencode,
        }

    def page(
        self, request: Request, template: str, *, status: int = 200, **context: Any
    ) -> HTMLResponse:
        """Return a page. Its template has `user`, `may_act`, `now` and what is given."""
        user: User | None = getattr(request.state, "user", None)
        host = request.url.hostname or ""
        flower = f"http://{host}:{self.runtime.settings.flower_port}/" if host in LOOPBACK else ""
        text = self._templates.get_template(template).render(
            project=self.runtime.settings.project_name,
            user=user,
            may_act=user is not None and user.may_act,
            csrf=ensure_token(request),
            parts=self.parts,
            path=request.url.path,
            here=str(request.url.path) + (f"?{request.url.query}" if request.url.query else ""),
            said=request.session.pop("said", None),
            version=VERSION,
            flower=flower,
            now=datetime.now(UTC),
            **context,
        )
        return HTMLResponse(text, status)

    def record(
        self, session: Session, request: Request, verb: str, subject: str, *, done: int = 1
    ) -> None:
        """Keep that this request's user did something, in the transaction that does it."""
        now = self.runtime.now()
        actions.record(session, request.state.user.name, verb, subject, now=now, done=done)

    def _show_age(self, moment: datetime | None) -> Markup:
        """Return an instant as its age, with the instant itself beside it for those who ask."""
        if moment is None:
            return Markup("–")
        words = show_age(moment, datetime.now(UTC))
        return Markup("<time datetime='{}' title='{}'>{}</time>").format(
            moment.astimezone(UTC).isoformat(timespec="seconds"), show_moment(moment), words
        )


def show_moment(moment: datetime | None) -> str:
    """Return an instant in the local zone, which is named."""
    if moment is None:
        return "–"
    local = moment.astimezone()
    return f"{local:%Y-%m-%d %H:%M:%S} {local.tzname()}"


def show_count(number: int, most: int | None = None) -> str:
    """Return a number as 12,345; one that is not counted to the end is more than `most`."""
    return f"more than {most:,}" if most is not None and number > most else f"{number:,}"


def show_filter(query: str) -> str:
    """Return a filter as it is read: `state failed, kind bakery.bake`."""
    return ", ".join(f"{name} {value}" for name, value in parse_qsl(query)) or "no filter"


def ensure_token(request: Request) -> str:
    """Return the token that this session's forms carry."""
    if "csrf" not in request.session:
        request.session["csrf"] = secrets.token_urlsafe(24)
    return str(request.session["csrf"])


def is_local(path: str) -> bool:
    """Return whether a path leads to a page of the desk, and to no other host."""
    return path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable()


@dataclass
class Cached:
    """A value that is expensive, made again after a while. Not for what a person has changed."""

    make: Callable[[], Any]
    for_: timedelta
    _made: tuple[datetime, Any] | None = None

    def read(self) -> Any:
        """Return the value."""
        now = datetime.now(UTC)
        if self._made is None or now - self._made[0] > self.for_:
            self._made = (now, self.make())
        return self._made[1]

    def forget(self) -> None:
        """Make the value again when it is read."""
        self._made = None
