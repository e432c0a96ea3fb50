"""Arguments as the ledger keeps them, and the policy that is declared with them."""

import os
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from job_rows import KINDS, NOW, Limited, Only, Plain, Rated, Refresh, Side
from nightshift.errors import InvalidInput
from nightshift.jobs import Backoff, JobArgs, Rate
from nightshift.jobs.args import Policy, find_limited_policies, find_unstorable, require_declared
from pydantic import BaseModel, Field, Json, SecretStr, ValidationError


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


# --- what cannot be stored ---


@pytest.mark.parametrize(
    "value", [None, True, 1, -1.5, "text \N{GRINNING FACE}", [], {}, {"a": [1, (2, {"b": None})]}]
)
def test_json_value_can_be_stored(value):
    assert find_unstorable(value) is None


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("\0", r"a database cannot store the character '\x00'"),
        ({"a": ["\ud800"]}, r"a[0]: a database cannot store the character '\ud800'"),
        ({"a\0": 1}, r"'a\x00': a database cannot store the character '\x00'"),
        ([[float("inf")]], "[0][0]: JSON has no inf"),
        ({"items": [1, {"at": NOW}]}, "items[1].at: JSON has no datetime"),
        ({1, 2}, "JSON has no set"),
        (Plain(), "JSON has no Plain"),
    ],
)
def test_place_and_reason_of_what_cannot_be_stored_are_told(value, found):
    assert find_unstorable(value) == found


def test_value_that_holds_itself_cannot_be_stored():
    value: list[object] = []
    value.append(value)
    assert find_unstorable(value) == "it is nested too deeply"


@dataclass(frozen=True, slots=True)
class Place:
    name: Any


class Untyped(JobArgs, kind="test.untyped", unique_by=("value",)):
    value: Any = None
    raw: bytes = b""


class Loose(BaseModel, extra="allow"):
    a: int


class Hidden(BaseModel):
    b: int = Field(default=1, exclude=True)


class Secretive(JobArgs, kind="test.secretive"):
    """Fields that do not come back from JSON as they were."""

    one: SecretStr = SecretStr("")
    two: Loose = Loose(a=1)
    three: Hidden = Hidden()
    four: Json[dict[str, int]] | None = None


class Strict(JobArgs, kind="test.strict", strict=True):
    """Fields that only strict JSON gives back."""

    owner: UUID = UUID(int=7)
    at: datetime = NOW
    pair: tuple[int, int] = (1, 2)
    tags: frozenset[str] = frozenset("ab")


def test_strict_arguments_come_back_from_their_row():
    assert Strict.from_row(Strict().to_row()) == Strict()


@pytest.mark.parametrize(
    ("args", "where"),
    [
        (Untyped(value=[Place("\0")]), r"value\[0\].name: a database cannot store .*x00"),
        (Untyped(value={"a": Place(float("nan"))}), "value.a.name: JSON has no nan"),
        (Untyped(raw=b"\0"), r"raw: a database cannot store .*x00"),
        (Untyped(raw=b"\xff"), "raw: .*utf-8"),
        (Untyped(value=object()), "value: .*object"),
        (Untyped(value={"\0"}), r"value\[0\]: a database cannot store .*x00"),
        (Untyped(value={frozenset({1}): 1}), "value: .*frozenset"),
        (Untyped(value=Decimal(1)), "value: its JSON form gives another value back"),
        (Secretive(one=SecretStr("a")), "one: its JSON form gives another value back"),
        (Secretive(two=Loose(a=1, colour="red")), "two: its JSON form gives another value back"),
        (Secretive(three=Hidden(b=2)), "three: its JSON form gives another value back"),
        (Secretive(four='{"a": 1}'), "four: JSON input should be string"),
    ],
)
def test_arguments_that_cannot_be_stored_are_refused(args, where):
    with pytest.raises(InvalidInput, match=f"^{type(args).__name__} cannot be enqueued: .*{where}"):
        args.to_row()


def test_field_that_the_row_would_lack_is_refused_in_its_class():
    with pytest.raises(TypeError, match="would lose a field with exclude=True: secret"):

        class Forgetful(JobArgs, kind="test.forgetful"):
            secret: int = Field(exclude=True)


def test_row_has_the_fields_own_names_whatever_aliases_callers_use():
    class Aliased(JobArgs, kind="test.aliased", unique_by=("number",), serialize_by_alias=True):
        number: int = Field(alias="Nummer")

    args = Aliased(Nummer=7)
    assert args.to_row() == {"number": 7}
    assert Aliased.from_row(args.to_row()) == args
    assert args.unique_key(NOW) != Aliased(Nummer=8).unique_key(NOW)


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


class Point(BaseModel, frozen=True):
    """A nested model of values that can be written in several ways."""

    at: datetime
    tags: frozenset[str]
    ratio: float = 0.0


class Various(
    JobArgs,
    kind="test.various",
    unique_by=("tags", "ratio", "price", "at", "inner", "by_name", "points"),
):
    """Fields whose equal values can be written in several ways."""

    tags: frozenset[str | int] = frozenset()
    ratio: float = 0.0
    price: Decimal = Decimal(0)
    at: datetime = NOW
    inner: Point = Point(at=NOW, tags=frozenset())
    by_name: dict[str, list[set[int]]] = Field(default_factory=dict)
    points: frozenset[Point] = frozenset()


EAST = timezone(timedelta(hours=5, minutes=30))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"tags": {"b", "a", 3}}, {"tags": {3, "a", "b"}}),
        ({"ratio": -0.0}, {"ratio": 0.0}),
        ({"price": Decimal("1.0")}, {"price": Decimal("1.00")}),
        ({"price": Decimal("1E+2")}, {"price": Decimal("100.000")}),
        ({"price": Decimal("-0.0")}, {"price": Decimal(0)}),
        ({"at": NOW}, {"at": NOW.astimezone(EAST)}),
        ({"at": NOW}, {"at": NOW.astimezone(ZoneInfo("Europe/Zurich"))}),
        (
            {"inner": Point(at=NOW, tags={"x", "y"}, ratio=-0.0)},
            {"inner": Point(at=NOW.astimezone(EAST), tags={"y", "x"})},
        ),
        ({"by_name": {"b": [{1, 2}], "a": []}}, {"by_name": {"a": [], "b": [{2, 1}]}}),
        (
            {"points": {Point(at=NOW, tags={"x"}), Point(at=NOW, tags={"y"})}},
            {"points": {Point(at=NOW.astimezone(EAST), tags={t}) for t in "yx"}},
        ),
    ],
)
def test_values_that_are_equal_give_one_key(one, other):
    one, other = Various(**one), Various(**other)
    assert one == other
    assert one.unique_key(NOW) == other.unique_key(NOW)
    assert one.unique_key(NOW) != Various(price=Decimal(7)).unique_key(NOW)


FIRST_DAY = datetime(1, 1, 1, tzinfo=EAST)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0),
        (10**16, 1e16),
        (Decimal("1.0"), 1),
        (Decimal("0.5"), 0.5),
        (Decimal("10E-6000"), Decimal("1E-5999")),
        (Decimal("10E+399"), Decimal("1E+400")),
        (Decimal("10E+6000"), Decimal("1E+6001")),
        ({1: "a"}, {1.0: "a"}),
        ([{Decimal(1), 2}], [{2.0, 1}]),
        (time(10, tzinfo=UTC), time(15, 30, tzinfo=EAST)),
        (FIRST_DAY, FIRST_DAY.replace()),  # its UTC is before the year 1
    ],
)
def test_untyped_values_that_are_equal_give_one_key(one, other):
    assert one == other
    assert Untyped(value=one).unique_key(NOW) == Untyped(value=other).unique_key(NOW)
    assert Untyped(value=one).unique_key(NOW) != Untyped(value=7).unique_key(NOW)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"price": Decimal("1.0")}, {"price": Decimal(10)}),
        ({"price": Decimal(100)}, {"price": Decimal(1)}),
        ({"price": Decimal("1." + "0" * 40 + "1")}, {"price": Decimal(1)}),
        ({"tags": {"ab"}}, {"tags": {"a", "b"}}),
        ({"tags": {1}}, {"tags": {"1"}}),
        ({"at": NOW}, {"at": NOW + timedelta(microseconds=1)}),
    ],
)
def test_values_that_differ_give_two_keys(one, other):
    assert Various(**one).unique_key(NOW) != Various(**other).unique_key(NOW)


def test_set_gives_one_key_in_every_process():
    """Each process puts the texts of a set into an order of its own."""
    keys = set()
    for seed in "012":
        program = (
            "from datetime import UTC, datetime\n"
            "from nightshift.jobs import JobArgs\n"
            "class Tagged(JobArgs, kind='test.tagged', unique_by=('tags',)):\n"
            "    tags: frozenset[str]\n"
            "print(Tagged(tags=set('abcdefgh')).unique_key(datetime(2020, 1, 1, tzinfo=UTC)))\n"
        )
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", program]
        ran = subprocess.run(command, env=environment, capture_output=True, check=True, text=True)
        keys.add(ran.stdout)
    assert len(keys) == 1


class Simple(
    JobArgs, kind="test.simple", unique_by=("number", "text", "flag", "nothing", "items", "at")
):
    """Fields whose values can be written in one way only."""

    number: int = 7
    text: str = "Zürich"
    flag: bool = True
    nothing: str | None = None
    items: tuple[int | str, ...] = (3, "a", 1)
    at: datetime = datetime(2020, 1, 6, 12, 0, 0, 5, tzinfo=UTC)


def test_key_of_plain_values_is_that_of_the_release_before():
    assert Simple().unique_key(NOW) == "test.simple:fd62d623b09f4512075f839a1ccd0350"
    assert Only(number=1).unique_key(NOW) == "test.only:ef6555d139bba0ca2326a50024344e1b"
    assert Refresh().unique_key(NOW) == "test.refresh:7ebb3c7c2a87b1a2f8a7ed729ecb040d"
    assert Hourly().unique_key(NOW) == "test.hourly:361674fe2f1a0255bff213d7a8773def"


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


@pytest.mark.parametrize(
    "policy",
    [
        {"kind": ""},
        {"kind": "x" * 101},
        {"queue": "x" * 51},
        {"priority": 10},
        {"max_attempts": 0},
        {"time_limit": timedelta()},
        {"soft_time_limit": timedelta(seconds=61)},
        {"unique_until": "start"},
        {"unique_period": timedelta()},
        {"concurrency": 0},
        {"rate": Rate(0, timedelta(seconds=1))},
        {"rate": Rate(1, timedelta())},
    ],
    ids=str,
)
def test_absurd_policy_is_refused_with_its_keyword(policy):
    with pytest.raises(ValueError, match=f"cannot have {next(iter(policy))}="):
        Policy(**{"kind": "side.absurd", **policy})
