"""Edit Python sources in memory: add an import, a definition, an item of a call's tuple.

Text is inserted where the syntax tree says, so that all else stays as its author wrote it. ruff,
one of the developers' tools, then sorts the imports and formats the whole.
"""

import ast
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

from nightshift.errors import Conflict, InvalidInput

# What ruff may fix by itself: the order of imports.
FIXES = ("check", "--select=I", "--fix", "--quiet")
FORMAT = ("format", "--quiet")


class Source:
    """One module's text. `name` is its path in the project; `edited`: it has been changed."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text
        self.edited = False
        self.tree = self._parse()

    def _parse(self) -> ast.Module:
        try:
            return ast.parse(self.text)
        except (SyntaxError, ValueError) as error:
            line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
            message = error.msg if isinstance(error, SyntaxError) else str(error)
            raise InvalidInput(f"{self.name}{line} is not Python: {message}; fix it") from error

    def bound_names(self) -> set[str]:
        """Return the names that the module's top level imports, defines or assigns."""
        found: set[str] = set()
        for node in self.tree.body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                found |= {(one.asname or one.name).partition(".")[0] for one in node.names}
            elif isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                found.add(node.name)
            else:
                names = (one for one in ast.walk(node) if isinstance(one, ast.Name))
                found |= {one.id for one in names if isinstance(one.ctx, ast.Store)}
        return found

    def define(self, name: str, code: str, *imports: str) -> None:
        """Add a definition of `name` to the module's end, with the imports that it needs.

        Raises Conflict where the name is taken, also by an import.
        """
        for statement in imports:
            self.add_import(statement)
        self.require_free(name)
        self._replace(f"{self.text}\n\n{code}")

    def require_free(self, name: str) -> None:
        """Raise Conflict where the module's top level has this name."""
        if name in self.bound_names():
            raise Conflict(f"{self.name} has the name {name!r} already; choose another one")

    def add_import(self, statement: str) -> None:
        """Add a line `from x import y`, unless y comes from x, or from a module of x, already."""
        module, _, name = statement.removeprefix("from ").partition(" import ")
        imports = (node for node in self.tree.body if isinstance(node, ast.ImportFrom))
        for node in imports:
            ours = f"{node.module}.".startswith(f"{module}.") and not node.level
            if ours and any(one.name == name and one.asname is None for one in node.names):
                return
        self.require_free(name)
        first = self.tree.body[0] if self.tree.body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            self._insert(self._end(first), f"\n\n{statement}\n")  # below the docstring
        else:
            self._insert(0, f"{statement}\n")

    def add_item(self, value: ast.AST | None, item: str) -> None:
        """Add an item to a tuple or list, unless it is there. Raises Conflict for anything else."""
        if not isinstance(value, ast.Tuple | ast.List):
            raise Conflict(
                f"{self.name} has no plain tuple or list to which {item} can be added; make it one"
            )
        wanted = ast.unparse(ast.parse(item, mode="eval"))
        if wanted in map(ast.unparse, value.elts):
            return
        if isinstance(value, ast.Tuple) and len(value.elts) == 1:
            self._insert(self._end(value) - 1, f" {item}")  # behind its comma
        elif value.elts:
            self._insert(self._end(value.elts[-1]), f", {item}")
        else:
            self._insert(self._end(value) - 1, f"{item},")

    def add_to_keyword(self, call: ast.Call, keyword: str, item: str) -> None:
        """Add an item to the tuple that a call has as a keyword, or add that keyword."""
        value = get_keyword(call, keyword)
        if value is None:
            self.add_keyword(call, f"{keyword}=({item},)")
        else:
            self.add_item(value, item)

    def add_keyword(self, call: ast.Call, code: str) -> None:
        """Add a keyword argument to a call that has some."""
        self._insert(self._end(call.keywords[-1].value), f", {code}")

    def insert_before(self, node: ast.stmt, code: str) -> None:
        """Add code before a statement of the module's top level."""
        line = node.lineno - 1
        self._insert(sum(map(len, self._lines()[:line])), f"{code}\n\n")

    def _lines(self) -> list[bytes]:
        return self.text.encode().splitlines(keepends=True)

    def _end(self, node: ast.expr | ast.stmt) -> int:
        """Return where a node ends, in bytes: that is how the tree counts."""
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return sum(map(len, self._lines()[: node.end_lineno - 1])) + node.end_col_offset

    def _insert(self, at: int, code: str) -> None:
        data = self.text.encode()
        self._replace((data[:at] + code.encode() + data[at:]).decode())

    def _replace(self, text: str) -> None:
        self.text = text
        self.edited = True
        self.tree = self._parse()


def format_files(root: Path, names: Collection[str]) -> None:
    """Let the project's ruff sort the imports of these files and format them."""
    for words in (FIXES, FORMAT):
        command = [sys.executable, "-m", "ruff", *words, *names]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        if done.returncode:
            raise InvalidInput(f"ruff refuses what was written: {done.stderr.strip()}")


def get_keyword(call: ast.Call, name: str) -> ast.expr | None:
    """Return the value of a call's keyword, or None."""
    return next((one.value for one in call.keywords if one.arg == name), None)
