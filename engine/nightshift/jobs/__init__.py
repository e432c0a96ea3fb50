"""The job ledger: a row for each job. The table is the truth; a broker's message only names a row.

    scheduled ──due──> queued ──claim──> running ──> succeeded
        ^                                  │ ├────> waiting    for children; then succeeded | failed
        │                                  │ ├────> failed     no attempt left, or a permanent error
        └── retry, snooze, dead worker ────┘ ├────> discarded  its arguments or kind are not valid
     held <──> queued | scheduled            └────> cancelled

Each module makes these changes of state:

    enqueue.py   inserts a row: queued, or scheduled when it has a time of its own
    relay.py     scheduled → queued, when due; decides which queued jobs are sent to the broker
    limits.py    changes no state: counts what may be sent of a kind with a limit
    claims.py    queued → running; running → every other state. Each write checks the claim. A claim
                 whose run never started is undone: running → queued
    batches.py   waiting → succeeded | failed, when the last child has ended
    rescue.py    running → scheduled | failed, when the worker is dead; queued → scheduled |
                 discarded, when no worker knows the kind
    care.py      what a person may do: cancel, retry, hold, release
"""

from nightshift.jobs.args import Backoff, JobArgs, Rate
from nightshift.jobs.care import cancel
from nightshift.jobs.enqueue import enqueue, enqueue_many
from nightshift.jobs.insight import JobStatus, read_status
from nightshift.jobs.run import Cancel, Discard, Outcome, Run, Snooze

__all__ = [
    "Backoff",
    "Cancel",
    "Discard",
    "JobArgs",
    "JobStatus",
    "Outcome",
    "Rate",
    "Run",
    "Snooze",
    "cancel",
    "enqueue",
    "enqueue_many",
    "read_status",
]
