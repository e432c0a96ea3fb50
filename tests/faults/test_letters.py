"""Ten schools' letters through 2,000 random steps, on both databases.

The mail servers put mails off, lose connections, are away, and the process that sends dies.
"""

from collections import Counter

import pytest

from tests.letter_simulator import database, simulate

SCHOOLS = 10
STEPS = 200


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_no_mail_is_missing_doubled_foreign_overtaken_or_false(kind, tmp_path):
    counts: Counter[str] = Counter()
    with database(kind, tmp_path) as url:
        for seed in range(SCHOOLS):
            counts.update(simulate(url, tmp_path, seed=seed, steps=STEPS))
    print(f"\n{SCHOOLS} schools, {STEPS} steps each, {kind}")
    for name, number in counts.items():
        print(f"  {name:<26}{number:>8}")
