"""How the pages of the development server look: one frame, without scripts and foreign servers."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from nightshift.runtime import Runtime
from starlette.responses import HTMLResponse

# A path may name any number; a database takes no id beyond this.
LARGEST_ID = 2**31 - 1

FRAME = Path(__file__).parent / "templates"
# A mail is shown in a frame, which inherits the policy: with frame-ancestors 'none' it stays empty.
HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": (
        "default-src 'none'; style-src 'unsafe-inline'; form-action 'none'; frame-ancestors 'self'"
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-robots-tag": "noindex",
}


def is_shown(runtime: Runtime) -> bool:
    """Return whether the web server has these pages: they show secrets, so only in development."""
    return runtime.settings.environment == "development"


class Pages:
    """The templates of one component, which extend `frame.html`. They escape every value."""

    def __init__(self, *folders: Path) -> None:
        self._templates = Environment(
            loader=FileSystemLoader([*folders, FRAME]),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )

    def answer(self, name: str, **context: Any) -> HTMLResponse:
        """Return a page."""
        return HTMLResponse(self.render(name, **context), headers=HEADERS)

    def render(self, name: str, **context: Any) -> Markup:
        """Return a part of a page."""
        return Markup(self._templates.get_template(name).render(context))  # noqa: S704 - escaped
