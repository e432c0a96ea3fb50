"""Times and spans as people read them."""

from datetime import datetime, timedelta

# A unit, its seconds, and from how many of them on it is used.
UNITS = (("d", 86_400, 2), ("h", 3_600, 2), ("min", 60, 1.5), ("s", 1, 1))


def show_span(span: timedelta) -> str:
    """Return a span by its largest unit: 5 min."""
    seconds = span.total_seconds()
    for unit, length, least in UNITS:
        if seconds >= least * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.1f} s" if seconds else "0 s"


def show_age(moment: datetime | None, now: datetime) -> str:
    """Return how long ago an instant was, or how far ahead it is: 2 min ago, in 3 h."""
    if moment is None:
        return ""
    age = now - moment
    return f"{show_span(age)} ago" if age >= timedelta() else f"in {show_span(-age)}"
