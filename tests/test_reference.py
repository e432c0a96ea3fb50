"""The pages that are made from the code, and the order of all pages."""

import re
import tomllib

import pytest

from project.reference import DOCS, PAGES
from tests.conftest import COMPOSITION, ROOT


@pytest.mark.parametrize("name", PAGES)
def test_page_is_what_the_code_says(name):
    written = (DOCS / name).read_text(encoding="utf-8")

    assert written == PAGES[name](COMPOSITION), "run `make docs`"


def listed(entries):
    """Yield the pages of the navigation, in its order."""
    for entry in entries:
        for value in entry.values() if isinstance(entry, dict) else [entry]:
            yield from listed(value) if isinstance(value, list) else [value]


def test_every_page_is_in_the_navigation_once():
    config = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))
    pages = [str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")]

    assert sorted(listed(config["project"]["nav"])) == sorted(pages)


def test_first_page_has_the_order_of_the_navigation():
    config = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))
    order = list(listed(config["project"]["nav"]))
    text = (DOCS / "index.md").read_text(encoding="utf-8")
    linked = re.findall(r"\]\(([\w/-]+\.md)\)", text)

    assert linked == sorted(linked, key=order.index)


def test_every_decision_is_listed():
    text = (DOCS / "decisions" / "index.md").read_text(encoding="utf-8")
    pages = sorted(path.name for path in (DOCS / "decisions").glob("0*.md"))

    assert re.findall(r"\((0[\w-]+\.md)\)", text) == pages


def test_glossary_is_in_alphabetical_order():
    words = re.findall(
        r"^\| \*\*(.+?)\*\*", (DOCS / "glossary.md").read_text(encoding="utf-8"), re.MULTILINE
    )

    assert words == sorted(words)
