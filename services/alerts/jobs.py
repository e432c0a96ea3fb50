"""The arguments of the alerts' job. A leaf: any module may import it."""

from datetime import datetime, timedelta

from nightshift.jobs.args import Backoff, JobArgs


class SendAlert(
    JobArgs,
    kind="alerts.send",
    # One at a time: what turns meanwhile is in the next one.
    unique_by=(),
    backoff=Backoff(first=timedelta(seconds=10), cap=timedelta(minutes=10)),
    max_attempts=50,
):
    """Tell what turned since the alert before.

    `after` names that one. `failing` are the probes that fail now, `lines` is what is said, and
    `until` the instant up to which failed jobs are told.
    """

    after: str
    failing: tuple[str, ...]
    lines: tuple[str, ...]
    until: datetime
