"""A mail and a page as a reader sees them."""

from email.message import EmailMessage
from html.parser import HTMLParser


def read_bodies(mail: EmailMessage) -> tuple[str, str]:
    """Return what a mail says, as text and as HTML."""
    plain, html = (mail.get_body((kind,)) for kind in ("plain", "html"))
    text = plain.get_content()
    flowed = plain["content-type"].params.get("format") == "flowed"
    return unflow(text.replace("\r\n", "\n")) if flowed else text, html.get_content()


class Page(HTMLParser):
    """What a reader of a page sees: words, labels of buttons and headings, and where links lead."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[tuple[str, str]] = []
        self.labels, self.words, self.links, self.tags = [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append(tag)
        self.links += [attributes[name] for name in ("href", "src") if name in attributes]
        if tag not in ("meta", "br", "hr", "img", "link"):
            self.open.append((tag, attributes.get("class") or ""))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if any(tag in ("style", "title") for tag, _ in self.open):
            return
        if any(tag == "h1" or name == "button" for tag, name in self.open):
            self.labels.append(data)
        else:
            self.words.append(data)


def unflow(text: str) -> str:
    """Return a text as a program shows it that knows `format=flowed` (RFC 3676, 4.1)."""
    shown, goes_on = [], False
    for line in text.split("\n"):
        own = line.removeprefix(" ")
        shown = [*shown[:-1], shown[-1] + own] if goes_on else [*shown, own]
        goes_on = line.endswith(" ") and line != "-- "
    return "\n".join(shown)
