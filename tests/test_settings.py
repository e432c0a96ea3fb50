"""`.env.example` has every setting, with what it does and its default."""

from datetime import timedelta
from zoneinfo import ZoneInfo

import pytest
from nightshift.settings import ComponentSettings
from pydantic import SecretStr, TypeAdapter
from pydantic.fields import FieldInfo

from tests.conftest import COMPOSITION, ROOT

EXAMPLE = ROOT / ".env.example"
# Three lines of introduction: the first says what the file is, the last is empty.
HEAD = 3


@pytest.fixture(autouse=True)
def _only_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    for section in COMPOSITION.sections:
        for name in section.model_fields:
            monkeypatch.delenv(name.upper(), raising=False)


def lines_of_settings() -> list[str]:
    """Return a comment and an assignment for each setting: the common ones, then each section's."""
    lines = []
    for section in [ComponentSettings, *COMPOSITION.sections]:
        inherited = ComponentSettings.model_fields if section is not ComponentSettings else {}
        for name, field in section.model_fields.items():
            if name not in inherited:
                lines += [f"# {field.description}", f"{name.upper()}={show_default(field)}"]
    return lines


def show_default(field: FieldInfo) -> object:
    default = "" if field.default_factory else field.default
    if isinstance(default, SecretStr):
        return default.get_secret_value()
    if isinstance(default, timedelta):
        return TypeAdapter(timedelta).dump_python(default, mode="json")
    return default


def test_env_example_and_settings_are_equal() -> None:
    lines = EXAMPLE.read_text(encoding="utf-8").splitlines()

    assert lines[HEAD:] == lines_of_settings()


@pytest.mark.parametrize("section", COMPOSITION.sections, ids=lambda section: section.__name__)
def test_env_example_reads_as_the_defaults(section: type[ComponentSettings]) -> None:
    from_file, defaults = section(_env_file=EXAMPLE), section(_env_file=None)

    for name in section.model_fields:
        assert comparable(getattr(from_file, name)) == comparable(getattr(defaults, name)), name


def comparable(value: object) -> object:
    """Return a zone's name: zones are compared by identity, and a cleared cache makes others."""
    return value.key if isinstance(value, ZoneInfo) else value


def test_every_setting_is_described() -> None:
    silent = [
        name
        for section in COMPOSITION.sections
        for name, field in section.model_fields.items()
        if not field.description
    ]

    assert silent == []


def test_secrets_are_not_shown() -> None:
    for section in COMPOSITION.sections:
        secret = {
            name: "https://hush"
            for name, field in section.model_fields.items()
            if field.annotation is SecretStr
        }
        if "desk_users" in secret:
            secret["desk_users"] = "hush:act:scrypt.2.1.1.hush.hush"
        settings = section(_env_file=None, **secret)
        assert "hush" not in repr(settings) + str(settings)


def test_every_placeholder_is_a_secret() -> None:
    placeholders = {
        line.partition("=")[0].lower()
        for line in EXAMPLE.read_text(encoding="utf-8").splitlines()
        if "change-me" in line
    }

    secrets = {
        name
        for section in COMPOSITION.sections
        for name, field in section.model_fields.items()
        if field.annotation is SecretStr
    }
    assert placeholders <= secrets
