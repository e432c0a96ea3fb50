"""`make bench`: every benchmark, or those named."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

# A project without the school has the ledger's and the mail's.
ALL = [
    name
    for name in ("sync", "freshness", "jobs", "bundles", "backlog", "web", "mail", "desk")
    if (Path(__file__).parent / f"{name}.py").exists()
]


def main() -> None:
    """Run each benchmark in a process of its own, so that none inherits another's settings."""
    if os.environ.get("NIGHTSHIFT_BENCH"):
        figures = importlib.import_module(f"benchmarks.{os.environ['NIGHTSHIFT_BENCH']}").run()
        for name, value in figures.items():
            print(
                f"  {name:<70} {value:>12,.3f}"
                if isinstance(value, float)
                else f"  {name:<70} {value!s:>12}"
            )
        return
    # The benchmark of mail uses the tests' mail server, which uses helpers of the engine's tests.
    path = os.pathsep.join(["engine/tests", os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path}
    for name in sys.argv[1:] or ALL:
        print(name, flush=True)
        subprocess.run(
            [sys.executable, "-m", "benchmarks"],
            check=True,
            env=environment | {"NIGHTSHIFT_BENCH": name},
        )


if __name__ == "__main__":
    main()
