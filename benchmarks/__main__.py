"""`make bench`: every benchmark, or those named."""

import importlib
import os
import subprocess
import sys

ALL = ("sync", "freshness", "jobs", "web", "mail")


def main() -> None:
    """Run each benchmark in a process of its own, so that none inherits another's settings."""
    if os.environ.get("NIGHTSHIFT_BENCH"):
        figures = importlib.import_module(f"benchmarks.{os.environ['NIGHTSHIFT_BENCH']}").run()
        for name, value in figures.items():
            print(f"  {name:<70} {value:>12,.3f}" if isinstance(value, float) else f"  {name:<70} {value!s:>12}")
        return
    for name in sys.argv[1:] or ALL:
        print(name, flush=True)
        subprocess.run([sys.executable, "-m", "benchmarks"], check=True, env=os.environ | {"NIGHTSHIFT_BENCH": name})


if __name__ == "__main__":
    main()
