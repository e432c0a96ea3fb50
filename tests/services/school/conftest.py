"""A school as CSV files."""

from pathlib import Path

import pytest

from tests.services.school.builders import SCHOOL, write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with the files of a small school."""
    return write(tmp_path / "school", SCHOOL)
