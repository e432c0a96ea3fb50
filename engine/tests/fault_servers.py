"""Servers of one's own, to be killed and started again without harm to anybody else's."""

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from servers import free_port, wait_for


def program(name: str) -> str:
    """Return the path of a server's program, also where Debian hides it."""
    hidden = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    found = shutil.which(name) or (str(hidden[-1]) if hidden else None)
    if found is None:
        pytest.skip(f"{name.upper()} IS NOT INSTALLED: this run needs servers of its own")
    return found


class Redis:
    """A Redis with an append-only file."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._command = [
            program("redis-server"),
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--appendonly",
            "yes",
            "--save",
            "",
        ]
        self._command += ["--dir", str(folder), "--logfile", str(folder / "redis.txt")]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._command)
        wait_for(self.port)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()

    def flush(self) -> None:
        import redis

        with redis.Redis(port=self.port) as client:
            client.flushall()


class Postgres:
    """A Postgres cluster in a folder, run by a user that may."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"postgresql+psycopg://nightshift@127.0.0.1:{self.port}/postgres"
        # Not below pytest's own folder, which only its owner may enter.
        self._data = Path(tempfile.mkdtemp(prefix="nightshift-postgres-"))
        self._user: dict[str, object] = {}
        if os.getuid() == 0:
            owner = pwd.getpwnam("postgres")
            os.chown(self._data, owner.pw_uid, owner.pw_gid)
            self._user = {"user": "postgres", "group": owner.pw_gid}
        initdb = [
            program("initdb"),
            "-D",
            self._data,
            "-U",
            "nightshift",
            "-A",
            "trust",
            "--no-sync",
        ]
        subprocess.run(initdb, check=True, capture_output=True, **self._user)  # type: ignore[call-overload]
        self.start()

    def start(self) -> None:
        options = f"-p {self.port} -h 127.0.0.1 -k {self._data}"
        self._control("start", "-o", options, "-l", str(self._data / "log"))
        wait_for(self.port)

    def stop(self, mode: str = "immediate") -> None:
        self._control("stop", "-m", mode)

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self._data)

    def _control(self, *command: str) -> None:
        arguments = [program("pg_ctl"), "-D", str(self._data), "-w", *command]
        subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL, **self._user)  # type: ignore[call-overload]
