"""The few pages that mails lead to, for project/web.py to serve; docs/notices.md and docs/accounts.md say what they do.

A link's secret is in the query, which is written nowhere. GET changes nothing: programs that look at mail follow its links.
"""

from http import HTTPStatus

from babel import negotiate_locale
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Route

from project.bootstrap import Bootstrap
from services.errors import PermanentError
from services.mail import accounts, unsubscribe
from services.mail.compose import page
from services.school.models import KeyPurpose, Locale

UNSUBSCRIBE, VERIFY = unsubscribe.PATH, accounts.PATHS[KeyPurpose.VERIFY_ADDRESS]
PATHS = {UNSUBSCRIBE, VERIFY}

HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-robots-tag": "noindex",
}


def make_routes(boot: Bootstrap) -> list[Route]:
    """Return the pages' routes."""

    def unsubscribing(request: Request) -> HTMLResponse:
        """Ask before a kind of mail is turned off, and turn it off by POST, which a mail program may send by itself (RFC 8058)."""
        token, secret = request.query_params.get("t", ""), boot.mail_rules.link_secret
        try:
            if request.method == "POST":
                with boot.unit_of_work() as session:
                    locale = unsubscribe.unsubscribe(session, token, secret=secret, now=boot.now())
                return answer("unsubscribed", locale)
            with boot.read_only() as session:
                user, flag = unsubscribe.read(session, token, secret=secret, now=boot.now())
                return answer("unsubscribe", user.locale, flag=flag)
        except PermanentError:
            return answer("link_invalid", _spoken(request), HTTPStatus.NOT_FOUND)

    def verifying(request: Request) -> HTMLResponse:
        """Ask before a key is redeemed that verifies an address, and redeem it by POST."""
        if request.method != "POST":
            return answer("verify", _spoken(request))
        try:
            with boot.unit_of_work() as session:
                accounts.redeem(session, request.query_params.get("key", ""), KeyPurpose.VERIFY_ADDRESS, now=boot.now())
        except PermanentError:
            return answer("link_invalid", _spoken(request), HTTPStatus.NOT_FOUND)
        return answer("verified", _spoken(request))

    def answer(name: str, locale: Locale, status: HTTPStatus = HTTPStatus.OK, **context: str) -> HTMLResponse:
        return HTMLResponse(page(name, locale, boot.mail_rules, **context), status, HEADERS)

    endpoints = {UNSUBSCRIBE: unsubscribing, VERIFY: verifying}
    return [Route(path, endpoint, methods=["GET", "POST"]) for path, endpoint in endpoints.items()]


def _spoken(request: Request) -> Locale:
    """Return the language that a browser asks for, of those that there are."""
    asked = [part.partition(";")[0].strip() for part in request.headers.get("accept-language", "").split(",")]
    return Locale(negotiate_locale(asked, list(Locale), sep="-") or Locale.GERMAN)
