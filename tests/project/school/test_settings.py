"""The school's settings."""

import pytest
from pydantic import ValidationError

from project.school.settings import SchoolSettings


def test_zone_that_does_not_exist_is_named():
    with pytest.raises(ValidationError, match="school_timezone"):
        SchoolSettings(_env_file=None, school_timezone="Europe/Zurihc")


def test_zone_is_read_by_its_name():
    settings = SchoolSettings(_env_file=None, school_timezone="America/Chicago")

    assert settings.school_timezone.key == "America/Chicago"
