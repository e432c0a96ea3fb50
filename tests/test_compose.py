"""What docker-compose.yml and the Dockerfile promise.

Whether they work only a Docker engine shows: `make up`.
"""

import os
import re
import subprocess
import tomllib
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from nightshift.celery.configuration import TIME_LIMIT
from nightshift.desk.logins import is_right, read_users
from nightshift.settings import NOT_GIVEN
from pydantic import SecretStr
from ruamel.yaml import YAML

from tests.conftest import COMPOSITION, ROOT

COMPOSE: dict[str, Any] = YAML(typ="safe").load(
    (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = ("migrate", "worker", "beat", "web", "desk", "flower")

every_service = pytest.mark.parametrize("name", SERVICES)


def test_the_services_are_these() -> None:
    assert set(SERVICES) == {"postgres", "redis", "mailpit", "caddy", *OURS}


def test_what_an_installation_can_do_without_has_a_profile() -> None:
    profiles = {name: one["profiles"] for name, one in SERVICES.items() if "profiles" in one}

    assert profiles == {
        "mailpit": ["mailpit"],
        "desk": ["desk"],
        "flower": ["flower"],
        "caddy": ["tls"],
    }
    needed = {other for one in SERVICES.values() for other in one.get("depends_on", {})}
    assert not needed & set(profiles)


@pytest.mark.parametrize(
    ("line", "profiles"),
    [
        ("", "flower,mailpit"),  # of a release that had no profiles
        ("COMPOSE_PROFILES=", ""),
        ("COMPOSE_PROFILES=tls,flower", "tls,flower"),
    ],
)
def test_make_starts_the_profiles_of_the_environment_file(
    tmp_path: Path, line: str, profiles: str
) -> None:
    (tmp_path / "Makefile").write_bytes((ROOT / "Makefile").read_bytes())
    (tmp_path / "show.mk").write_text('show:\n\t@echo "$$COMPOSE_PROFILES"\n', encoding="utf-8")
    (tmp_path / ".env").write_text(f"{line}\n", encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if "COMPOSE" not in name}

    shown = subprocess.run(
        ["make", "--silent", "show"],
        cwd=tmp_path,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )

    assert shown.stdout.strip() == profiles


@every_service
def test_a_service_has_no_more_rights_than_it_needs(name: str) -> None:
    service = SERVICES[name]

    assert service["init"] is True
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    # The file of Caddy's program has it.
    assert service.get("cap_add", []) == (["NET_BIND_SERVICE"] if name == "caddy" else [])
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["user"] not in ("root", "0", "0:0")
    assert "mem_limit" in service
    assert any(folder.partition(":")[0] == "/tmp" for folder in service["tmpfs"])


@pytest.mark.parametrize("name", OURS)
def test_our_services_run_as_a_number(name: str) -> None:
    assert SERVICES[name]["user"] == "10001:10001"


@every_service
def test_a_service_that_stays_says_whether_it_is_well(name: str) -> None:
    if name == "migrate":
        assert SERVICES[name]["healthcheck"] == {"disable": True}
        assert SERVICES[name]["restart"] == "no"
    else:
        assert "test" in SERVICES[name]["healthcheck"]
        assert SERVICES[name]["restart"] == "unless-stopped"


@every_service
def test_a_service_waits_for_what_it_needs(name: str) -> None:
    for other, how in SERVICES[name].get("depends_on", {}).items():
        assert how == {
            "condition": "service_completed_successfully"
            if other == "migrate"
            else "service_healthy"
        }


@pytest.mark.parametrize("name", [name for name in SERVICES if name != "caddy"])
def test_ports_are_for_this_machine_only(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))


def test_web_server_only_reads_what_workers_write() -> None:
    written = SERVICES["worker"].get("volumes", [])

    assert SERVICES["web"].get("volumes", []) == [f"{volume}:ro" for volume in written]


def test_every_volume_is_used() -> None:
    mounted = {
        volume.partition(":")[0]
        for service in SERVICES.values()
        for volume in service.get("volumes", [])
        if not volume.startswith("./")
    }

    assert set(COMPOSE["volumes"]) == mounted


def test_tables_of_all_components_are_made_before_our_services_start() -> None:
    assert SERVICES["migrate"]["command"] == ["alembic", "upgrade", "heads"]
    assert all("migrate" in SERVICES[name]["depends_on"] for name in OURS if name != "migrate")


def test_images_are_releases() -> None:
    images = [service["image"] for service in SERVICES.values() if "pull_policy" not in service]
    images += re.findall(
        r"^FROM (\S+:\S+)", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE
    )

    assert len(images) == 5
    assert all(re.search(r":v?\d+\.\d+(\.\d+)?(-|$)", image) for image in images), images


def test_a_worker_has_time_to_end_a_job() -> None:
    grace = timedelta(seconds=int(SERVICES["worker"]["stop_grace_period"].removesuffix("s")))

    assert grace > timedelta(seconds=TIME_LIMIT)


def test_mail_goes_to_mailpit_unless_a_server_is_named() -> None:
    assert (
        SERVICES["worker"]["environment"]["MAIL_URL"] == "${MAIL_URL:-smtp://mailpit:1025?tls=none}"
    )
    # Its page only: SMTP is not published.
    [port] = SERVICES["mailpit"]["ports"]
    assert re.fullmatch(r"127\.0\.0\.1:\$\{MAILPIT_PORT:-\d+\}:8025", port)


def test_addresses_begin_with_the_port_of_this_machine() -> None:
    [port] = SERVICES["web"]["ports"]
    published = port.removesuffix(":8000")

    assert SERVICES["web"]["environment"]["PUBLIC_URL"] == f"${{PUBLIC_URL:-http://{published}}}"


def test_what_compose_sets_are_settings() -> None:
    names = {name for service in OURS for name in SERVICES[service]["environment"]}
    settings = {name.upper() for section in COMPOSITION.sections for name in section.model_fields}

    assert names - {"HEARTBEAT_FILE"} <= settings


# All else of `.env` reaches every service of ours, and holds no secret.
DATABASE = "postgresql+psycopg://${COMPOSE_PROJECT_NAME}@postgres:5432/${COMPOSE_PROJECT_NAME}"
COMMON = {
    "ENVIRONMENT": "production",
    "BROKER_URL": "redis://redis:6379/0",
    "LOG_FORMAT": "json",
    "WEB_BIND": "0.0.0.0:8000",
    "DESK_BIND": "0.0.0.0:8001",
    "HEARTBEAT_FILE": "/tmp/alive",
}
SECRETS = {
    "postgres": {"POSTGRES_PASSWORD"},
    "redis": set(),
    "mailpit": {"FLOWER_BASIC_AUTH"},
    "migrate": {"POSTGRES_PASSWORD"},
    "worker": {
        "FEED_STORE_SECRET",
        "TIMETABLE_PASSWORD",
        "POSTGRES_PASSWORD",
        "LINK_SECRET",
        "MAIL_PASSWORD",
        "BOUNCE_SECRET",
        "BOUNCE_MAILBOX_PASSWORD",
        "SENTRY_DSN",
        "ALERTS_TO",
    },
    "beat": {"POSTGRES_PASSWORD"},
    "web": {
        "BOUNCE_SECRET",
        "FEED_STORE_SECRET",
        "POSTGRES_PASSWORD",
        "LINK_SECRET",
        "METRICS_TOKEN",
        "SENTRY_DSN",
    },
    "desk": {"DESK_SECRET", "DESK_USERS", "FEED_STORE_SECRET", "POSTGRES_PASSWORD"},
    "flower": {"FLOWER_BASIC_AUTH"},
    "caddy": set(),
}


def find_secrets() -> set[str]:
    """Return the secrets among the components' settings. Without the school there are fewer."""
    return {
        field.upper()
        for section in COMPOSITION.sections
        for field, info in section.model_fields.items()
        if info.annotation is SecretStr
    }


@every_service
def test_service_has_the_secrets_that_it_needs_and_no_others(name: str) -> None:
    known = find_secrets()
    given = SERVICES[name].get("environment", {})
    names = {one for value in given.values() for one in re.findall(r"\$\{(\w+)[:?-]", str(value))}

    assert names & known == SECRETS[name] & known
    if name in OURS:
        # What it does not need is there and empty: `.env` has it.
        assert known <= set(given)
        assert {given[one] for one in known - SECRETS[name]} <= {
            "",
            NOT_GIVEN,
            f"none:{NOT_GIVEN}",
        }
        assert COMMON.items() <= given.items()
        # A mail server's user needs its password.
        assert bool(given["MAIL_URL"]) is ("MAIL_PASSWORD" in SECRETS[name])
        assert bool(given["BOUNCE_ADDRESS"]) is ("BOUNCE_SECRET" in SECRETS[name])
        assert given["DATABASE_URL"] == (DATABASE if "POSTGRES_PASSWORD" in SECRETS[name] else "")


@pytest.mark.parametrize("process", ["worker", "web", "desk"])
def test_service_has_what_its_process_needs(process: str) -> None:
    needed = {
        name.upper()
        for component in COMPOSITION.components
        for name in component.needs.get(process, ())
    }

    assert needed <= SECRETS[process]


OWN = {
    "ALERTS_TO": "mailto:a@school.example",
    "DESK_USERS": "anna:act:scrypt.2.1.1.c2FsdA.aGFzaA",
}


@pytest.mark.parametrize("name", OURS)
def test_our_services_start_with_what_compose_gives_them(name: str, tmp_path: Path) -> None:
    own = {one: OWN.get(one, f"anna:of {one}'s own") for names in SECRETS.values() for one in names}
    lines = [f"{one}={value}" for one, value in own.items()]
    (tmp_path / ".env").write_text("\n".join([*lines, "MAIL_URL=smtp://anna@mail.example"]))
    values = {
        one.lower(): re.sub(
            r"\$\{(\w+)[^}]*\}+", lambda found: own.get(found[1], ""), str(value)
        ).replace("postgresql+psycopg://@postgres:5432/", "postgresql+psycopg://a@postgres:5432/a")
        for one, value in SERVICES[name]["environment"].items()
        if value != ""
    }
    blank = {one for one, value in SERVICES[name]["environment"].items() if value == ""}
    kept = [line for line in lines if line.partition("=")[0] not in blank]
    (tmp_path / ".env").write_text("\n".join(kept))
    values |= {"public_url": "https://a.example", "mail_url": "folder:///tmp/mail"}

    runtime = COMPOSITION.runtime(_env_file=tmp_path / ".env", **values)

    read = {
        one.upper()
        for section in runtime.sections
        for one, secret in section.secrets().items()
        if secret
    }
    assert read == SECRETS[name] & find_secrets()


@every_service
def test_networks_are_apart_and_limits_are_set(name: str) -> None:
    service = SERVICES[name]

    assert COMPOSE["networks"]["back"] == {"internal": True}
    assert {"mem_limit", "cpus", "pids_limit"} <= set(service)
    # A published port needs a network with a way out; what keeps data has none.
    assert ("front" in service["networks"]) is (bool(service.get("ports")) or name == "worker")
    assert ("back" in service["networks"]) is (name not in ("mailpit", "caddy"))


def test_secrets_come_from_the_environment_file() -> None:
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")

    for name, keys in (
        ("POSTGRES_PASSWORD", "POSTGRES_PASSWORD"),
        ("FLOWER_BASIC_AUTH", "FLOWER_BASIC_AUTH|MP_UI_AUTH"),
    ):
        values = re.findall(rf"^ +(?:{keys}): (.*)$", text, re.MULTILINE)
        given = [value for value in values if value not in ('""', f"none:{NOT_GIVEN}")]
        assert len(given) == 2
        assert all(value.startswith(f"${{{name}:?") for value in given)


def test_make_makes_an_environment_file_with_secrets_of_its_own(tmp_path: Path) -> None:
    for name in ("Makefile", ".env.example"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())

    said = subprocess.run(
        ["make", ".env"], cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout

    made = tmp_path / ".env"
    assert made.stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / ".env.part").exists()
    database = "postgresql+psycopg://shop@postgres:5432/shop"
    # Every section is read: in production each refuses a placeholder.
    settings = COMPOSITION.runtime(_env_file=made, database_url=database).settings
    assert settings.environment == "production"
    user, _, password = settings.flower_basic_auth.get_secret_value().partition(":")
    assert user == "admin"
    assert len(password) >= 32
    assert len(settings.postgres_password.get_secret_value()) >= 32
    # The desk's first login is shown once, and kept as a hash.
    [(name, shown)] = re.findall(r"login of the desk, .*: (\S+), (\S+)$", said, re.MULTILINE)
    assert read_users(settings, near=False)[name].may_act
    assert is_right(shown, read_users(settings, near=False)[name].hash)
    assert shown not in made.read_text(encoding="utf-8")
    assert password != settings.postgres_password.get_secret_value()
    # Empty: containers have no folder for mail, and docker-compose.yml names Mailpit.
    assert re.findall(r"^MAIL_URL=.*$", made.read_text(encoding="utf-8"), re.MULTILINE) == [
        "MAIL_URL="
    ]
    assert (
        made.read_text(encoding="utf-8").splitlines()[-1] == "COMPOSE_PROFILES=desk,flower,mailpit"
    )


def test_the_image_has_everything_that_is_installed_in_place() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    # Where the engine is a package, it is among the requirements.
    in_place = "./engine ." if (ROOT / "engine").is_dir() else "."

    assert f"pip install --no-deps --no-build-isolation {in_place} " in dockerfile


def test_what_the_image_copies_is_not_ignored() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    lines = re.findall(r"^COPY (?!--from)(.*) \S+$", dockerfile, re.MULTILINE)

    copied = {name for line in lines for name in line.split()}
    assert copied == {line.removeprefix("!") for line in ignored if line.startswith("!")}


def test_packages_of_the_image_are_those_of_the_project() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")

    packages = pyproject["tool"]["setuptools"]["packages"]["find"]["include"]
    assert all(f"COPY {name.removesuffix('*')} " in dockerfile for name in packages)


def test_the_image_is_made_of_nothing_but_what_is_named() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()

    assert next(line for line in lines if not line.startswith("#")) == "*"
    assert not [line for line in lines if line.startswith(("!.env", "!.git", "!var"))]
