"""The letters' settings."""

import pytest
from pydantic import ValidationError

from project.letters.settings import LetterSettings


def test_placeholder_secret_is_refused_in_production():
    good = LetterSettings(_env_file=None, environment="production", link_secret="one of our own")
    assert good.secrets() == {"link_secret": "one of our own"}

    with pytest.raises(ValidationError, match="LINK_SECRET"):
        LetterSettings(_env_file=None, environment="production")
