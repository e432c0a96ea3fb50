"""Use a peer in a Python that has it.

`python -m benchmarks.peers PEER describe` prints how its worker is started.
`python -m benchmarks.peers PEER enqueue JOB NUMBER …` enqueues; prints the seconds of each number.
`python -m benchmarks.peers PEER apart JOB NUMBER SECONDS` enqueues one after another.
"""

import importlib
import json
import sys
import time

peer = importlib.import_module(f"benchmarks.peers.{sys.argv[1]}")
match sys.argv[2:]:
    case ["describe"]:
        processes = getattr(peer, "PROCESSES", 1)
        print(json.dumps({"worker": peer.WORKER, "processes": processes, "left": peer.LEFT}))
    case ["enqueue", *jobs]:
        for job, number in zip(jobs[::2], jobs[1::2], strict=True):
            began = time.perf_counter()
            peer.enqueue(int(number), job)
            print(time.perf_counter() - began)
    case ["apart", job, number, seconds]:
        for _ in range(int(number)):
            peer.enqueue(1, job)
            time.sleep(float(seconds))
