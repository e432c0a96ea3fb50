"""The outbox: a message is a row before it is a mail, and the row says what became of it.

    queued ──claim──> sending ──> sent
     ^  ^                │ ├────> failed      refused, attempts used up, or past its deadline
     │  ├── try later ───┤ └────> unknown     the server may have it, and a second one would be worse than none
     │  └── send again ──┘                    the server may have it, and a second one does little harm: counted in `repeats`
     └─ release ── held <── queued            failed, unknown ── retry, by hand ──> queued
    queued, held ──> cancelled                suppressed: the address is on the suppression list

Who may change a state:

    outbox.py    creates a row; what a person may do to it: hold, release, retry, cancel, suppress; ends what is past its deadline
    delivery.py  queued → sending, committed before the server hears of it, and from there everywhere

Between "the server took it" and "we wrote that down" a process can die, whatever one does. That has a state, a policy (`resend`), a
Message-ID that stays the same, and a count.
"""
