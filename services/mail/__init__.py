"""The outbox: a message is a row before it is sent, and the row says what became of it.

    queued ──claim──> sending ──> sent
     ^  ^                │ ├────> failed      refused, attempts used up, or past its deadline
     │  ├── try later ───┤ └────> unknown     the server may have it; a second copy would do harm
     │  └── send again ──┘                    the server may have it; a second copy does little
     │                                        harm, and is counted in `repeats`
     └─ release ── held <── queued            failed, unknown ── retry, by hand ──> queued
    queued, held, sending ──> cancelled       withdrawn: it is not true or not wanted any more
                                              suppressed: its address is on the suppression list

Two modules change a state:

    outbox.py    creates rows; holds, releases, retries, cancels and suppresses them for a person;
                 ends those that are past their deadline
    delivery.py  commits queued → sending before the server gets the message, and makes every
                 change of state from there

A queued message is a snapshot. What it says may have changed when its turn comes: the server was
away, or put it off. So each message passes a check right before it is sent (`outbox.Check`). The
noun that wrote the message provides the check, since the mail does not know what it is about.

A process can die after the server took a message and before that was recorded. The outbox has a
state for it, a policy (`resend`), a Message-ID that stays the same, and a counter.

What a server took may come back: it could not be delivered, or its reader calls it spam.
bounces.py settles such reports. They change no state.
"""
