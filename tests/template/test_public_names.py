"""The public names of the engine, which its docstring lists: all are there, and no other is needed."""

import re
from collections.abc import Iterator
from importlib import import_module

import nightshift

from tests.conftest import ROOT

ROW = re.compile(r"^    (nightshift[\w.]*) {2,}(.*(?:\n {20,}.*)*)$", re.MULTILINE)
LISTED = {
    module: {name.strip() for name in names.replace("\n", " ").split(",")}
    for module, names in ROW.findall(nightshift.__doc__)
}
IMPORT = re.compile(r"^ *from (nightshift[\w.]*) import (\([^)]*\)|.+)$", re.MULTILINE)
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def find_imports(code: str) -> Iterator[tuple[str, str]]:
    """Yield each module of the engine that is imported from, with each name."""
    assert not re.search(r"^\s*import nightshift", code, re.MULTILINE), code
    for module, names in IMPORT.findall(code):
        for name in re.sub(r"[()]|#.*", "", names).split(","):
            if name.strip():
                yield module, name.split()[0]


def what_users_write() -> Iterator[tuple[str, str]]:
    """Yield each piece of code that a user is given as an example, with its place."""
    for path in (ROOT / "template").rglob("*.py"):
        # Links lead to what updates along with the engine; `tests` help themselves, too.
        if not path.is_symlink() and not any(part.is_symlink() for part in path.parents):
            yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
    for path in (ROOT / "docs").glob("*.md"):
        for number, code in enumerate(BLOCK.findall(path.read_text(encoding="utf-8")), 1):
            yield f"{path.name}, block {number}", code
    for name in ("project/settings.py", "project/app.py", "project/celery.py", "migrations/env.py"):
        yield name, (ROOT / name).read_text(encoding="utf-8")


def test_each_public_name_is_there():
    missing = [
        f"{module}: {name}"
        for module, names in LISTED.items()
        for name in names
        if not hasattr(import_module(module), name)
    ]

    assert len(LISTED) > 15
    assert missing == []


def test_packages_list_what_they_export():
    assert set(import_module("nightshift.jobs").__all__) == LISTED["nightshift.jobs"]


def test_examples_import_public_names_only():
    others = {
        f"{place}: {module}.{name}"
        for place, code in what_users_write()
        for module, name in find_imports(code)
        if name not in LISTED.get(module, ())
    }

    assert others == set()
