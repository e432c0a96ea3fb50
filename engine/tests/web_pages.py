"""A web server with pages of its own: `python -m web_pages`.

`/word/{secret}` answers, `/slow/{secret}` asks the database, `/broken/{secret}` fails.
"""

from pathlib import Path
from typing import Any

from nightshift.celery.app import App
from nightshift.component import Answer, Component, Composition, Probe, Status
from nightshift.database import Session
from nightshift.ledger import ledger
from nightshift.runtime import Runtime
from nightshift.settings import ComponentSettings
from nightshift.web.server import make_app, serve
from sqlalchemy import text
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route


class PageSettings(ComponentSettings):
    page_state: Path = Path("state")


def make_routes(runtime: Runtime) -> list[Route]:
    def say(request: Request) -> Response:
        return PlainTextResponse("word\n")

    def ask(_request: Request) -> Response:
        with runtime.read_only() as session:
            session.execute(text("select count(*) from job"))
        return PlainTextResponse("asked\n")

    def fail(_request: Request) -> Response:
        raise ZeroDivisionError

    return [
        Route("/word/{secret}", say),
        Route("/ask/{secret}", ask),
        Route("/broken/{secret}", fail),
        Route("/form", say, methods=["GET", "POST"]),
    ]


def check_state(runtime: Runtime, _session: Session) -> Answer:
    """Answer with what the file at PAGE_STATE holds."""
    return Status(runtime[PageSettings].page_state.read_text()), "as the file says"


def check_told(runtime: Runtime, _session: Session) -> Answer:
    """Answer with what the file beside PAGE_STATE holds, where there is one."""
    told = runtime[PageSettings].page_state.with_name("told")
    return Status(told.read_text() if told.exists() else "ok"), "as the file says"


pages = Component(
    name="pages",
    settings=PageSettings,
    probes=(
        Probe("state", check_state, "write another", ready=True, ledger=False),
        Probe("ledger's state", check_state, "write another", ready=True),
        Probe("told", check_told, "write another", told=True, ledger=False),
        Probe("not asked", check_state, "write another", ledger=False),
    ),
    routes="web_pages:make_routes",
)
app = App("web_pages", Composition([ledger, pages]))


def make_pages() -> Any:
    """Return the ASGI application, for a server that is started in another way."""
    return make_app(app.runtime)


if __name__ == "__main__":
    serve(app.runtime)
