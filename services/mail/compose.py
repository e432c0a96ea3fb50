"""Make mails from templates.

A kind has three templates, in its noun's folder: KIND.subject.txt, KIND.txt and KIND.html. The last
two say the same facts. Templates are written in English and translated as all other texts are
(docs/translating.md). A template that uses a value which was not given is an error. Values are
escaped in HTML, and characters that turn or hide the text around them are removed everywhere.
"""

import re
import textwrap
from dataclasses import dataclass
from datetime import date, datetime
from email.message import EmailMessage
from functools import cache
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from babel.dates import format_date, format_time
from css_inline import CSSInliner
from jinja2 import Environment, FileSystemLoader, StrictUndefined, pass_context, select_autoescape
from jinja2.runtime import Context
from markupsafe import Markup

from services.mail.headers import POLICY, make_header_text
from services.translation import Locale, translations

TEMPLATES = Path(__file__).parent / "templates"

# CLDR's plain `en` is American: months before days, and twelve hours.
WRITTEN_AS = {Locale.ENGLISH: "en_GB"}

# Control characters except tab and newline, those that override or isolate the direction of
# writing, and code points that are not characters.
_UNWANTED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufffe\uffff]"
)

# RFC 3676, 4: what programs show without breaking it, the line above a signature, and the
# beginnings of lines that need a space before them.
WIDTH = 72
SIGNATURE = "-- "
_STUFFED = re.compile(" |>|From ")

_INLINER = CSSInliner(load_remote_stylesheets=False)


@dataclass(frozen=True, slots=True)
class Frame:
    """What all mails of an installation have in common.

    `sender` is NAME <ADDRESS>. `name` stands above and below each mail. Times are those of `zone`.
    `templates` is the folder with the kinds' own templates, which extend base.html and base.txt.
    """

    sender: str
    name: str
    zone: ZoneInfo
    templates: Path


def compose(kind: str, locale: Locale, frame: Frame, **context: Any) -> EmailMessage:
    """Return a mail of a kind: From, Subject, and a body as text and as HTML.

    The outbox adds the other headers. The foot shows `calendar_url`, the reader's calendar, and
    `unsubscribe_url` where they are given.

    Raises:
        jinja2.UndefinedError: The templates use a value that was not given.
        ValueError: The sender would break the header.
    """
    given: dict[str, Any] = {
        "calendar_url": None,
        "unsubscribe_url": None,
        **context,
        "locale": locale,
        "frame": frame,
    }
    templates = _load_templates(locale, frame.templates)
    # A title may hold line breaks, which would end the header.
    given["subject"] = make_header_text(templates.get_template(f"{kind}.subject.txt").render(given))
    written = templates.get_template(f"{kind}.txt").render(given)
    text = flow(re.sub(r"\n{3,}", "\n\n", written).strip())
    html = _INLINER.inline(templates.get_template(f"{kind}.html").render(given))
    mail = EmailMessage(policy=POLICY)
    mail["From"], mail["Subject"] = frame.sender, given["subject"]
    mail.set_content(f"{text}\n", cte="quoted-printable", params={"format": "flowed"})
    mail.add_alternative(html, subtype="html", cte="quoted-printable")
    return mail


def flow(text: str) -> str:
    """Return a text as `format=flowed` (RFC 3676): lines of 72 columns where their words allow it.

    A program that knows the format joins the lines again, so that they fit its window. An address
    stays whole.
    """
    return "\n".join(
        line if line == SIGNATURE else " \n".join(_break(line.rstrip(" ")))
        for line in text.split("\n")
    )


def _break(line: str) -> list[str]:
    lines = textwrap.wrap(
        line,
        WIDTH - 2,  # the space at a line's end, and that of _STUFFED
        break_long_words=False,
        break_on_hyphens=False,
        expand_tabs=False,
        replace_whitespace=False,
    )
    return [f" {one}" if _STUFFED.match(one) else one for one in lines or [""]]


def render_page(name: str, locale: Locale, frame: Frame, **context: Any) -> str:
    """Return a page that a mail links to, from `page_NAME.html`. It looks like the mails."""
    template = _load_templates(locale, frame.templates).get_template(f"page_{name}.html")
    return template.render(context, locale=locale, frame=frame, calendar_url=None)


@cache
def _load_templates(locale: Locale, folder: Path) -> Environment:
    environment = Environment(
        loader=FileSystemLoader([folder, TEMPLATES]),
        autoescape=select_autoescape(["html"], default=False),
        undefined=StrictUndefined,
        finalize=remove_unwanted,
        auto_reload=False,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.i18n"],
    )
    # jinja2's extension adds the method at run time.
    environment.install_gettext_translations(  # type: ignore[attr-defined]
        translations(locale), newstyle=True
    )
    environment.filters |= {"day": _format_day, "moment": _format_moment}
    environment.globals["bdi"] = Markup("<bdi>{}</bdi>").format
    return environment


def remove_unwanted(value: Any) -> Any:
    """Return a text without the characters that no mail shows; another value as it is."""
    # The type stays the same, so text that is escaped already is not escaped again.
    return type(value)(_UNWANTED.sub("", value)) if isinstance(value, str) else value


@pass_context
def _format_day(context: Context, value: date) -> str:
    """Write a date, or an instant's day in the frame's zone: Tuesday, 1 December 2026."""
    frame, locale = context["frame"], context["locale"]
    day = value.astimezone(frame.zone).date() if isinstance(value, datetime) else value
    return format_date(day, "full", locale=WRITTEN_AS.get(locale, locale))


@pass_context
def _format_clock(context: Context, value: datetime) -> str:
    """Write an instant's time in the frame's zone: 08:15."""
    locale = context["locale"]
    return format_time(
        value, "short", tzinfo=context["frame"].zone, locale=WRITTEN_AS.get(locale, locale)
    )


@pass_context
def _format_moment(context: Context, value: datetime) -> str:
    """Write an instant in the frame's zone: Tuesday, 1 December 2026, 08:15."""
    return f"{_format_day(context, value)}, {_format_clock(context, value)}"
