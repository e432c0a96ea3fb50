"""Name the files of the engine that are not as the template wrote them. `make check` runs this."""

# ruff: noqa: INP001 - a script
import sys
from hashlib import sha256
from pathlib import Path

FOLDER = Path(__file__).parent


def find_edited() -> list[str]:
    """Return what was edited, removed or added, one line each."""
    lines = (FOLDER / "MANIFEST").read_text(encoding="utf-8").splitlines()
    written = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    there = {
        path.relative_to(FOLDER).as_posix(): sha256(path.read_bytes()).hexdigest()
        for path in (FOLDER / "nightshift").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    there["pyproject.toml"] = sha256((FOLDER / "pyproject.toml").read_bytes()).hexdigest()
    edited = [name for name in written.keys() & there.keys() if written[name] != there[name]]
    return sorted(
        [f"engine/{name} was edited" for name in edited]
        + [f"engine/{name} was removed" for name in written.keys() - there.keys()]
        + [f"engine/{name} was added" for name in there.keys() - written.keys()]
    )


if __name__ == "__main__":
    if found := find_edited():
        found.append("engine/ comes from the template, and is not for editing: docs/updating.md")
        sys.exit("\n".join(found))
