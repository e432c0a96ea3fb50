"""graphile-worker: on Node.js and Postgres, ten jobs at a time."""

import os
import subprocess
from pathlib import Path

import psycopg

DSN = os.environ["DATABASE_URL"].replace("+psycopg", "")
PROGRAM = Path("var/bench-peers/node/node_modules/.bin/graphile-worker").resolve()
FOLDER = Path(__file__).parent / "graphile"


def enqueue(number: int, job: str = "noop") -> None:
    subprocess.run(
        [PROGRAM, "-c", DSN, "--schema-only"], cwd=FOLDER, check=True, capture_output=True
    )
    add = (
        "select graphile_worker.add_job(%s, json_build_object('number', n))"
        " from generate_series(1, %s) as n"
    )
    with psycopg.connect(DSN) as connection:
        connection.execute(add, [job, number])


LEFT = "select count(*) from graphile_worker.jobs"
START = f"cd {FOLDER} && NO_LOG_SUCCESS=1 exec {PROGRAM} -c {DSN} --jobs 10"
WORKER = ["sh", "-c", START]
PROCESSES = 2
