"""A short simulation of a school's letters, on both databases. `make faults` has the long one."""

import pytest

from tests.letter_simulator import Untrue, database as make_database, simulate


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def database(request, tmp_path_factory):
    with make_database(request.param, tmp_path_factory.mktemp("simulation")) as url:
        yield url


def test_no_mail_is_missing_doubled_foreign_overtaken_or_false(database, tmp_path):
    counts = simulate(database, tmp_path, seed=14, steps=40)
    assert {"taken", "put off", "event_published", "event_changed"} <= counts.keys()


def test_simulation_sees_what_is_sent_without_a_look_before(tmp_path):
    # The control: without the check, mails say what is no longer so.
    def without_checks(url):
        for seed in range(5):
            simulate(url, tmp_path, seed=seed, steps=50, checked=False)

    with make_database("sqlite", tmp_path) as url, pytest.raises(Untrue):
        without_checks(url)
