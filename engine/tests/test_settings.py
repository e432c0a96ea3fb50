"""The engine's settings, and what every component's settings have in common."""

import re
from datetime import timedelta

import pytest
from nightshift.errors import InvalidInput
from nightshift.settings import ComponentSettings, Settings, read_sections
from pydantic import SecretStr, ValidationError

POSTGRES = "postgresql+psycopg://nightshift@db/nightshift"


class KeySettings(ComponentSettings):
    key: SecretStr = SecretStr("change-me")
    name: str = "change-me"


def read(**values):
    return Settings(_env_file=None, **values)


@pytest.mark.parametrize("name", ["postgres_password", "flower_basic_auth"])
def test_placeholder_secret_is_refused_in_production(name):
    good = {
        "environment": "production",
        "database_url": POSTGRES,
        "postgres_password": "one of our own",
        "flower_basic_auth": "admin:one of our own",
    }
    assert read(**good).environment == "production"

    with pytest.raises(ValidationError, match=name.upper()):
        read(**good | {name: "admin:change-me"})


@pytest.mark.parametrize("name", ["postgres_password", "flower_basic_auth", "metrics_token"])
@pytest.mark.parametrize(
    ("secret", "weakness"),
    [
        ("change-me", "is still a placeholder"),
        ("CHANGE_ME please soon", "is still a placeholder"),
        ("your-secret-goes-here", "is still a placeholder"),
        ("elevenchars", "is shorter than 12 characters"),
        ("aaaaaaaabbbbbbbb", "has fewer than 5 different characters"),
    ],
)
def test_weak_secret_is_refused_in_production(name, secret, weakness):
    values = {"database_url": POSTGRES, "postgres_password": "one of our own"}
    values[name] = f"admin:{secret}" if name == "flower_basic_auth" else secret

    assert read(**values).environment == "development"
    with pytest.raises(ValidationError, match=f"{name.upper()} {weakness}"):
        read(environment="production", **values)


@pytest.mark.parametrize("login", ["admin", "admin:", ":secret", "a:b,c:d", "a:b,c"])
def test_login_is_a_name_and_a_password_without_a_comma(login):
    with pytest.raises(ValidationError, match="must be NAME:PASSWORD, without a comma"):
        read(flower_basic_auth=login)


def test_secret_that_is_not_given_is_empty_in_production():
    settings = read(environment="production")

    assert settings.flower_basic_auth.get_secret_value() == ""


def test_password_of_the_database_is_never_missing():
    with pytest.raises(ValidationError, match="POSTGRES_PASSWORD is missing"):
        read(environment="production", database_url=POSTGRES)


def test_value_comes_from_the_file_that_is_named(tmp_path, monkeypatch):
    (tmp_path / "token").write_text("one of our own\n")
    (tmp_path / "url").write_text("https://school.example")
    (tmp_path / ".env").write_text(f"PUBLIC_URL_FILE={tmp_path}/url\n")
    monkeypatch.setenv("METRICS_TOKEN_FILE", f"{tmp_path}/token")

    settings = Settings(_env_file=tmp_path / ".env")

    assert settings.metrics_token.get_secret_value() == "one of our own"
    assert settings.public_url == "https://school.example"


def test_environment_wins_over_a_file_that_the_other_file_names(tmp_path, monkeypatch):
    (tmp_path / "token").write_text("of the file")
    (tmp_path / ".env").write_text(f"METRICS_TOKEN_FILE={tmp_path}/token\n")
    monkeypatch.setenv("METRICS_TOKEN", "of the environment")

    token = Settings(_env_file=tmp_path / ".env").metrics_token
    assert token.get_secret_value() == "of the environment"


@pytest.mark.parametrize(
    ("content", "also", "said"),
    [
        (None, "", "METRICS_TOKEN_FILE: {}: No such file or directory"),
        (b"\xff", "", "METRICS_TOKEN_FILE: {}: is not UTF-8"),
        (b"a", "b", "METRICS_TOKEN and METRICS_TOKEN_FILE are both set: remove one of them"),
        (b"a\nb", "", "METRICS_TOKEN: holds a control character, or is not UTF-8"),
    ],
)
def test_file_that_cannot_be_used_is_one_line(tmp_path, monkeypatch, content, also, said):
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setenv("METRICS_TOKEN_FILE", str(path))
    monkeypatch.setenv("METRICS_TOKEN", also)

    with pytest.raises(InvalidInput) as refused:
        read_sections([Settings], _env_file=None)

    assert str(refused.value).partition(" (")[0] == said.format(path)


def test_placeholder_secret_is_accepted_in_development():
    assert read(environment="development").environment == "development"


def test_placeholder_in_a_component_is_refused_in_production_and_named():
    with pytest.raises(ValidationError) as refused:
        KeySettings(_env_file=None, environment="production", key="change-me")

    assert "KEY is still a placeholder: set a secret of your own" in str(refused.value)


def test_value_that_is_no_secret_may_be_the_placeholder():
    settings = KeySettings(_env_file=None, environment="production", key="one of our own")

    assert settings.name == "change-me"


def test_password_of_the_database_may_be_the_placeholder_where_it_is_not_used():
    assert read(environment="production", postgres_password="change-me").needs_password is False


def test_secrets_are_those_in_use():
    settings = read(database_url=POSTGRES, postgres_password="hush", metrics_token="token")

    assert settings.secrets() == {
        "postgres_password": "hush",
        "metrics_token": "token",
        "flower_basic_auth": "admin:change-me",
        "sentry_dsn": "",
        "desk_secret": "change-me",
        "desk_users": "",
    }


def test_password_that_is_not_used_is_not_among_the_secrets():
    assert set(read().secrets()) == {
        "metrics_token", "flower_basic_auth", "sentry_dsn", "desk_secret", "desk_users"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("url", "needed"),
    [
        (POSTGRES, True),
        ("postgresql+psycopg://db/nightshift", True),
        ("postgresql+psycopg://nightshift@db:5432/nightshift", True),
        ("postgresql+psycopg://nightshift:hush@db/nightshift", False),
        ("sqlite:///var/nightshift.db", False),
    ],
)
def test_password_is_needed_where_postgres_has_none(url, needed):
    assert read(database_url=url).needs_password is needed


def test_secrets_are_not_shown():
    settings = read(postgres_password="hush", flower_basic_auth="admin:hush", metrics_token="hush")

    assert "hush" not in repr(settings) + str(settings)


def test_wrong_value_is_not_shown():
    with pytest.raises(ValidationError) as refused:
        read(log_level="hush")

    assert "hush" not in str(refused.value)


@pytest.mark.parametrize(("seconds", "good"), [(12, True), (11, False)])
def test_worker_has_time_for_three_heartbeats(seconds, good):
    values = {
        "heartbeat_interval": timedelta(seconds=4),
        "worker_silent_after": timedelta(seconds=seconds),
    }
    if good:
        assert read(**values).worker_silent_after == timedelta(seconds=seconds)
        return

    with pytest.raises(ValidationError) as refused:
        read(**values)

    assert (
        "WORKER_SILENT_AFTER must be at least three times HEARTBEAT_INTERVAL,"
        " or living workers look dead"
    ) in str(refused.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"worker_silent_after": "PT5S"}, "WORKER_SILENT_AFTER"),
        ({"public_url": "calendar.school.example"}, "public_url"),
        ({"public_url": "https://schüle.example"}, "public_url"),
        ({"web_bind": "8000"}, "web_bind"),
        ({"environment": "prod"}, "environment"),
        ({"relay_buffer": 0}, "relay_buffer"),
        ({"relay_interval": "PT0S"}, "relay_interval"),
    ],
)
def test_wrong_setting_is_named(values, message):
    with pytest.raises(ValidationError, match=message):
        read(**values)


def test_environment_wins_over_the_file_and_an_empty_variable_counts_as_missing(
    tmp_path, monkeypatch
):
    path = tmp_path / ".env"
    path.write_text("PUBLIC_URL=https://file.example\nLOG_LEVEL=ERROR\nLOG_FORMAT=json\n")
    monkeypatch.setenv("PUBLIC_URL", "https://environment.example")
    monkeypatch.setenv("LOG_FORMAT", "")

    settings = Settings(_env_file=path)

    assert (settings.public_url, settings.log_level, settings.log_format) == (
        "https://environment.example",
        "ERROR",
        "json",
    )


@pytest.mark.parametrize(
    ("bind", "url"),
    [
        ("127.0.0.1:8123", "http://127.0.0.1:8123"),
        ("0.0.0.0:8000", "http://127.0.0.1:8000"),
        ("[::]:8000", "http://127.0.0.1:8000"),
        ("[::1]:8000", "http://[::1]:8000"),
        ("web.example:80", "http://web.example:80"),
    ],
)
def test_addresses_begin_with_where_the_server_listens_unless_told_otherwise(bind, url):
    assert read(web_bind=bind).public_url == url
    assert read(web_bind=bind, public_url="https://school.example").public_url == (
        "https://school.example"
    )


def test_address_that_follows_a_wrong_setting_has_no_line_of_its_own():
    with pytest.raises(InvalidInput) as refused:
        read_sections([Settings], _env_file=None, web_bind="8000")

    assert [line.partition(":")[0] for line in str(refused.value).splitlines()] == ["WEB_BIND"]


def test_settings_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        read().public_url = "https://other.example"


@pytest.mark.parametrize(
    "url",
    ["filesystem://var/broker", "redis://h/0", "rediss://h/0", "amqp://h//", "amqps://h//"],
)
def test_broker_that_is_supported_is_accepted(url):
    assert read(broker_url=url).broker_url == url


@pytest.mark.parametrize(
    "url",
    [
        "sentinel://h:26379", "memory://", "sqla+sqlite:///x.db", "sqs://", "pyamqp://h//",
        "valkey://h/0", "redis+socket:///run/redis.sock", "redis", "nonsense", "://h",
    ],
)  # fmt: skip
def test_other_broker_is_refused_with_the_list(url):
    with pytest.raises(ValidationError) as refused:
        read(broker_url=url)
    assert (
        "BROKER_URL must begin with one of: filesystem://, redis://, rediss://, amqp://, amqps://"
    ) in str(refused.value)


def read_file(tmp_path, content):
    (tmp_path / ".env").write_bytes(content)
    return read_sections([Settings], _env_file=tmp_path / ".env")


def test_file_is_read(tmp_path):
    assert read_file(tmp_path, "RELAY_BUFFER=7 # ü\n".encode())[Settings].relay_buffer == 7


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"# one\nLOG_LEVEL=INFO\nRELAY_BUFFER\n", "line 3: is not a setting; write NAME=VALUE"),
        (b"= 3\n", "line 1: is not a setting; write NAME=VALUE"),
        (b"LOG_LEVEL=INFO\nPUBLIC_URL=\xff\n", "line 2: is not UTF-8; save the file as UTF-8"),
        (b"PUBLIC_URL=http://\0\n", "PUBLIC_URL: holds a control character"),
    ],
)
def test_line_of_the_file_that_is_wrong_is_named(tmp_path, content, message):
    with pytest.raises(InvalidInput, match=re.escape(message)):
        read_file(tmp_path, content)


def test_every_setting_that_is_wrong_has_a_line_with_what_it_is(tmp_path):
    with pytest.raises(InvalidInput) as refused:
        read_sections([Settings], _env_file=None, relay_buffer="x", web_bind="h:99999")

    assert str(refused.value).splitlines() == [
        "WEB_BIND: its port must be 0 to 65535 (ADDRESS:PORT that the web server listens at)",
        (
            "RELAY_BUFFER: should be a valid integer, unable to parse string as an integer"
            " (messages a queue that the broker holds at most; the rest waits in the ledger)"
        ),
    ]


def test_settings_that_name_files_by_relative_paths():
    relative = Settings(_env_file=None, broker_url="filesystem://var/broker")
    absolute = {"database_url": "sqlite:////a/b.db", "broker_url": "filesystem:///a/broker"}

    assert relative.relative_paths() == ["DATABASE_URL", "BROKER_URL"]
    assert Settings(_env_file=None, **absolute).relative_paths() == []


@pytest.mark.parametrize("name", ["shop", "my-shop-2", "x" * 30])
def test_name_of_a_project_is_accepted(name):
    assert read(project_name=name).project_name == name


@pytest.mark.parametrize("name", ["", "2shop", "Shop", "my_shop", "shop-", "-", "x" * 31, "shop\n"])
def test_name_that_is_none_for_a_host_or_a_container_is_refused(name):
    with pytest.raises(ValidationError, match="project_name"):
        read(project_name=name)
