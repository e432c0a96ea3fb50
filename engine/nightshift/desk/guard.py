"""Who may do what at the desk. Every route is made here, and without a login none is answered.

A page needs a user. An act needs a user who may act, and a form of this desk: the cookie is strict,
and the form carries a token of the session.
"""

import logging
import secrets
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, urlencode

from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from nightshift.celery import logs
from nightshift.desk.logins import BY_NAME, WINDOW, Logins, TooMany, User
from nightshift.desk.site import STATIC, Desk, Form, Part, Said, ensure_token, is_local
from nightshift.errors import InvalidInput, NotFound, ServiceError, first_line

logger = logging.getLogger("nightshift.desk")

SESSION_SECONDS = 12 * 3600
LARGEST_FORM = 65_536
MOST_FIELDS = 200

# `connect-src` is for the refreshing of numbers.
HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self';"
        " connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "x-robots-tag": "noindex, nofollow",
}
TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


class Guard:
    """Makes the routes of a desk."""

    def __init__(self, desk: Desk, logins: Logins) -> None:
        self._desk = desk
        self._logins = logins

    def make_routes(self) -> list[BaseRoute]:
        """Return the routes of all parts, and of the login."""

        def unknown(_request: Request) -> Response:
            raise NotFound("there is no such page")

        routes: list[BaseRoute] = [
            Route("/health", _say_that_it_lives),
            Route("/static/{name}", _send_static),
            Route("/login", self._show_login, methods=["GET"]),
            Route("/login", self._log_in, methods=["POST"]),
            Route("/logout", self._log_out, methods=["POST"]),
        ]
        for part in self._desk.parts:
            for path, page in part.pages.items():
                routes.append(Route(_join(part, path), self._guard_page(page), methods=["GET"]))
            for path, act in part.acts.items():
                route = Route(_join(part, path), self._guard_act(part, act), methods=["POST"])
                routes.append(route)
        every = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
        return [*routes, Route("/{path:path}", self._guard_page(unknown), methods=every)]

    def _find_user(self, request: Request) -> User | None:
        session = request.session
        user = self._logins.users.get(str(session.get("user")))
        at = session.get("at")
        young = isinstance(at, int | float) and 0 <= time.time() - at < SESSION_SECONDS
        if user is None or not young or session.get("seal") != user.seal:
            return None
        return user

    def _guard_page(self, page: Callable[[Request], Response]) -> Any:
        async def endpoint(request: Request) -> Response:
            user = self._find_user(request)
            if user is None:
                return self._ask_for_login(request)
            request.state.user = user
            return await run_in_threadpool(self._answer, request, page)

        return endpoint

    def _guard_act(self, part: Part, act: Callable[[Request, Form], str | Said]) -> Any:
        async def endpoint(request: Request) -> Response:
            user = self._find_user(request)
            if user is None:
                return self._ask_for_login(request)
            request.state.user = user
            form = await _read_form(request)
            refusal = _find_refusal(request, form)
            if not refusal and not user.may_act:
                refusal = f"{user.name} may look, and not act"
            if refusal:
                logger.warning("refused %s to %s: %s", part.name, user.name, refusal)
                return self._refuse(request, 403, refusal)
            return await run_in_threadpool(self._perform, request, part, act, form)

        return endpoint

    def _answer(self, request: Request, page: Callable[[Request], Response]) -> Response:
        try:
            return page(request)
        except NotFound as error:
            return self._refuse(request, 404, str(error))
        except ServiceError as error:
            return self._refuse(request, 400, str(error))
        except SQLAlchemyError as error:
            return self._say_that_it_is_away(request, error)

    def _perform(
        self, request: Request, part: Part, act: Callable[[Request, Form], str | Said], form: Form
    ) -> Response:
        back = form.get("back", "")
        to = back if is_local(back) else part.root
        try:
            said = act(request, form)
        except InvalidInput as error:
            return self._refuse(request, 400, str(error))
        except ServiceError as error:
            request.session["said"] = ["bad", self._desk.mask.text(str(error))]
            return RedirectResponse(to, 303)
        except SQLAlchemyError as error:
            return self._say_that_it_is_away(request, error)
        text, target = (said.text, said.to) if isinstance(said, Said) else (said, "")
        request.session["said"] = ["good", self._desk.mask.text(text)[:500]]
        return RedirectResponse(target or to, 303)

    def _refuse(self, request: Request, status: int, why: str) -> Response:
        title = {404: "Not found", 403: "Refused"}.get(status, "That does not work")
        text = self._desk.mask.text(why)
        return self._desk.page(request, "refused.html", status=status, title=title, why=text)

    def _say_that_it_is_away(self, request: Request, error: Exception) -> Response:
        logger.warning("the database does not answer: %s", first_line(error), extra=logs.SELDOM)
        why = "The database does not answer, or took too long. Try again in a moment."
        return self._refuse(request, 503, why)

    # --- Login ---

    def _ask_for_login(self, request: Request) -> Response:
        if request.method not in ("GET", "HEAD"):
            # What the form held is lost; the page that it was on is not known.
            return RedirectResponse("/login", 303)
        here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        if request.headers.get("sec-fetch-site") == "cross-site":
            # A browser sends no strict cookie with a link from elsewhere. From this page it does.
            return self._desk.page(request, "continue.html", to=here)
        return RedirectResponse(f"/login?{urlencode({'to': here})}", 303)

    async def _show_login(self, request: Request) -> Response:
        return self._show_form(request, request.query_params.get("to", "/"))

    def _show_form(
        self, request: Request, to: str, *, status: int = 200, wrong: str = ""
    ) -> Response:
        to = to if is_local(to) else "/"
        return self._desk.page(request, "login.html", status=status, to=to, wrong=wrong)

    async def _log_in(self, request: Request) -> Response:
        form = await _read_form(request)
        to = form.get("to", "/")
        if refusal := _find_refusal(request, form):
            # A form that was open for very long has lost its token: a new one comes with the page.
            return self._show_form(request, to, status=403, wrong=f"Try again: {refusal}.")
        address = request.client.host if request.client else ""
        name, password = form.get("name", ""), form.get("password", "")
        try:
            user = await run_in_threadpool(self._logins.try_login, name, password, address)
        except TooMany:
            wrong = f"Too many logins failed. Wait {WINDOW / 60:.0f} minutes."
            logger.warning("a login was refused: more than %d failed", BY_NAME)
            answer = self._show_form(request, to, status=429, wrong=wrong)
            answer.headers["retry-after"] = f"{WINDOW:.0f}"
            return answer
        if user is None:
            logger.warning("a login failed")
            wrong = "This name and this password do not belong together."
            return self._show_form(request, to, status=401, wrong=wrong)
        request.session.clear()
        request.session.update(user=user.name, seal=user.seal, at=time.time())
        ensure_token(request)
        logger.info("%s has logged in", user.name)
        return RedirectResponse(to if is_local(to) else "/", 303)

    async def _log_out(self, request: Request) -> Response:
        form = await _read_form(request)
        if _find_refusal(request, form):
            return RedirectResponse("/", 303)
        request.session.clear()
        return RedirectResponse("/login", 303)


def _join(part: Part, path: str) -> str:
    return (f"/{part.name}" if part.name else "") + ("" if path == "/" and part.name else path)


async def _read_form(request: Request) -> Form:
    """Return a form's fields. A body that is no small form has none, and so no token."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        return {}
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > LARGEST_FORM:
            return {}
    try:
        fields = parse_qsl(
            body.decode(), keep_blank_values=True, max_num_fields=MOST_FIELDS, errors="strict"
        )
    except ValueError:  # not UTF-8, or too many fields
        return {}
    return dict(fields)


def _find_refusal(request: Request, form: Form) -> str:
    """Return why a form is not one of this desk, or an empty string."""
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    host = request.headers.get("host", "")
    if site not in (None, "same-origin", "none"):
        return "the form comes from another site"
    if origin is not None and origin.partition("://")[2] != host:
        return "the form comes from another site"
    wanted = str(request.session.get("csrf", ""))
    given = form.get("csrf", "")
    if not wanted or not secrets.compare_digest(wanted.encode(), given.encode()):
        return "the form is out of date"
    return ""


async def _say_that_it_lives(_request: Request) -> Response:
    return PlainTextResponse("ok\n")


async def _send_static(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in STATIC:
        return PlainTextResponse("not found\n", 404)
    headers = {"cache-control": "public, max-age=31536000, immutable"}
    return Response(STATIC[name], media_type=TYPES[name.rpartition(".")[2]], headers=headers)
