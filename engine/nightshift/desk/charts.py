"""Small charts as SVG. They hold numbers only, and take their colours from the style sheet."""

from collections.abc import Sequence

from markupsafe import Markup

HEIGHT, STEP = 120, 10
SPARK_HEIGHT, SPARK_STEP = 24, 6


def draw_bars(rows: Sequence[tuple[str, int, int]], *, label: str) -> Markup:
    """Return a chart with a bar for each row: its name, and how many were good and bad."""
    most = max((good + bad for _, good, bad in rows), default=0) or 1
    width = len(rows) * STEP
    parts = []
    for number, (name, good, bad) in enumerate(rows):
        good_height, bad_height = (_scale(one, most, HEIGHT) for one in (good, bad))
        x = number * STEP
        title = Markup("<title>{}: {} succeeded, {} did not</title>").format(name, good, bad)
        bars = Markup("")
        if good:
            bars += _rect("good", x + 1, HEIGHT - good_height, STEP - 2, good_height)
        if bad:
            bars += _rect("bad", x + 1, HEIGHT - good_height - bad_height, STEP - 2, bad_height)
        parts.append(
            Markup("<g>{}<rect class='hit' x='{}' y='0' width='{}' height='{}'/>{}</g>").format(
                title, x, STEP, HEIGHT, bars
            )
        )
    return Markup(
        "<svg class='chart' viewBox='0 0 {} {}' preserveAspectRatio='none' role='img'"
        " aria-label='{}'>{}</svg>"
    ).format(width, HEIGHT, label, Markup("").join(parts))


def draw_spark(seconds: Sequence[tuple[float, bool]], *, label: str) -> Markup:
    """Return a small chart of durations, oldest first, each with whether the run was good."""
    most = max((one for one, _ in seconds), default=0.0) or 1.0
    bars = [
        _rect(
            "good" if good else "bad",
            number * SPARK_STEP,
            SPARK_HEIGHT - _scale(one, most, SPARK_HEIGHT),
            SPARK_STEP - 2,
            _scale(one, most, SPARK_HEIGHT),
        )
        for number, (one, good) in enumerate(seconds)
    ]
    return Markup(
        "<svg class='spark' width='{0}' height='{1}' viewBox='0 0 {0} {1}' role='img'"
        " aria-label='{2}'>{3}</svg>"
    ).format(max(1, len(seconds)) * SPARK_STEP, SPARK_HEIGHT, label, Markup("").join(bars))


def _scale(value: float, most: float, height: int) -> float:
    return round(max(2.0, value / most * height), 1) if value else 2.0


def _rect(name: str, x: float, y: float, width: float, height: float) -> Markup:
    return Markup("<rect class='{}' x='{}' y='{}' width='{}' height='{}'/>").format(
        name, x, y, width, height
    )
