"""What make says when containers are not well, by a program in the place of Docker.

tests/faults/test_containers.py does it with a Docker engine.
"""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

DOCKER = """#!/bin/sh
case "$*" in
  "compose ps"*) cat "$STATES" ;;
  "compose logs --no-log-prefix --tail=15 "*) echo "the last line of $5" ;;
  *) echo "unexpected: $*" >&2; exit 9 ;;
esac
"""
STATES = {
    "postgres": "running|healthy|0",
    "migrate": "exited||1",
    "web": "running|unhealthy|0",
    "worker": "restarting||137",
    "beat": "created||0",
    "flower": "running|starting|0",
    "redis": "exited||0",
}


@pytest.fixture
def host(tmp_path):
    """Return what runs a word with the program in the place of Docker."""
    docker = tmp_path / "docker"
    docker.write_text(DOCKER)
    docker.chmod(0o755)
    states = "\n".join(f"{service}|{state}" for service, state in STATES.items())
    (tmp_path / "states").write_text(f"{states}\n")

    def run(*words):
        path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            [sys.executable, "-m", "project.host", *words],
            cwd=ROOT,
            env=os.environ | {"PATH": path, "STATES": f"{tmp_path}/states"},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_last_lines_of_each_service_that_is_not_well_are_shown(host):
    said = host("failures").stderr.splitlines()

    shown = [line for line in said if line.startswith("the last line of ")]
    assert shown == [f"the last line of {name}" for name in ("migrate", "web", "worker", "flower")]
    assert said[0] == "--- migrate is not well; its last lines:"


def test_what_docker_refuses_is_one_line(host):
    done = host("backup")

    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert done.stderr.startswith("nothing was changed: docker compose config --format=json: ")


def test_host_needs_only_pythons_own_library():
    # Without site-packages: as on a host that has Docker and nothing else.
    words = [sys.executable, "-S", "-c", "import project.host"]

    assert subprocess.run(words, cwd=ROOT, check=False).returncode == 0
