"""Mails from templates. A kind has three, in `templates/`: KIND.subject.txt, KIND.txt and KIND.html; the last two say the same facts.

The texts are English in the templates, and translated as all others (docs/translating.md). A value that a template uses and nobody gave
is an error. In HTML values are escaped; nowhere do they bring characters along that turn or hide what stands around them.
"""

import re
from dataclasses import dataclass, field
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

from services.mail.headers import literal
from services.school.models import Locale
from services.translation import translations

TEMPLATES = Path(__file__).parent / "templates"

# CLDR's plain `en` is American: months before days, and twelve hours.
WRITTEN_AS = {Locale.ENGLISH: "en_GB"}

# Controls but tab and newline, what overrides or isolates the direction of writing, and what is no character by itself.
_UNWANTED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufffe\uffff]")

_INLINER = CSSInliner(load_remote_stylesheets=False)


@dataclass(frozen=True, slots=True)
class MailRules:
    """The school's settings that mails are made by. `sender` is NAME <ADDRESS>, `public_url` where the web server is reached.

    `link_secret` signs the links that turn a kind of mail off.
    """

    sender: str
    school_name: str
    public_url: str
    zone: ZoneInfo
    link_secret: str = field(default="", repr=False)

    def calendar_url(self, token: str) -> str:
        """Return the address of a calendar."""
        return f"{self.public_url}/f/{token}.ics"


def compose(kind: str, locale: Locale, rules: MailRules, **context: Any) -> EmailMessage:
    """Return a mail of a kind with From, Subject, and its body as text and as HTML. The outbox adds the other headers.

    Every kind may be given `calendar_url`, the reader's calendar, and `unsubscribe_url`, which the foot then shows.

    Raises:
        jinja2.UndefinedError: The templates use a value that was not given.
        ValueError: The sender would break the header.
    """
    given: dict[str, Any] = {"calendar_url": None, "unsubscribe_url": None, **context, "locale": locale, "rules": rules}
    templates = _templates(locale)
    # Whatever a title holds: a header must not be ended by it.
    given["subject"] = literal(templates.get_template(f"{kind}.subject.txt").render(given))
    text = re.sub(r"\n{3,}", "\n\n", templates.get_template(f"{kind}.txt").render(given)).strip()
    html = _INLINER.inline(templates.get_template(f"{kind}.html").render(given))
    mail = EmailMessage()
    mail["From"], mail["Subject"] = rules.sender, given["subject"]
    mail.set_content(f"{text}\n", cte="quoted-printable")
    mail.add_alternative(html, subtype="html", cte="quoted-printable")
    return mail


def page(name: str, locale: Locale, rules: MailRules, **context: Any) -> str:
    """Return a page that a mail leads to, `templates/page_NAME.html`: it looks as the mails do."""
    template = _templates(locale).get_template(f"page_{name}.html")
    return template.render(context, locale=locale, rules=rules, calendar_url=None)


@cache
def _templates(locale: Locale) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(["html"], default=False),
        undefined=StrictUndefined,
        finalize=_printable,
        auto_reload=False,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.i18n"],
    )
    environment.install_gettext_translations(translations(locale), newstyle=True)  # type: ignore[attr-defined]
    environment.filters |= {"day": _day, "moment": _moment}
    environment.globals["bdi"] = Markup("<bdi>{}</bdi>").format
    return environment


def _printable(value: Any) -> Any:
    # Of the same type: text that is escaped already stays marked as such.
    return type(value)(_UNWANTED.sub("", value)) if isinstance(value, str) else value


@pass_context
def _day(context: Context, value: date) -> str:
    """Write a date, or the day of an instant on the school's clock: Tuesday, 1 December 2026."""
    rules, locale = context["rules"], context["locale"]
    day = value.astimezone(rules.zone).date() if isinstance(value, datetime) else value
    return format_date(day, "full", locale=WRITTEN_AS.get(locale, locale))


@pass_context
def _clock(context: Context, value: datetime) -> str:
    """Write the time of an instant on the school's clock: 08:15."""
    locale = context["locale"]
    return format_time(value, "short", tzinfo=context["rules"].zone, locale=WRITTEN_AS.get(locale, locale))


@pass_context
def _moment(context: Context, value: datetime) -> str:
    """Write an instant: Tuesday, 1 December 2026, 08:15."""
    return f"{_day(context, value)}, {_clock(context, value)}"
