"""Users, passwords, and the limit on guesses."""

import pytest
from nightshift.desk.logins import (
    BY_ADDRESS,
    BY_NAME,
    WINDOW,
    Logins,
    TooMany,
    User,
    is_right,
    make_hash,
    read_users,
)
from nightshift.errors import InvalidInput
from nightshift.settings import Settings

QUICK = "scrypt.2.1.1.c2FsdHNhbHQ.QkPvW1pBuqkc9MN2kjs0TxTXU4Y0NpSNy7wNfmiMe2s"


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def make_logins(clock=None):
    users = {name: User(name, "act", QUICK) for name in ("ada", "bob")}
    return Logins(users, clock=clock or Clock())


def settings(**values):
    return Settings(_env_file=None, **values)


def test_hash_knows_its_password_and_no_other():
    hashed = make_hash("correct horse battery")

    assert is_right("correct horse battery", hashed)
    assert not is_right("correct horse batterz", hashed)
    assert not is_right("", hashed)
    assert make_hash("correct horse battery") != hashed
    # Compose, dotenv and lists take none of these for their own.
    assert not set(hashed) & set("$,:= '\"")


@pytest.mark.parametrize("password", ["", "short", "x" * 201])
def test_password_that_is_soon_guessed_gets_no_hash(password):
    with pytest.raises(InvalidInput, match="12 to 200"):
        make_hash(password)


@pytest.mark.parametrize(
    "hashed", ["scrypt.99999999.8.1.c2Fs.aGFz", "scrypt.3.8.1.c2Fs.aGFz", "scrypt.0.0.0.x.y"]
)
def test_hash_that_cannot_be_is_right_for_nobody(hashed):
    assert not is_right("correct horse battery", hashed)


def test_users_are_read_with_their_roles():
    users = read_users(settings(desk_users=f"ada:act:{QUICK}, bob.b@x:look:{QUICK}"), near=False)

    assert {name: user.may_act for name, user in users.items()} == {"ada": True, "bob.b@x": False}


@pytest.mark.parametrize(
    ("users", "said"),
    [
        ("ada:act:secret", "user 1 must be NAME:look:HASH"),
        (f"ada:act:{QUICK},bob:admin:{QUICK}", "user 2 must be"),
        (f"ada:act:{QUICK},ada:look:{QUICK}", "names a user twice"),
        (f"<b>:act:{QUICK}", "user 1 must be"),
    ],
)
def test_wrong_users_are_refused_without_showing_them(users, said):
    with pytest.raises(ValueError, match=r"DESK_USERS|desk_users") as caught:
        settings(desk_users=users)

    assert said in str(caught.value)
    assert QUICK not in str(caught.value)


def test_development_has_a_login_on_this_machine_only():
    [user] = read_users(settings(), near=True).values()

    assert is_right("change-me", user.hash)
    with pytest.raises(InvalidInput, match="DESK_USERS"):
        read_users(settings(), near=False)
    with pytest.raises(InvalidInput, match="DESK_USERS"):
        read_users(settings(environment="production"), near=True)


def test_name_is_not_tried_again_and_again():
    clock = Clock()
    logins = make_logins(clock)
    for _ in range(BY_NAME):
        assert logins.try_login("ada", "wrong", "10.0.0.1") is None

    with pytest.raises(TooMany):
        logins.try_login("ada", "wrong", "10.0.0.2")
    assert logins.try_login("bob", "wrong", "10.0.0.3") is None
    clock.now += WINDOW + 1
    assert logins.try_login("ada", "wrong", "10.0.0.1") is None


def test_address_does_not_try_name_after_name():
    logins = make_logins()
    for number in range(BY_ADDRESS):
        assert logins.try_login(f"name{number}", "wrong", "10.0.0.1") is None

    with pytest.raises(TooMany):
        logins.try_login("another", "wrong", "10.0.0.1")


def test_another_password_is_another_seal():
    assert User("ada", "act", QUICK).seal != User("ada", "act", QUICK + "x").seal
