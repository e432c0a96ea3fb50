"""Projects that are made from this repository, each with an environment of its own."""

import os
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree

ROOT = Path(__file__).parent.parent
SCRIPTS = Path(sysconfig.get_path("scripts"))
# What a person's own settings say about Git has no say in the tests.
GIT = {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    **{f"GIT_{who}_NAME": "Anna" for who in ("AUTHOR", "COMMITTER")},
    **{f"GIT_{who}_EMAIL": "anna@shop.example" for who in ("AUTHOR", "COMMITTER")},
}


@dataclass(frozen=True, slots=True)
class Project:
    """A project in a folder of its own."""

    folder: Path

    def environment(self) -> dict[str, str]:
        """Return an environment that has nothing of this process's but where the servers are."""
        own = {"PATH": f"{self.folder}/.venv/bin:{os.environ['PATH']}", "HOME": str(self.folder)}
        servers = {name: value for name, value in os.environ.items() if name.startswith("TEST_")}
        return own | GIT | servers

    def try_to_run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the project, in an environment of its own."""
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment() | environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def run(self, *command: str, **environment: str) -> str:
        """Run a command and return what it wrote; fail when it fails."""
        done = self.try_to_run(*command, **environment)
        assert done.returncode == 0, f"{command}\n{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    @contextmanager
    def running(self, *command: str, log: Path, **environment: str) -> Iterator[None]:
        """Run a command as long as the context lasts."""
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.environment() | environment,
                stdout=output,
                stderr=output,
            )
        try:
            yield
        finally:
            process.terminate()
            process.wait(100)

    def wait_for(self, log: Path, words: str, *, seconds: float) -> None:
        """Wait until a process has written these words into its log; fail when it does not."""
        give_up = time.monotonic() + seconds
        while words not in (text := log.read_text(encoding="utf-8", errors="replace")):
            assert time.monotonic() < give_up, f"{self.folder.name}: {text[-6000:]}"
            time.sleep(0.2)

    def read(self, name: str) -> str:
        return (self.folder / name).read_text(encoding="utf-8")

    def change(self, name: str, old: str, new: str) -> None:
        """Replace a text that stands once in a file."""
        text = self.read(name)
        assert text.count(old) == 1, f"{name}: {old!r} stands there {text.count(old)} times"
        (self.folder / name).write_text(text.replace(old, new), encoding="utf-8")

    def commit(self, message: str) -> None:
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--message", message)

    def files(self) -> set[str]:
        """Return the paths of its files, without those of its environment."""
        return {
            path.relative_to(self.folder).as_posix()
            for path in self.folder.rglob("*")
            if path.is_file() and not {".git", ".venv"} & set(path.parts)
        }


def make_project(
    folder: Path, *, school: bool, name: str = "my-shop", source: Path = ROOT, ref: str = "HEAD"
) -> Project:
    """Make a project by copier. Of this repository it holds also what is not yet committed."""
    answers = ["--data", f"name={name}", "--data", f"school={str(school).lower()}"]
    command = [SCRIPTS / "copier", "copy", "--quiet", "--defaults", "--vcs-ref", ref, *answers]
    subprocess.run([*command, source, folder], env=os.environ | GIT, check=True)
    return Project(folder)


def make_environment(project: Project) -> None:
    """Install the project beside what this interpreter has, so that nothing is fetched.

    For `make` it looks as if everything had been installed.
    """
    environment = project.folder / ".venv"
    venv.create(environment, with_pip=False, symlinks=True)
    site = environment / f"lib/python3.{sys.version_info.minor}/site-packages"
    # Its packages, but not its .pth files: these lead to this repository.
    (site / "outer.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    install = [SCRIPTS / "uv", "pip", "install", "--quiet", "--offline", "--no-deps"]
    python = ["--no-build-isolation", "--python", environment / "bin/python"]
    editables = ["--editable", project.folder / "engine", "--editable", project.folder]
    subprocess.run([*install, *python, *editables], check=True)
    for script in SCRIPTS.iterdir():
        there = environment / "bin" / script.name
        if there.exists() or not script.is_file():
            continue
        content = script.read_bytes()
        if content.startswith(b"#!"):
            # The same script, by the project's Python.
            _, _, rest = content.partition(b"\n")
            there.write_bytes(f"#!{environment}/bin/python\n".encode() + rest)
            there.chmod(0o755)
        else:
            there.symlink_to(script)
    activate = f"PATH={environment}/bin:$PATH\n"
    (environment / "bin/activate").write_text(activate, encoding="utf-8")
    for stamp in (".installer", ".run", ".dev"):
        (environment / stamp).touch()
    # Without this, mypy reads all packages again.
    if (ROOT / ".mypy_cache").is_dir():
        copytree(ROOT / ".mypy_cache", project.folder / ".mypy_cache")
