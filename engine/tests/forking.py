"""Python modules in real processes that start quickly, because they share their imports.

`python -m celery -A project …` imports for two seconds before it does anything. These processes
are forked from one that has imported what such a command imports first, and nothing else: no app,
and no settings. From there on each is as any other: it has its own environment, folder, output,
signals, children and exit code. What must start from nothing is started by `subprocess`.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path

_server = multiprocessing.get_context("forkserver")
# What `python -m celery` imports first: the commands of all that is installed are among it.
_server.set_forkserver_preload(["celery.bin.celery", "alembic.config", "uvicorn"])


class ForkedProcess:
    """A running `python -m module`, with the methods of `subprocess.Popen` that tests use."""

    def __init__(
        self,
        module: str,
        arguments: list[str],
        environment: Mapping[str, str],
        *,
        folder: Path | None = None,
        stdout: Path,
        stderr: Path,
    ) -> None:
        """Start it in a folder, or in this process's; what it writes is in the two files."""
        place = (folder or Path.cwd(), stdout, stderr)
        self._process: ForkServerProcess = _server.Process(
            target=_become, args=(module, arguments, dict(environment), *place)
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def poll(self) -> int | None:
        """Return the exit code, or the negative number of the signal; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit code. Raises subprocess.TimeoutExpired."""
        self._process.join(timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run_forked(
    module: str,
    *arguments: str,
    environment: Mapping[str, str],
    folder: Path | None = None,
    timeout: float = 100,
) -> subprocess.CompletedProcess[str]:
    """Run `python -m module`; return its exit code and what it wrote."""
    with tempfile.TemporaryDirectory() as output:
        stdout, stderr = Path(output) / "stdout", Path(output) / "stderr"
        files = {"stdout": stdout, "stderr": stderr}
        process = ForkedProcess(module, [*arguments], environment, folder=folder, **files)
        try:
            code = process.wait(timeout)
        finally:
            process.kill()
        said, complained = (path.read_text("utf-8", "replace") for path in (stdout, stderr))
        return subprocess.CompletedProcess([module, *arguments], code, said, complained)


def _become(module: str, arguments: list[str], environment: dict[str, str], *place: Path) -> None:
    """Become `python -m module`, in a process that was just forked."""
    folder, stdout, stderr = place
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    os.chdir(folder)
    path = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:0] = [str(folder), *path]
    sys.argv = [module, *arguments]
    for number, file in ((1, stdout), (2, stderr)):
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(descriptor, number)
        os.close(descriptor)
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        # multiprocessing ends its processes without these.
        atexit._run_exitfuncs()
