"""Copies of this repository, without what was built in it."""

from pathlib import Path
from shutil import copytree, ignore_patterns

ROOT = Path(__file__).parent.parent
# Compiled files come along, but not those that another process is about to rename.
BUILT = ignore_patterns(".git", ".venv*", "var", "build", ".env", ".cache", ".*_cache", "*.pyc.*")


def copy_repository(copy: Path) -> None:
    """Copy this repository into an empty folder."""
    copytree(ROOT, copy, symlinks=True, ignore=BUILT, dirs_exist_ok=True)
