"""Servers of one's own, to be killed and started again without harm to anybody else's."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import pytest
from servers import free_port, reachable, wait_for


def program(name: str) -> str:
    """Return the path of a server's program, also where Debian hides it."""
    hidden = [
        *sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}")),
        # That of the search path runs the server as a user who may not write here.
        *Path("/usr/lib/rabbitmq/lib").glob(f"*/sbin/{name}"),
    ]
    found = str(hidden[-1]) if hidden else shutil.which(name)
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


class Rabbit:
    """A RabbitMQ node of its own, which keeps its queues and messages in a folder."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}//"
        self._command = [program("rabbitmq-server")]
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "LANG": "C.UTF-8",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"nightshift{uuid4().hex[:8]}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(folder / "rabbit"),
            "RABBITMQ_LOG_BASE": str(folder / "rabbit-log"),
            "RABBITMQ_PID_FILE": str(folder / "rabbit.pid"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "none"),
            "RABBITMQ_CONFIG_FILE": str(folder / "none"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "none"),
        }
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            self._command,
            env=self._environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_for(self.port)

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        # What was waited for is the shell that started the node.
        while reachable(f"tcp://127.0.0.1:{self.port}"):
            time.sleep(0.05)

    def flush(self) -> None:
        from kombu import Connection

        with Connection(self.url) as connection:
            for queue in ("bare", "default"):
                with suppress(connection.channel_errors):
                    connection.default_channel.queue_purge(queue)


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
