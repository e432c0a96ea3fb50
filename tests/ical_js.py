"""ical.js, the parser of Thunderbird: an extra that `make oracles` fetches."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

MODULES = Path(__file__).parent.parent / "var" / "oracles" / "node_modules"


def require_ical_js() -> dict[str, str]:
    """Return the environment in which Node finds ical.js, or skip the test loudly."""
    path = os.pathsep.join([os.environ.get("NODE_PATH", ""), str(MODULES)])
    environment = {**os.environ, "NODE_PATH": path}
    if shutil.which("node") is not None:
        ask = ["node", "-e", "require('ical.js')"]
        asked = subprocess.run(ask, env=environment, capture_output=True, check=False, timeout=60)
        if asked.returncode == 0:
            return environment
    pytest.skip(
        "ICAL.JS IS NOT INSTALLED, and Thunderbird's parser is not asked: install npm, then"
        " `make oracles` fetches it"
    )
