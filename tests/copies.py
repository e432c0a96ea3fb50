"""Copies of this repository, each with an environment of its own."""

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from shutil import copy2

ROOT = Path(__file__).parent.parent


def copy_repository(copy):
    """Copy what git has, or would add."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    for name in listed:
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            copy2(ROOT / name, copy / name, follow_symlinks=False)


def make_environment(copy):
    """Install the copy beside what this interpreter has, so that nothing is fetched."""
    venv.create(copy / ".venv", with_pip=False, symlinks=True)
    site = copy / f".venv/lib/python3.{sys.version_info.minor}/site-packages"
    # Its packages, but not its .pth files: these lead to the repository that was copied.
    (site / "outer.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    uv = Path(sysconfig.get_path("scripts")) / "uv"
    install = [uv, "pip", "install", "--quiet", "--offline", "--no-deps", "--no-build-isolation"]
    python = ["--python", copy / ".venv/bin/python"]
    editables = ["--editable", copy / "engine", "--editable", copy]
    subprocess.run([*install, *python, *editables], check=True)
