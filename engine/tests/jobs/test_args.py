"""Arguments as the ledger keeps them, and the policy that is declared with them."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from job_rows import KINDS, NOW, Limited, Only, Plain, Rated, Refresh, Side
from nightshift.errors import InvalidInput
from nightshift.jobs import Backoff, JobArgs, Rate
from nightshift.jobs.args import find_limited_policies, require_declared
from pydantic import ValidationError


class Rich(JobArgs, kind="test.rich"):
    """Arguments that are no JSON values by themselves."""

    owner: UUID
    at: datetime
    note: str | None = None


class Hourly(JobArgs, kind="test.hourly", unique_by=(), unique_period=timedelta(hours=1)):
    pass


# --- backoff ---


@pytest.mark.parametrize("first", [timedelta(seconds=5), timedelta(days=3)])
def test_backoff_ends_at_its_cap_whatever_the_attempt(first):
    backoff = Backoff(first, cap=timedelta(days=30))
    assert first / 2 <= backoff.delay(1) <= first
    assert all(
        timedelta(days=15) <= backoff.delay(attempt) <= timedelta(days=30)
        for attempt in (20, 31, 1000)
    )


@pytest.mark.parametrize(("attempt", "longest"), [(1, 5), (2, 10), (3, 20), (6, 160)])
def test_backoff_doubles_and_jitter_takes_at_most_half(attempt, longest):
    delays = [Backoff().delay(attempt).total_seconds() for _ in range(50)]
    assert longest / 2 <= min(delays) < max(delays) <= longest


def test_cap_below_the_first_delay_wins():
    assert Backoff(timedelta(hours=1), cap=timedelta(minutes=1)).delay(1) <= timedelta(minutes=1)


# --- arguments ---


def test_misspelt_argument_is_refused_at_the_call():
    with pytest.raises(ValidationError, match="nummer"):
        Plain(nummer=1)


def test_arguments_do_not_change():
    with pytest.raises(ValidationError, match="frozen"):
        Plain().number = 2


def test_row_holds_json_values_and_gives_the_arguments_back():
    args = Rich(owner=UUID(int=7), at=NOW)
    assert args.to_row() == {
        "owner": "00000000-0000-0000-0000-000000000007",
        "at": "2020-01-06T12:00:00Z",
        "note": None,
    }
    assert Rich.from_row(args.to_row()) == args


def test_row_of_newer_code_is_read_without_what_is_unknown():
    assert Plain.from_row({"number": 3, "colour": "red"}) == Plain(number=3)


def test_row_of_older_code_is_read_with_defaults():
    assert Plain.from_row({}) == Plain(number=0)


def test_row_that_no_longer_fits_is_refused():
    with pytest.raises(ValidationError, match="number"):
        Plain.from_row({"number": "many"})


# --- unique keys ---


def test_kind_that_may_run_any_number_of_times_has_no_unique_key():
    assert Plain().unique_key(NOW) is None


def test_unique_key_is_made_of_the_named_fields_alone():
    key = Only(number=1, text="a").unique_key(NOW)
    assert key == Only(number=1, text="b").unique_key(NOW + timedelta(days=9))
    assert key != Only(number=2, text="a").unique_key(NOW)


def test_no_named_field_means_one_job_of_the_kind():
    assert Refresh(number=1).unique_key(NOW) == Refresh(number=2).unique_key(NOW)


def test_unique_keys_of_two_kinds_differ():
    class Other(JobArgs, kind="test.other_only", unique_by=("number",)):
        number: int

    assert Only(number=1).unique_key(NOW) != Other(number=1).unique_key(NOW)


def test_unique_period_allows_one_job_in_each_period():
    noon = Hourly().unique_key(NOW)
    assert noon == Hourly().unique_key(NOW + timedelta(minutes=59, seconds=59))
    assert noon != Hourly().unique_key(NOW - timedelta(seconds=1))
    assert noon != Hourly().unique_key(NOW + timedelta(hours=1))


def test_unique_key_fits_its_column_however_long_the_arguments():
    assert len(Only(number=10**4000, text="x").unique_key(NOW)) < 200


# --- the policy ---


def test_policy_has_defaults():
    policy = Plain.policy
    assert (policy.kind, policy.queue, policy.priority, policy.max_attempts) == (
        "test.plain",
        "default",
        5,
        5,
    )
    assert (policy.time_limit, policy.unique_until) == (timedelta(seconds=60), "done")


def test_unknown_keyword_of_a_policy_is_refused():
    with pytest.raises(TypeError, match="prio"):

        class Misspelt(JobArgs, kind="test.misspelt", prio=1):
            pass


def test_unique_by_that_names_no_field_is_refused():
    with pytest.raises(TypeError, match="Misspelt: unique_by names no field: nummer"):

        class Misspelt(JobArgs, kind="test.misspelt", unique_by=("number", "nummer")):
            number: int


def test_kinds_with_a_concurrency_or_a_rate_are_limited():
    assert [policy.kind for policy in find_limited_policies(KINDS)] == [
        "test.limited",
        "test.rated",
    ]
    assert [kind.policy.limited for kind in (Limited, Rated, Plain)] == [True, True, False]
    assert Rated.policy.rate == Rate(3, timedelta(hours=1))


# --- declared kinds ---


def test_declared_kind_passes():
    require_declared(Side, None)


def test_undeclared_kind_is_refused_with_what_to_do():
    class Forgotten(JobArgs, kind="test.forgotten", queue="nowhere"):
        pass

    with pytest.raises(InvalidInput) as refused:
        require_declared(Forgotten, None)
    assert str(refused.value) == (
        "no component declares the kind 'test.forgotten', so nothing works on its queue 'nowhere':"
        " add Forgotten to `kinds` of its component"
    )


def test_time_in_a_row_is_an_instant_again():
    at = datetime(2026, 7, 1, 8, tzinfo=UTC)
    assert Rich.from_row(Rich(owner=UUID(int=1), at=at).to_row()).at == at
