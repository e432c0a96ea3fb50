"""The job ledger: what was asked for, what became of it. The table is the truth; a message only names a row.

    scheduled ──due──> queued ──claim──> running ──> succeeded
        ^                ^                  │ ├────> waiting (children open) ──last child──> succeeded | failed
        │                └── rescue ────────┤ ├────> failed     attempts used up, or a permanent error
        └──── retry, snooze (run_at) ───────┘ ├────> discarded  arguments or name no longer valid
     held <──> queued/scheduled               └────> cancelled

Who may change a state:

    enqueue.py   creates a row: scheduled, or queued when it is due now
    relay.py     scheduled → queued when due; says which rows the broker is told of
    claims.py    queued → running, and from there everywhere that needs the claim: a write without it changes nothing
    batches.py   waiting → succeeded | failed, when the last child has ended
    rescue.py    running → scheduled | failed, for a worker that died
    care.py      what a person may do from outside: cancel, retry, hold, release
"""

from services.jobs.args import Backoff, JobArgs, Rate
from services.jobs.enqueue import enqueue, enqueue_many
from services.jobs.run import Cancel, Discard, Outcome, Run, Snooze

__all__ = ["Backoff", "Cancel", "Discard", "JobArgs", "Outcome", "Rate", "Run", "Snooze", "enqueue", "enqueue_many"]
