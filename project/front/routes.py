"""`/`: what the components show, in development. Elsewhere there is no such page."""

from nightshift.component import Composition
from nightshift.runtime import Runtime
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Route

from project.front.pages import Pages, is_shown

pages = Pages()


def make_routes(runtime: Runtime) -> list[Route]:
    """Return the first page's route, in development."""

    def index(request: Request) -> HTMLResponse:
        return pages.answer("index.html", sections=runtime[Composition].front(runtime))

    return [Route("/", index)] if is_shown(runtime) else []
