"""What an upgrade refuses before anything stops, and what `.env` says afterwards.

tests/faults/test_containers.py upgrades with a Docker engine; here a program in the place of Docker
fails at one step, and writes down what it was asked for.
"""

import json
import os
import socket
import subprocess
import sys

import pytest

from project import backups, containers
from tests.conftest import ROOT

CONFIG = """{
  "name": "shop",
  "services": {
    "postgres": {"environment": {"POSTGRES_DB": "shop", "POSTGRES_USER": "shop"}},
    "worker": {"environment": {"WORKER_CONCURRENCY": "PROCESSES"}, "mem_limit": "2147483648"},
    "beat": {}, "web": {}, "flower": {}
  }
}"""
DOCKER = """#!/bin/sh
echo "$IMAGE_TAG $*" >> "$PLACE/asked"
case "$IMAGE_TAG $*" in $FAILING) echo "it fails" >&2; exit 1 ;; esac
case "$*" in
  *"config --format=json") cat "$PLACE/config" ;;
  *project.facts*) echo '{"known": ["1", "2"], "at": ["'$AT'"], "version": "1", "engine": "2",' \\
    '"project": "shop", "after_restore": []}' ;;
  *psql*) echo 1000 ;;
  *" df "*) printf 'Filesystem\\n/dev/x 1 1 %s 1%% /\\n' "$FREE" ;;
  *pg_dump*) echo PGDMP ;;
  images*) echo abc ;;
  inspect*) echo "$TRIAL" ;;
  *logs*) echo "no such setting: COLOUR" ;;
esac
"""
REPLACED = ["worker", "beat", "web", "flower"]


class Host:
    """A folder with an `.env` in which a word is run."""

    def __init__(self, folder):
        self.folder = folder
        docker = folder / "bin" / "docker"
        docker.parent.mkdir()
        docker.write_text(DOCKER)
        docker.chmod(0o755)
        (folder / "config").write_text(CONFIG.replace("PROCESSES", "2"))
        (folder / ".env").write_text("SECRET='a$b'\nWORKERS=3\nIMAGE_TAG=r1\n")

    def run(
        self, word="upgrade", *, failing="", at="1", free=10_000_000, release="r2", trial="healthy"
    ):
        environment = {
            "PATH": f"{self.folder}/bin{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "PLACE": str(self.folder),
            "FAILING": failing or "none",
            "AT": at,
            "FREE": str(free),
            "TRIAL": f"running {trial}",
            "RELEASE": release,
        }
        return subprocess.run(
            [sys.executable, "-m", "project.host", word],
            cwd=self.folder,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=False,
        )

    @property
    def settings(self):
        return (self.folder / ".env").read_text().splitlines()

    def started(self):
        """Return by which image each service was started, in order."""
        lines = (self.folder / "asked").read_text().splitlines()
        return [(one.split()[0], one.split()[-1]) for one in lines if " up --detach " in one]

    def asked(self, what):
        return what in (self.folder / "asked").read_text()


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


def test_upgrade_replaces_one_service_after_the_other_and_keeps_the_settings(host):
    done = host.run()

    assert done.returncode == 0, done.stderr
    assert host.started() == [("r2", service) for service in REPLACED]
    assert host.settings == ["SECRET='a$b'", "WORKERS=3", "IMAGE_TAG=r2", "PREVIOUS_TAG=r1"]
    [written] = (host.folder / "backups").iterdir()
    assert backups.read(written).manifest["at"] == ["1"]
    assert (host.folder / ".env").stat().st_mode & 0o777 == 0o600


# A pattern of what fails, or another fault, and what is said.
FAULTS = {
    "settings or password": ({"failing": "*project.facts*"}, "it fails"),
    "an unknown revision": ({"at": "9"}, "the database is at 9, which r2 does not know"),
    "no room": ({"free": 1_000}, "make room"),
    "the backup": ({"failing": "*pg_dump*"}, "it fails"),
    "the migration": ({"failing": "*run --rm --no-TTY --quiet-pull --no-deps migrate"}, "it fails"),
    "the new web server": ({"trial": "unhealthy"}, "the new web server does not become healthy"),
    "the build": ({"failing": "*build*"}, "it fails"),
    "the same release": ({"release": "r1"}, "release r1 runs already"),
    "a name that is no tag": ({"release": "a b"}, "write letters, digits"),
}


@pytest.mark.parametrize(("fault", "said"), FAULTS.values(), ids=FAULTS)
def test_fault_before_the_first_stop_stops_nothing(host, fault, said):
    before = host.settings

    done = host.run(**fault)

    assert (done.returncode, "\nnot upgraded: " in f"\n{done.stderr}") == (2, True)
    assert said in done.stderr
    assert (host.started(), host.settings) == ([], before)


def test_service_that_does_not_become_healthy_is_put_back(host):
    before = host.settings

    done = host.run(failing="r2*up --detach*web")

    assert done.returncode == 2
    assert "web of r2 did not become healthy, and r1 runs again" in done.stderr
    assert "no such setting: COLOUR" in done.stderr
    new = [("r2", service) for service in ("worker", "beat", "web")]
    assert host.started() == [*new, *[("r1", service) for service in ("web", "beat", "worker")]]
    assert host.settings == before


def test_rollback_starts_the_release_before_and_does_not_migrate(host):
    host.run()
    (host.folder / "asked").unlink()

    done = host.run("rollback")

    assert done.returncode == 0, done.stderr
    assert host.started() == [("r1", service) for service in REPLACED]
    assert not host.asked("migrate")
    assert host.settings[-2:] == ["IMAGE_TAG=r1", "PREVIOUS_TAG=r2"]


def test_rollback_without_an_upgrade_is_refused(host):
    done = host.run("rollback")

    assert (done.returncode, host.started()) == (2, [])
    assert "there was no `make upgrade`" in done.stderr


def test_processes_that_do_not_fit_the_memory_are_refused(host):
    (host.folder / "config").write_text(CONFIG.replace("PROCESSES", "40"))

    done = host.run()

    said = "40 processes of a worker need 2550 MB at least, and WORKER_MEMORY is 2048 MB"
    assert (said in done.stderr, host.asked("up --detach")) == (True, False)


def test_port_that_another_program_has_is_named(monkeypatch):
    monkeypatch.setattr(containers, "compose", lambda *_: "worker\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ports = [{"host_ip": "127.0.0.1", "published": str(port)}]
        with pytest.raises(backups.Refused, match=f"127.0.0.1:{port}, the port of web, is taken"):
            containers.check_ports({"services": {"web": {"ports": ports}}})
        # Its own port: the service runs.
        containers.check_ports({"services": {"worker": {"ports": ports}}})


def test_start_says_which_setting_names_a_port_that_is_taken(host):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ports = {"mailpit": {"ports": [{"host_ip": "127.0.0.1", "published": str(port)}]}}
        (host.folder / "config").write_text(json.dumps({"name": "shop", "services": ports}))
        done = host.run("ports")

    said = f"not started: 127.0.0.1:{port}, the port of mailpit, is taken by another program: "
    assert (done.returncode, done.stderr) == (
        2,
        f"{said}stop that, or set MAILPIT_PORT in .env\n",
    )


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://127.0.0.1:1", True),
        ("http://localhost/", True),
        ("http://127.0.0.1:PORT", False),
        ("https://school.example", False),
    ],
)
def test_start_says_when_addresses_would_lead_nowhere(host, url, told):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    web = {
        "ports": [{"host_ip": "127.0.0.1", "published": port}],
        "environment": {"PUBLIC_URL": url.replace("PORT", port)},
    }
    (host.folder / "config").write_text(json.dumps({"name": "shop", "services": {"web": web}}))
    done = host.run("ports")

    assert done.returncode == 0
    assert ("remove PUBLIC_URL from .env" in done.stderr) is told
