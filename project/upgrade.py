"""Take the next release while the present one serves, and go back to the release before.

An image has its release as its tag: IMAGE_TAG in `.env` is the one that runs, PREVIOUS_TAG the one
before. Nothing is stopped until the new image has read the settings, the database and its
revisions, a backup is written and the tables are migrated; the release before can run on those.
"""

import os
import re
import shutil
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from project import backups
from project.backups import Refused
from project.containers import (
    PATIENCE,
    SETTINGS,
    Containers,
    check_ports,
    compose,
    say,
)

# Bytes that a process of a worker needs, beside its main process and its keeper.
A_PROCESS, A_WORKER = 60 << 20, 150 << 20
SPARE_BYTES = 500 << 20
TRIAL_SECONDS = 120


def upgrade() -> None:
    """Build the code of this folder, check, back up, migrate, and replace service after service.

    Raises Refused at the first step that fails; the old release then serves, or serves again.
    """
    installation = Containers()
    old, new = read_line("IMAGE_TAG", "local"), _name_release()
    if new == old:
        raise Refused(f"release {new} runs already: `git pull` brings the next one")
    say(f"building {new}; {old} runs on")
    _use(new)
    compose("build", "--quiet", "migrate")
    say("checking settings, database, memory, disk and ports")
    facts = installation.read_facts(database=True)
    unknown = sorted(set(facts["at"]) - set(facts["known"]))
    if unknown:
        raise Refused(
            f"the database is at {', '.join(unknown)}, which {new} does not know: is this an older"
            " release? `make rollback` goes back to the release before"
        )
    check_memory(installation.config)
    check_ports(installation.config)
    _check_disk(installation)
    stamp = f"{datetime.now(UTC):%Y%m%d-%H%M%S}"
    path = Path(f"backups/{installation.project}-before-{new}-{stamp}.tar")
    backups.make(path, installation, env=SETTINGS)
    say(f"{path} is written; migrating while {old} serves")
    installation.migrate()
    _try_web(installation)
    _replace(installation, new, old)
    write_lines(IMAGE_TAG=new, PREVIOUS_TAG=old)
    say(f"{new} runs; `make rollback` goes back to {old}")


def roll_back() -> None:
    """Start the release before, on the tables as they are: it runs on the next release's."""
    installation = Containers()
    now, before = read_line("IMAGE_TAG", "local"), read_line("PREVIOUS_TAG", "")
    if not before:
        raise Refused("`.env` names no PREVIOUS_TAG: there was no `make upgrade`")
    image = f"{installation.project}:{before}"
    if not backups.run(["docker", "images", "--quiet", image]):
        raise Refused(f"the image {image} is gone: check that release out, and `make upgrade`")
    _replace(installation, before, now)
    write_lines(IMAGE_TAG=before, PREVIOUS_TAG=now)
    say(f"{before} runs again; its code was not migrated, and need not be")


def _try_web(installation: Containers) -> None:
    """Start the new web server beside the present one, without its port. Raise Refused if it fails.

    When it has the port, subscribers wait for it: then is not the time to find that it fails.
    """
    say("trying the new web server beside the present one")
    name = f"{installation.project}-web-trial"
    trial = ["run", "--detach", "--no-deps", "--name", name, "web"]
    health = ["docker", "inspect", "--format={{.State.Status}} {{.State.Health.Status}}", name]
    try:
        compose(*trial)
        give_up = time.monotonic() + TRIAL_SECONDS
        while (state := backups.run(health)) != "running healthy":
            if time.monotonic() > give_up or state.split()[-1] == "unhealthy":
                lines = backups.run(["docker", "logs", "--tail=15", name], both=True)
                raise Refused(
                    f"the new web server does not become healthy; its last lines:\n{lines}"
                )
            time.sleep(1)
    finally:
        with suppress(Refused):
            backups.run(["docker", "rm", "--force", name])


def _replace(installation: Containers, new: str, old: str) -> None:
    """Replace worker, beat, web, desk and Flower by those of another image, one after the other.

    Where one does not become healthy, put the old ones back and raise Refused.
    """
    for done, service in enumerate(installation.processes):
        say(f"replacing {service}")
        try:
            _start(new, service)
        except Refused as error:
            lines = ""
            with suppress(Refused):
                lines = compose("logs", "--no-log-prefix", "--tail=15", service)
            # The last one first: it is the one that is away.
            for replaced in reversed(installation.processes[: done + 1]):
                _start(old, replaced)
            raise Refused(
                f"{service} of {new} did not become healthy, and {old} runs again; its last"
                f" lines:\n{lines}\n{error}"
            ) from error


def _start(tag: str, service: str) -> None:
    _use(tag)
    # Without its dependencies: `migrate` would run, and the servers need no other image.
    alone = ("--no-deps", "--no-build", "--wait", f"--wait-timeout={PATIENCE}")
    compose("up", "--detach", *alone, service)


def _use(tag: str) -> None:
    os.environ["IMAGE_TAG"] = tag


def _name_release() -> str:
    """Return RELEASE of the environment, or what Git calls the code of this folder."""
    given = os.environ.get("RELEASE", "")
    if not given:
        describe = ["git", "describe", "--always", "--tags", "--dirty"]
        with suppress(Refused):
            given = backups.run(describe)
        if not given or given.endswith("-dirty"):
            raise Refused(
                "Git has no name for this code, because it is changed: commit it, or name the"
                " release: make upgrade RELEASE=1.2.3"
            )
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,100}", given):
        raise Refused(f"RELEASE={given}: write letters, digits, and . _ -")
    return given


def check_memory(config: dict[str, Any]) -> None:
    """Raise Refused when a worker's processes do not fit its memory limit."""
    worker = config["services"]["worker"]
    asked = str(worker["environment"].get("WORKER_CONCURRENCY", "auto"))
    # `auto` follows the limit.
    processes = int(asked) if asked.isdigit() else 1
    limit, needed = int(worker["mem_limit"]), A_WORKER + processes * A_PROCESS
    if needed > limit:
        raise Refused(
            f"{processes} processes of a worker need {needed >> 20} MB at least, and WORKER_MEMORY"
            f" is {limit >> 20} MB: set WORKER_CONCURRENCY lower, or WORKER_MEMORY higher"
        )


def _check_disk(installation: Containers) -> None:
    size = installation.database.read_size()
    volume = compose("exec", "--no-TTY", "postgres", "df", "-Pk", "/var/lib/postgresql/data")
    free = {
        "the database's volume": int(volume.splitlines()[-1].split()[3]) << 10,
        "this folder, for the backup": shutil.disk_usage(".").free,
    }
    for where, there in free.items():
        if there < size + SPARE_BYTES:
            raise Refused(
                f"{where}: {there >> 20} MB are free, and the database of {size >> 20} MB needs as"
                f" much again and {SPARE_BYTES >> 20} MB: make room"
            )


def read_line(name: str, default: str) -> str:
    """Return a value of .env."""
    found = re.findall(rf"^{name}=(.*)$", SETTINGS.read_text(encoding="utf-8"), re.MULTILINE)
    return str(found[-1]).strip("'\"") if found and found[-1] else default


def write_lines(**values: str) -> None:
    """Write values into .env, whose other lines stay. It changes in one step."""
    lines = SETTINGS.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if line.partition("=")[0] not in values]
    part = SETTINGS.with_name(".env.part")
    part.touch(0o600)
    text = "\n".join([*kept, *(f"{name}={value}" for name, value in values.items())])
    part.write_text(f"{text}\n", encoding="utf-8")
    part.replace(SETTINGS)
