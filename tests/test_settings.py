from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr, TypeAdapter, ValidationError

from project.settings import Settings

ROOT = Path(__file__).parent.parent


def lines_of_settings() -> list[str]:
    lines = []
    for name, field in Settings.model_fields.items():
        default = field.default
        if isinstance(default, SecretStr):
            default = default.get_secret_value()
        if isinstance(default, timedelta):
            default = TypeAdapter(timedelta).dump_python(default, mode="json")
        lines += [f"# {field.description}", f"{name.upper()}={default}"]
    return lines


def test_env_example_and_settings_are_equal():
    lines = (ROOT / ".env.example").read_text().splitlines()
    assert lines[3:] == lines_of_settings()


@pytest.fixture(autouse=True)
def only_the_file(monkeypatch):
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


def test_env_example_reads_as_the_defaults():
    def values(settings):
        # Zones are compared by identity, and a cache that was cleared makes new ones.
        return settings.model_copy(update={"school_timezone": settings.school_timezone.key})

    assert values(Settings(_env_file=ROOT / ".env.example")) == values(Settings(_env_file=None))


@pytest.mark.parametrize("name", ["postgres_password", "link_secret", "flower_basic_auth"])
def test_placeholder_secret_is_refused_in_production(name):
    good = {
        "environment": "production",
        "database_url": "postgresql+psycopg://nightshift@db/nightshift",
        "postgres_password": "one of our own",
        "link_secret": "one of our own",
        "flower_basic_auth": "admin:one of our own",
    }
    assert Settings(_env_file=None, **good).environment == "production"
    del good[name]
    with pytest.raises(ValidationError, match=name.upper()):
        Settings(_env_file=None, **good)


def test_secrets_are_not_shown():
    settings = Settings(_env_file=None, postgres_password="hush", flower_basic_auth="admin:hush", mail_password="hush")
    assert "hush" not in repr(settings) + str(settings)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"school_timezone": "Europe/Zurihc"}, "school_timezone"),
        ({"worker_silent_after": "PT5S"}, "WORKER_SILENT_AFTER"),
        ({"feed_days_ahead": 0}, "feed_days_ahead"),
        ({"public_url": "calendar.school.example"}, "public_url"),
        ({"public_url": "https://schüle.example"}, "public_url"),
        ({"web_bind": "8000"}, "web_bind"),
        ({"feed_store": Path(__file__)}, "is a file; name a folder"),
        ({"mail_url": "smtp://school@mail.school.example"}, "MAIL_PASSWORD is needed"),
        ({"mail_from": "nobody"}, "MAIL_FROM"),
    ],
)
def test_wrong_setting_is_named(values, message):
    with pytest.raises(ValidationError, match=message):
        Settings(_env_file=None, **values)
