"""Reading the mailbox in which reports arrive, from a server that speaks IMAP."""

import pytest
from nightshift.errors import InvalidInput
from servers import free_port

from services.mail import mailbox
from services.mail.bounces import LARGEST
from services.mail.mailbox import Mailbox, MailboxUnreadable, open_mailbox, read_new
from tests import imap


@pytest.fixture
def served():
    with imap.serving() as box:
        yield box


def read(served, **changes):
    """Return what one reading finds."""
    taken = []
    read_new(open_mailbox(changes.get("url", served.url), password=imap.PASSWORD), taken.append)
    return taken


def test_unread_messages_are_taken_once(served):
    served.messages = [b"one\r\n", b"two\r\n"]
    assert read(served) == [b"one\r\n", b"two\r\n"]

    served.messages.append(b"three\r\n")
    assert read(served) == [b"three\r\n"]
    assert read(served) == []
    assert served.commands[-1] == "LOGOUT"


def test_message_that_is_not_taken_is_read_again(served):
    served.messages = [b"one\r\n", b"two\r\n"]
    taken = []

    def take(raw):
        taken.append(raw)
        if taken == [b"one\r\n", b"two\r\n"]:
            raise RuntimeError("the database is away")

    box = open_mailbox(served.url, password=imap.PASSWORD)
    with pytest.raises(RuntimeError):
        read_new(box, take)
    assert served.seen == {1}
    assert read(served) == [b"two\r\n"]


def test_long_message_is_read_up_to_its_first_megabyte(served):
    served.messages = [b"a" * (LARGEST + 1000)]

    assert read(served) == [b"a" * LARGEST]


def test_one_reading_takes_a_limited_number(served, monkeypatch):
    monkeypatch.setattr(mailbox, "MOST_MESSAGES", 2)
    served.messages = [b"%d\r\n" % number for number in range(5)]

    assert [len(read(served)) for _ in range(4)] == [2, 2, 1, 0]


@pytest.mark.parametrize("word", ["LOGIN", "SELECT", "SEARCH", "FETCH", "STORE"])
def test_connection_that_is_cut_is_said_and_nothing_is_lost(served, word):
    served.messages, served.breaks_at = [b"one\r\n"], word

    with pytest.raises(MailboxUnreadable, match=rf"^127\.0\.0\.1:{served.port}: "):
        read(served)
    assert served.seen == set()
    assert read(served) == [b"one\r\n"]


def test_wrong_password_is_said_without_the_address(served):
    box = open_mailbox(served.url, password="wrong")

    with pytest.raises(MailboxUnreadable, match="AUTHENTICATIONFAILED") as caught:
        read_new(box, lambda _raw: None)
    assert imap.USER not in str(caught.value)


def test_password_that_is_missing_is_said(served):
    # The process that plans the reading does not need it.
    box = open_mailbox(served.url, password="")

    with pytest.raises(MailboxUnreadable, match=r"^BOUNCE_MAILBOX_PASSWORD is not given"):
        read_new(box, lambda _raw: None)


def test_folder_that_is_missing_is_said(served):
    with pytest.raises(MailboxUnreadable, match="there is no such folder"):
        read(served, url=served.url.replace("Bounces", "Other"))


def test_server_that_is_away_is_said(served):
    port = free_port()
    with pytest.raises(MailboxUnreadable, match=f"{port}: ConnectionRefusedError"):
        read(served, url=served.url.replace(str(served.port), str(port)))


@pytest.mark.parametrize(
    ("url", "box"),
    [
        ("imaps://me@mail.example", ("mail.example", 993, "implicit", "me", "INBOX")),
        ("imaps://me%40a@b.example:19/Back/", ("b.example", 19, "implicit", "me@a", "Back")),
        ("imap://me@mail.example/Un%20read", ("mail.example", 143, "starttls", "me", "Un read")),
        ("imap://me@127.0.0.1:1143?tls=none", ("127.0.0.1", 1143, "none", "me", "INBOX")),
    ],
)  # fmt: skip
def test_url_names_a_mailbox(url, box):
    host, port, tls, user, folder = box
    assert open_mailbox(url, password="secret") == Mailbox(host, port, tls, user, "secret", folder)


@pytest.mark.parametrize(
    ("url", "password", "message"),
    [
        ("", "secret", "BOUNCE_MAILBOX must be imaps://"),
        ("pop://me@mail.example", "secret", "BOUNCE_MAILBOX must be imaps://"),
        ("imaps://mail.example", "secret", "BOUNCE_MAILBOX must be imaps://"),
        ("imaps://me@mail.example:x", "secret", "BOUNCE_MAILBOX must be imaps://"),
        ("imaps://me@[::1", "secret", "BOUNCE_MAILBOX must be imaps://"),
        ("imaps://me:secret@mail.example", "secret", "BOUNCE_MAILBOX must not hold the password"),
        ("imap://me@mail.example?tls=none", "secret", "for this machine only"),
        ("imaps://me@localhost?tls=none", "secret", "for this machine only"),
        ("imaps://me@mail.example/%22", "secret", "must be ASCII"),
        ("imaps://me@mail.example/%0d%0aA1 DELETE", "secret", "must be ASCII"),
        ("imaps://me@mail.example", "geheimnüs", "must be ASCII"),
    ],
)  # fmt: skip
def test_wrong_url_is_refused_with_what_is_wrong(url, password, message):
    with pytest.raises(InvalidInput, match=message):
        open_mailbox(url, password=password)
