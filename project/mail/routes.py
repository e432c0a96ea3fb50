"""The outbox on the development server's pages: a list of messages, and each as it was sent."""

from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path

from markupsafe import Markup
from nightshift.runtime import Runtime
from nightshift.web.server import NOT_FOUND
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from project.front.pages import LARGEST_ID, Pages, is_shown
from services.mail import outbox
from services.mail.models import Mail
from services.mail.runtime import Mailer
from services.mail.transport import FolderTransport

pages = Pages(Path(__file__).parent / "templates")

NEWEST = 10


def make_routes(runtime: Runtime) -> list[Route]:
    """Return the route of a message's page, in development."""

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

    return [Route("/mails/{mail_id:int}", message)] if is_shown(runtime) else []


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
