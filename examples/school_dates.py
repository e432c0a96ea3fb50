"""Write the example school with dates around today: `python examples/school_dates.py FOLDER`.

The files in `examples/school` have fixed dates, around the week of ANCHOR. All of them move by the
same number of weeks: weekdays stay, and today falls into that week. So the calendars hold as many
events on any day. Clock times stay too, although the clocks may change in between.
"""

import re
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import click

__all__ = ["write_around"]

SCHOOL = Path(__file__).parent / "school"

# The Monday of a week in which no event enters or leaves the calendars.
ANCHOR = date(2026, 11, 30)

DATE = re.compile(r"\b\d{4}-\d\d-\d\d(?=\b|T)")


def write_around(folder: Path, today: date) -> None:
    """Write the example school's files into a folder, with the dates that it has around `today`."""
    weeks = timedelta(weeks=(today - ANCHOR) // timedelta(weeks=1))
    folder.mkdir(parents=True, exist_ok=True)
    for file in SCHOOL.glob("*.csv"):
        moved = DATE.sub(
            lambda found: str(date.fromisoformat(found[0]) + weeks),
            file.read_text(encoding="utf-8"),
        )
        (folder / file.name).write_text(moved, encoding="utf-8")


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
def main(folder: Path) -> None:
    """Write the example school into FOLDER, with dates around today."""
    try:
        write_around(folder, datetime.now(UTC).astimezone().date())
    except OSError as error:
        raise click.ClickException(f"{folder} cannot be written: {error.strerror}") from error


if __name__ == "__main__":
    main()
