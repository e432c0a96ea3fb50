"""Where reports of undelivered mail are posted, and the outbox on the development server."""

import secrets
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path

from markupsafe import Markup
from nightshift.runtime import Runtime
from nightshift.web.server import COMMON, NOT_FOUND
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from project.front.pages import LARGEST_ID, Pages, is_shown
from project.mail.settings import MailSettings
from services.mail import outbox
from services.mail.bounces import LARGEST
from services.mail.models import Mail
from services.mail.runtime import BounceDesk, Mailer
from services.mail.transport import FolderTransport

PATH = "/mail/bounces"

pages = Pages(Path(__file__).parent / "templates")

NEWEST = 10


def make_routes(runtime: Runtime) -> list[Route]:
    """Return the route of a message's page, in development, and that of reports with a secret."""
    secret = runtime[MailSettings].bounce_secret.get_secret_value()

    async def receive(request: Request) -> Response:
        """Settle the report that is posted: the bytes of one mail (RFC 5322).

        Whoever posts it knows the secret. One that answers no message of ours is taken, too, so
        that it is not sent again.
        """
        given = request.headers.get("authorization", "")
        if not secrets.compare_digest(given.encode(), f"Bearer {secret}".encode()):
            return NOT_FOUND
        raw = b""
        async for part in request.stream():
            raw += part
            if len(raw) > LARGEST:
                return PlainTextResponse(f"more than {LARGEST} bytes\n", 413, COMMON)
        if not raw:
            return PlainTextResponse("the body must be a mail\n", 400, COMMON)
        settled = await run_in_threadpool(
            runtime[BounceDesk].settle, runtime.unit_of_work, raw, now=runtime.now()
        )
        return JSONResponse({"kind": settled.kind, "mail": settled.mail_id}, headers=COMMON)

    def message(request: Request) -> Response:
        """Show one message."""
        mail_id = request.path_params["mail_id"]
        if mail_id > LARGEST_ID:
            return NOT_FOUND
        with runtime.read_only() as session:
            row = session.get(Mail, mail_id)
        if row is None:
            return NOT_FOUND
        content = _read_content(runtime, row)
        if content is None:
            return pages.answer("mail.html", mail=row, text=None, html=None, attachments=[])
        return pages.answer(
            "mail.html",
            mail=row,
            text=_read_part(content, "plain"),
            html=_read_part(content, "html"),
            attachments=[part.get_filename() for part in content.iter_attachments()],
        )

    return [
        *([Route(PATH, receive, methods=["POST"])] if secret else []),
        *([Route("/mails/{mail_id:int}", message)] if is_shown(runtime) else []),
    ]


def show_mails(runtime: Runtime) -> Markup:
    """Return the list of the newest messages for the first page."""
    with runtime.read_only() as session:
        found = outbox.find_mails(session, limit=NEWEST)
    return pages.render("mails.html", mails=found, newest=NEWEST)


def _read_content(runtime: Runtime, mail: Mail) -> EmailMessage | None:
    """Return a message as it is in the outbox or, when that has erased it, in the mail folder."""
    content, transport = mail.body, runtime[Mailer].transport
    if content is None and isinstance(transport, FolderTransport):
        content = transport.read(mail.reply or "")
    return None if content is None else message_from_bytes(content, policy=default)


def _read_part(content: EmailMessage, subtype: str) -> str | None:
    part = content.get_body((subtype,))
    return None if part is None else str(part.get_content())
