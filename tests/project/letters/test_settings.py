"""The letters' settings."""

import pytest
from nightshift.errors import InvalidInput
from pydantic import ValidationError

from project.letters.settings import LetterSettings
from tests.conftest import COMPOSITION, make_runtime


def test_placeholder_secret_is_refused_in_production():
    good = LetterSettings(_env_file=None, environment="production", link_secret="one of our own")
    assert good.secrets() == {"link_secret": "one of our own"}

    with pytest.raises(ValidationError, match="LINK_SECRET"):
        LetterSettings(_env_file=None, environment="production", link_secret="change-me")


@pytest.mark.parametrize("process", ["worker", "web"])
def test_what_signs_and_checks_links_needs_the_secret(process):
    without = make_runtime(environment="production")
    with pytest.raises(InvalidInput, match=f"LINK_SECRET: is missing, and the {process} needs it"):
        COMPOSITION.require_secrets(without, process)
    COMPOSITION.require_secrets(without, "beat")
    own = make_runtime(environment="production", link_secret="one of our own")
    COMPOSITION.require_secrets(own, process)
