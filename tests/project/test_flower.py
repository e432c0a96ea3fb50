"""`celery -A project flower`: with which logins it starts, and what it shows to whom."""

import os
import subprocess
import sys
from types import SimpleNamespace

import httpx
import psutil
import pytest
from nightshift.celery.flower import find_refusal
from servers import free_port, wait_for

from project.settings import ProjectSettings
from tests.conftest import ROOT

OWN = "anna:one of our own"


@pytest.fixture
def environment(tmp_path):
    return os.environ | {
        "DATABASE_URL": f"sqlite:///{tmp_path}/none.db",
        "BROKER_URL": f"filesystem://{tmp_path}/broker",
        "MAIL_URL": f"folder://{tmp_path}/mail",
        "FEED_STORE": f"{tmp_path}/feeds",
        "FLOWER_PORT": str(free_port()),
    }


def start(environment, *words):
    command = [sys.executable, "-m", "celery", "-A", "project", "flower", *words]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )


@pytest.mark.parametrize("given", ["environment", "setting's file"])
def test_flower_has_the_login_of_the_settings_and_listens_on_this_machine(
    environment, tmp_path, given
):
    secret = tmp_path / "login"
    secret.write_text(OWN)
    login = {"environment": ("FLOWER_BASIC_AUTH", OWN)}
    name, value = login.get(given, ("FLOWER_BASIC_AUTH_FILE", str(secret)))
    port = int(environment["FLOWER_PORT"])
    process = start(environment | {name: value})
    try:
        wait_for(port)
        listening = {
            one.laddr.ip
            for one in psutil.Process(process.pid).net_connections("tcp")
            if one.status == psutil.CONN_LISTEN
        }
        codes = {
            (page, login): httpx.get(
                f"http://127.0.0.1:{port}{page}", auth=tuple(login.split(":")) if login else None
            ).status_code
            for page in ("/", "/metrics", "/api/workers", "/healthcheck")
            for login in ("", "admin:change-me", OWN)
        }
    finally:
        process.kill()
        process.communicate()

    assert listening == {"127.0.0.1"}
    assert codes == {
        (page, login): 200 if login == OWN or page == "/healthcheck" else 401
        for page, login in codes
    }


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"ENVIRONMENT": "production"}, "its login must be NAME:PASSWORD"),
        ({"FLOWER_BASIC_AUTH": "a:b,c:d"}, "must be NAME:PASSWORD, without a comma"),
        ({"FLOWER_BASIC_AUTH": "a:"}, "must be NAME:PASSWORD, without a comma"),
        ({"ENVIRONMENT": "production", "FLOWER_BASIC_AUTH": "a:short"}, "is shorter than 12"),
    ],
)
def test_flower_does_not_start_with_a_login_that_is_none(environment, values, said):
    process = start(environment | values)
    _, errors = process.communicate(timeout=60)

    assert (process.returncode in (1, 2), said in errors.decode()) == (True, True), errors
    assert "Traceback" not in errors.decode()


def options(**values):
    usual = {"auth": "", "basic_auth": [OWN], "address": "127.0.0.1", "unix_socket": ""}
    return SimpleNamespace(**usual | values)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({}, ""),
        ({"address": "0.0.0.0"}, ""),
        ({"basic_auth": None, "auth": "anna@school.example"}, ""),
        ({"basic_auth": None}, "its login must be NAME:PASSWORD: set FLOWER_BASIC_AUTH"),
        ({"basic_auth": []}, "its login must be NAME:PASSWORD: set FLOWER_BASIC_AUTH"),
        ({"basic_auth": [OWN, "b"]}, "its login must be NAME:PASSWORD: set FLOWER_BASIC_AUTH"),
        (
            {"basic_auth": ["anna:short"]},
            "the password of its login is shorter than 12 characters: set FLOWER_BASIC_AUTH",
        ),
        (
            {"address": ""},
            "an empty address means all networks: name one, such as --address=127.0.0.1",
        ),
    ],
)
def test_options_that_would_open_flower_are_refused(values, reason):
    settings = ProjectSettings(_env_file=None, environment="production", flower_basic_auth=OWN)

    assert find_refusal(settings, options(**values)) == reason


def test_login_by_default_is_for_this_machine_only():
    settings, usual = ProjectSettings(_env_file=None), ["admin:change-me"]

    assert find_refusal(settings, options(basic_auth=usual)) == ""
    assert find_refusal(settings, options(basic_auth=usual, address="0.0.0.0")) == (
        "at 0.0.0.0 it needs a login of its own: set FLOWER_BASIC_AUTH"
    )
