"""The pages that letters link to; docs/notices.md and docs/accounts.md describe them.

A link's secret is in the query, which is not logged. GET changes nothing, because programs that
scan mail follow its links.
"""

from http import HTTPStatus

from nightshift.errors import PermanentError
from nightshift.runtime import Runtime
from nightshift.web.server import COMMON
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Route

from services.letters import accounts, unsubscribe
from services.letters.rules import LetterRules
from services.mail.compose import render_page
from services.school.models import KeyPurpose
from services.translation import Locale, negotiate

UNSUBSCRIBE, VERIFY = unsubscribe.PATH, accounts.PATHS[KeyPurpose.VERIFY_ADDRESS]
HEADERS = COMMON | {
    "cache-control": "no-store",
    "content-security-policy": (
        "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
}


def make_routes(runtime: Runtime) -> list[Route]:
    """Return the pages' routes."""
    rules = runtime[LetterRules]

    def spoken(request: Request) -> Locale:
        return negotiate(request.headers.get("accept-language", ""))

    def unsubscribing(request: Request) -> HTMLResponse:
        """Show a question; turn a kind of mail off by POST.

        A mail program may send the POST by itself (RFC 8058).
        """
        token, secret = request.query_params.get("t", ""), rules.link_secret
        try:
            if request.method == "POST":
                with runtime.unit_of_work() as session:
                    locale = unsubscribe.unsubscribe(
                        session, token, secret=secret, now=runtime.now()
                    )
                return answer("unsubscribed", locale)
            with runtime.read_only() as session:
                user, flag = unsubscribe.read_link(session, token, secret=secret, now=runtime.now())
                return answer("unsubscribe", user.locale, flag=flag)
        except PermanentError:
            return answer(
                "link_invalid",
                spoken(request),
                HTTPStatus.NOT_FOUND,
            )

    def verifying(request: Request) -> HTMLResponse:
        """Show a question; redeem a key that verifies an address by POST."""
        if request.method != "POST":
            return answer("verify", spoken(request))
        try:
            with runtime.unit_of_work() as session:
                accounts.redeem(
                    session,
                    request.query_params.get("key", ""),
                    KeyPurpose.VERIFY_ADDRESS,
                    now=runtime.now(),
                )
        except PermanentError:
            return answer(
                "link_invalid",
                spoken(request),
                HTTPStatus.NOT_FOUND,
            )
        return answer("verified", spoken(request))

    def answer(
        name: str, locale: Locale, status: HTTPStatus = HTTPStatus.OK, **context: str
    ) -> HTMLResponse:
        return HTMLResponse(render_page(name, locale, rules.frame, **context), status, HEADERS)

    endpoints = {UNSUBSCRIBE: unsubscribing, VERIFY: verifying}
    return [Route(path, endpoint, methods=["GET", "POST"]) for path, endpoint in endpoints.items()]
