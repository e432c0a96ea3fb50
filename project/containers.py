"""The containers of this installation, from the host: by Compose, without a library."""

import json
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from project import backups
from project.backups import Refused, run

COMPOSE = ("docker", "compose")
RUN = ("run", "--rm", "--no-TTY", "--quiet-pull")
# With its dependencies, Compose would make a server again whose settings have changed.
RUN_ALONE = (*RUN, "--no-deps")
# What uses the database, where its profile is on; the servers go on.
PROCESSES = ("worker", "beat", "web", "desk", "flower")
# The container has the password in its environment: it is on no command line.
WITH_PASSWORD = ("sh", "-c", 'PGPASSWORD=$POSTGRES_PASSWORD exec "$0" "$@"')
SETTINGS = Path(".env")
LINES = 15
PATIENCE = 300  # seconds until all must be healthy


def compose(*arguments: str) -> str:
    """Run Compose and return what it wrote. Raises Refused where it failed."""
    return run([*COMPOSE, *arguments])


def read_config() -> dict[str, Any]:
    """Return what Compose makes of its files and `.env`."""
    return dict(json.loads(compose("config", "--format=json")))


def find_failures() -> list[str]:
    """Return the services that are not well, in the order in which Compose lists them."""
    names = compose(
        "ps", "--all", "--format", "{{.Service}}|{{.State}}|{{.Health}}|{{.ExitCode}}"
    ).splitlines()
    failed = []
    for service, state, health, code in (line.split("|") for line in names):
        ended = state in ("exited", "dead") and code != "0"
        if ended or state == "restarting" or health in ("unhealthy", "starting"):
            failed.append(service)
    return failed


def show_failures() -> None:
    """Show which services are not well, and the last lines of each."""
    for service in find_failures():
        say(f"--- {service} is not well; its last lines:")
        lines = compose("logs", "--no-log-prefix", f"--tail={LINES}", service)
        say(lines or "(it wrote none)")
    say("--- `make logs` shows all")


def say(line: str) -> None:
    """Tell the person who called make, at once."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - this is a command


def check_ports(config: dict[str, Any]) -> None:
    """Raise Refused when another program listens on a port of a service that does not run."""
    running = compose("ps", "--services", "--status=running").split()
    for name, service in config["services"].items():
        for port in service.get("ports", []) if name not in running else []:
            address = (port.get("host_ip", "127.0.0.1"), int(port["published"]))
            with socket.socket() as trial:
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    trial.bind(address)
                except OSError as error:
                    where = f"{address[0]}:{address[1]}"
                    raise Refused(
                        f"{where}, the port of {name}, is taken by another program: stop that, or"
                        f" set {name.upper()}_PORT in .env"
                    ) from error
    _tell_other_address(config["services"].get("web", {}))


def _tell_other_address(web: dict[str, Any]) -> None:
    """Say when addresses begin with a port of this machine at which the web server is not."""
    url = urlsplit(web.get("environment", {}).get("PUBLIC_URL", ""))
    ports = {int(port["published"]) for port in web.get("ports", [])}
    if url.hostname in ("127.0.0.1", "localhost") and ports and (url.port or 80) not in ports:
        say(
            f"PUBLIC_URL is {url.geturl()}, and the web server is at port {min(ports)}: remove"
            " PUBLIC_URL from .env, so that it follows WEB_PORT"
        )


class Containers:
    """The installation in containers."""

    def __init__(self) -> None:
        self.config = read_config()
        server = self.config["services"].get("postgres")
        if server is None:
            raise Refused(
                "docker-compose.override.yml names another Postgres: back it up, and restore it,"
                " with that server's own tools"
            )
        self.project = self.config["name"]
        self.processes = [name for name in PROCESSES if name in self.config["services"]]
        self.database: backups.Database = backups.Postgres(
            server["environment"]["POSTGRES_DB"],
            prefix=[*COMPOSE, "exec", "--no-TTY", "postgres", *WITH_PASSWORD],
            options=[f"--username={server['environment']['POSTGRES_USER']}"],
        )

    def read_facts(self, *, database: bool) -> dict[str, Any]:
        """Return what project/facts.py says of the image, and of the database."""
        words = ["--database"] if database else []
        said = compose(*RUN_ALONE, "migrate", "python", "-m", "project.facts", *words)
        return dict(json.loads(said.splitlines()[-1]))

    def migrate(self) -> None:
        """Bring the database's tables up to date."""
        say(compose(*RUN_ALONE, "migrate"))

    def stop(self) -> None:
        """Stop what uses the database."""
        compose("stop", *self.processes)

    def start(self) -> None:
        """Start everything, and wait until it is healthy."""
        compose("up", "--detach", "--wait", f"--wait-timeout={PATIENCE}")

    def run_command(self, command: str) -> bool:
        """Run one of the project's commands. Return whether it succeeded."""
        celery = ["celery", "--quiet", "-A", "project", *shlex.split(command)]
        done = subprocess.run([*COMPOSE, *RUN, "worker", *celery], check=False)
        return not done.returncode
