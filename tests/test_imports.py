"""What import-linter cannot say: circles of modules, and what nouns may import of others.

An import inside a function counts like one at the top.
"""

from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("nightshift", "project", "tasks", "services")

# The modules of a noun that others may import: data and arguments, which do nothing.
LEAVES = {"models", "jobs"}
# Every noun may queue a mail, so of the mail's modules these too. What a text may hold is the same
# where it is written and where it is shown, and so is when an event takes place.
OPEN = {
    "mail": LEAVES | {"outbox", "compose", "headers"},
    "school": LEAVES | {"texts", "recurrences", "series"},
}


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph(*PACKAGES, cache_dir=None)


def find_circles(graph: grimp.ImportGraph) -> list[list[str]]:
    """Return the groups of modules that import each other, directly or by others (Tarjan)."""
    index: dict[str, int] = {}
    lowest: dict[str, int] = {}
    open_modules: list[str] = []
    circles = []

    def visit(module: str) -> None:
        index[module] = lowest[module] = len(index)
        open_modules.append(module)
        for imported in sorted(graph.find_modules_directly_imported_by(module)):
            if imported not in index:
                visit(imported)
                lowest[module] = min(lowest[module], lowest[imported])
            elif imported in open_modules:
                lowest[module] = min(lowest[module], index[imported])
        if lowest[module] == index[module]:
            at = open_modules.index(module)
            circle = sorted(open_modules[at:])
            del open_modules[at:]
            if len(circle) > 1:
                circles.append(circle)

    for module in sorted(graph.modules):
        if module not in index:
            visit(module)
    return circles


def imports_across_nouns(graph: grimp.ImportGraph) -> dict[str, set[str]]:
    """Return what each noun's services import of other nouns, without what all may."""
    nouns = {child.partition(".")[2] for child in graph.find_children("services")}
    nouns = {noun for noun in nouns if graph.find_children(f"services.{noun}")}
    found: dict[str, set[str]] = {}
    for noun in nouns:
        for module in {f"services.{noun}", *graph.find_descendants(f"services.{noun}")}:
            for imported in graph.find_modules_directly_imported_by(module):
                _, _, path = imported.partition(".")
                other, _, leaf = path.partition(".")
                if not imported.startswith("services.") or other not in nouns - {noun}:
                    continue
                if leaf not in OPEN.get(other, LEAVES):
                    found.setdefault(module, set()).add(imported)
    return found


def made_up(*imports: tuple[str, str]) -> grimp.ImportGraph:
    """Return the graph of these imports."""
    graph = grimp.ImportGraph()
    modules = {module for pair in imports for module in pair}
    packages = {module.rpartition(".")[0] for module in modules}
    for module in sorted({*modules, *packages, "services"} - {""}):
        graph.add_module(module)
    for importer, imported in imports:
        graph.add_import(importer=importer, imported=imported)
    return graph


def test_no_modules_import_each_other(graph: grimp.ImportGraph) -> None:
    assert find_circles(graph) == []


def test_circle_is_found() -> None:
    graph = made_up(("a", "b"), ("b", "c"), ("c", "b"), ("c", "d"), ("d", "e"), ("e", "c"))

    assert find_circles(graph) == [["b", "c", "d", "e"]]


def test_packages_that_import_each_others_leaves_are_no_circle() -> None:
    graph = made_up(
        ("services.shop.orders", "services.stock.jobs"),
        ("services.stock.jobs", "services.shop.models"),
    )

    assert find_circles(graph) == []


def test_only_the_project_imports_the_project(graph: grimp.ImportGraph) -> None:
    projects = {"project", *graph.find_descendants("project")}
    importers = {
        importer
        for module in projects
        for importer in graph.find_modules_that_directly_import(module)
    }

    assert importers - projects == set()


def test_scripts_that_import_the_project_are_these() -> None:
    # migrations/env.py is Alembic's entry, and the others are programs and tests.
    outside = ("engine", "services", "tasks", "migrations")
    importing = {
        str(path.relative_to(ROOT))
        for folder in outside
        for path in (ROOT / folder).rglob("*.py")
        if "tests" not in path.parts and imports_project(path)
    }

    assert importing == {"migrations/env.py"}


def imports_project(path: Path) -> bool:
    lines = path.read_text(encoding="utf-8").splitlines()
    starts = ("from project.", "from project ", "import project")
    return any(line.strip().startswith(starts) for line in lines)


def test_nouns_import_of_others_only_leaves(graph: grimp.ImportGraph) -> None:
    assert imports_across_nouns(graph) == {}


def test_import_across_nouns_is_found() -> None:
    graph = made_up(
        ("services.shop.orders", "services.mail.outbox"),
        ("services.shop.orders", "services.mail.models"),
        ("services.shop.orders", "services.mail.delivery"),
        ("services.mail.outbox", "services.shop.models"),
        ("services.mail.outbox", "services.shop.orders"),
    )

    assert imports_across_nouns(graph) == {
        "services.shop.orders": {"services.mail.delivery"},
        "services.mail.outbox": {"services.shop.orders"},
    }


def test_mail_imports_no_other_noun(graph: grimp.ImportGraph) -> None:
    mail = {"services.mail", *graph.find_descendants("services.mail")}
    imported = {name for module in mail for name in graph.find_modules_directly_imported_by(module)}
    services = {name for name in imported if name.startswith("services.")} - mail

    assert services <= {"services.translation"}
