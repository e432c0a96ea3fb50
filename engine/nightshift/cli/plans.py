"""The files that `celery -A project new` will write: planned, checked, and written together."""

import ast
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from nightshift.celery.app import App
from nightshift.cli import new_files
from nightshift.cli.sources import Source, format_files, get_keyword
from nightshift.errors import Conflict, InvalidInput, NotFound


class Plan:
    """The files that a command will write. Raises a ServiceError for each that it cannot."""

    def __init__(self, app: App, noun: str) -> None:
        self.root, self.package = _find_project(app)
        self.noun = noun
        self._sources: dict[str, Source] = {}
        self._migrations = self._list_migrations()
        for taken in (f"services/{noun}.py", f"{self.package}/{noun}.py", f"tasks/{noun}"):
            if (self.root / taken).exists():
                raise Conflict(f"the noun {noun!r} is taken by {taken}; choose another one")
        for floor in ("services", self.package):
            self.open(f"{floor}/{noun}/__init__.py")
        home = f"{self.package}/{noun}/component.py"
        listed = noun in (one.name for one in app.composition.components)
        if listed and not (self.root / home).exists():
            raise Conflict(f"the component {noun!r} exists already, and is not in {home}")
        self.component = self.open(home, new_files.COMPONENT.format(noun=noun))
        self._find_call()
        if not listed:
            self._list_component()

    def _list_component(self) -> None:
        listing = self.open(f"{self.package}/app.py")
        listing.add_import(f"from {self.package}.{self.noun}.component import {self.noun}")
        values = (
            node.value
            for node in listing.tree.body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "COMPONENTS"
        )
        listing.add_item(next(values, None), self.noun)

    def open(self, name: str, text: str = "") -> Source:
        """Return a file's source; `text` is that of a file that does not exist."""
        if name not in self._sources:
            try:
                there = (self.root / name).read_text(encoding="utf-8")
            except FileNotFoundError:
                there = text
            except (OSError, UnicodeDecodeError) as error:
                raise InvalidInput(f"{name} cannot be read: {error}") from error
            self._sources[name] = Source(name, there)
        return self._sources[name]

    def create(self, name: str, text: str) -> None:
        """Add a file. Raises Conflict when it exists."""
        if (self.root / name).exists():
            raise Conflict(f"{name} exists already; choose another name, or remove it")
        self.open(name, text)

    def _find_call(self) -> tuple[ast.Assign, ast.Call]:
        for node in self.component.tree.body:
            if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Call):
                continue
            name = get_keyword(node.value, "name")
            if isinstance(name, ast.Constant) and name.value == self.noun:
                return node, node.value
        raise Conflict(
            f'{self.component.name} has no `{self.noun} = Component(name="{self.noun}")`'
        )

    def add_to_component(self, field: str, item: str) -> None:
        """Add an item to one of the component's tuples."""
        self.component.add_to_keyword(self._find_call()[1], field, item)

    def add_entry(self, entry: str, when: timedelta | str) -> None:
        """Add an entry to the function that the component names in `schedule`, or write one."""
        source = self.component
        source.add_import("from datetime import UTC")
        source.add_import("from nightshift.jobs.schedule import Entry")
        if isinstance(when, timedelta):
            source.add_import("from datetime import timedelta")
        place, call = self._find_call()
        function = get_keyword(call, "schedule")
        if function is None:
            source.require_free("make_schedule")
            source.insert_before(place, new_files.SCHEDULE.format(entry=entry))
            source.add_keyword(self._find_call()[1], "schedule=make_schedule")
            source.add_import("from collections.abc import Sequence")
            source.add_import("from nightshift.runtime import Runtime")
            return
        last = [
            node.body[-1]
            for node in source.tree.body
            if isinstance(node, ast.FunctionDef) and node.name == ast.unparse(function)
        ]
        returned = last[0].value if last and isinstance(last[0], ast.Return) else function
        source.add_item(returned, entry)

    @contextmanager
    def written(self) -> Iterator[list[str]]:
        """Write all files and yield a line for each. After an exception all is as it was."""
        before = {name: self._read(name) for name in self._sources}
        after = sorted(
            name for name, one in self._sources.items() if before[name] is None or one.edited
        )
        folders: list[Path] = []
        try:
            for name in after:
                path = self.root / name
                for folder in [one for one in path.parents if not one.exists()][::-1]:
                    folder.mkdir()
                    folders.append(folder)
                path.write_text(self._sources[name].text, encoding="utf-8")
            # When all are there: ruff sorts imports by the modules that it finds.
            format_files(self.root, after)
            yield [f"{'wrote  ' if before[name] is None else 'changed'}  {name}" for name in after]
        except BaseException as error:
            for path in self.find_new_migrations():
                (self.root / path).unlink()
            for name in after:
                old, path = before[name], self.root / name
                path.unlink(missing_ok=True) if old is None else path.write_bytes(old)
            for folder in reversed(folders):
                folder.rmdir()
            if isinstance(error, OSError):
                raise InvalidInput(f"a file cannot be written: {error}") from error
            raise

    def _read(self, name: str) -> bytes | None:
        path = self.root / name
        return path.read_bytes() if path.exists() else None

    def _list_migrations(self) -> set[Path]:
        found = (self.root / "migrations").rglob("*.py")
        return {path.relative_to(self.root) for path in found}

    def find_new_migrations(self) -> list[Path]:
        """Return the migrations that were written since this object was made."""
        return sorted(self._list_migrations() - self._migrations)


@contextmanager
def scratch_database(root: Path) -> Iterator[Callable[..., None]]:
    """Yield what runs Alembic on an empty SQLite database: the project's own may be away.

    Raises Conflict with Alembic's last line when it fails.
    """
    with TemporaryDirectory() as folder:
        environment = {"DATABASE_URL": f"sqlite:///{folder}/scratch.db", "DATABASE_POOLER": "none"}

        def alembic(*words: str) -> None:
            done = subprocess.run(
                [sys.executable, "-m", "alembic", *words],
                cwd=root,
                env={**os.environ, **environment},
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                last = (done.stdout + done.stderr).strip().rpartition("\n")[2]
                raise Conflict(f"`alembic {' '.join(words)}` failed: {last}")

        yield alembic


def _find_project(app: App) -> tuple[Path, str]:
    """Return the project's folder and the name of the package that composes it."""
    package = (app.main or "").partition(".")[0]
    folder = next(iter(getattr(import_module(package), "__path__", [])), None)
    root = Path(folder or ".").absolute().parent
    needed = ("pyproject.toml", f"{package}/app.py", "services", "tasks")
    if folder is None or not all((root / name).exists() for name in needed):
        raise NotFound(
            f"{package} is not a project of the template, with {', '.join(needed)}: `new` cannot"
            " add to it"
        )
    if find_spec("ruff") is None:
        raise NotFound("`new` needs ruff, one of the developers' tools: run `make .venv/.dev`")
    return root, package
