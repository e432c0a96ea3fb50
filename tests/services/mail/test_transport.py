"""What each answer of a server means, against a real one."""

import asyncio
import socket
import ssl
import subprocess
import threading
import time
from contextlib import closing, contextmanager, suppress
from email.message import EmailMessage
from email.policy import SMTP

import pytest
from aiosmtpd.smtp import AuthResult
from nightshift.errors import InvalidInput
from servers import free_port

from services.mail.transport import (
    FolderTransport,
    SmtpTransport,
    Verdict,
    clean_reply,
    open_transport,
)
from tests.smtp import serving

SENDER = "noreply@school.example"


def content(text="Hello\n.\n..dots\n"):
    message = EmailMessage(policy=SMTP)
    message["Subject"], message["Message-ID"] = "Hello", "<one@school.example>"
    message.set_content(text)
    return message.as_bytes()


# Seconds that a server has which does not hang, on a busy machine.
HEALTHY = 60


def send(transport, recipient="anna@school.example"):
    return transport.send(SENDER, recipient, content())


def plain(server, *, fate=""):
    # One that hangs does so for 2 s.
    timeout = 1.5 if "hang" in fate else HEALTHY
    return closing(SmtpTransport("127.0.0.1", server.port, tls="none", timeout=timeout))


def test_a_taken_message_arrives_byte_for_byte():
    with serving() as server:
        with plain(server) as transport:
            assert send(transport).verdict is Verdict.SENT
        assert server.kept == [("<one@school.example>", "anna@school.example", content())]


@pytest.mark.parametrize(
    ("fate", "verdict", "pause", "dead", "reply"),
    [
        ("4xx", Verdict.LATER, False, False, "RCPT TO: 451 4.3.0 … later, please"),
        ("5xx", Verdict.REFUSED, False, True, "RCPT TO: 550 5.1.1 … nobody of that name"),
        ("432", Verdict.LATER, True, False, "RCPT TO: 432 4.3.2 too many connections"),
        ("data 4xx", Verdict.LATER, False, False, "message: 451 4.3.0 the disk is full"),
        (
            "data 5xx",
            Verdict.REFUSED,
            False,
            False,
            "message: 554 5.7.1 we do not like this message",
        ),
        ("hang", Verdict.LATER, False, False, None),
        ("drop", Verdict.LATER, False, False, None),
        ("data hang", Verdict.UNKNOWN, False, False, None),
        ("data drop", Verdict.UNKNOWN, False, False, None),
        ("kept, then drop", Verdict.UNKNOWN, False, False, None),
    ],
)
def test_answer_means(fate, verdict, pause, dead, reply):
    with serving([fate]) as server, plain(server, fate=fate) as transport:
        answer = send(transport)
        assert (answer.verdict, answer.pause, answer.dead_address) == (verdict, pause, dead)
        assert reply in (None, answer.reply)
        # Whatever happened, the next message is none the worse.
        assert send(transport).verdict is Verdict.SENT


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("550 5.7.60 this sender may not", Verdict.AWAY),
        ("451 4.7.0 slow down", Verdict.AWAY),
        ("552 5.3.4 too large", Verdict.REFUSED),
    ],
)
def test_refused_sender_is_about_us_unless_the_message_is_too_large(reply, verdict):
    async def refuse(smtp, session, envelope, address, options):
        return reply

    with serving() as server, plain(server) as transport:
        server.handler.handle_MAIL = refuse
        assert send(transport).verdict is verdict


@pytest.mark.parametrize(
    ("reply", "kept"),
    [
        ("550 no\x00\x1b[2J body", "RCPT TO: 550 no [2J body"),
        ("550 <anna@school.example> a@b,c@d x<y@z> @home", "RCPT TO: 550 … … x… @home"),
        ("\r\n".join(["550-" + "x" * 8000] * 40 + ["550 end"]), f"RCPT TO: 550 {'x' * 487}"),
    ],
)
def test_reply_is_kept_as_a_short_line_of_plain_text(reply, kept):
    async def refuse(smtp, session, envelope, address, options):
        return reply

    with serving() as server, plain(server) as transport:
        server.handler.handle_RCPT = refuse
        assert send(transport).reply == kept


def test_no_reply_keeps_a_process_busy():
    # Where every letter is searched from, this takes hours, and the test runs into its time limit.
    assert clean_reply("550 " + "x" * 2_000_000) == f"550 {'x' * 496}"


def test_any_code_that_begins_with_two_is_a_yes():
    async def will_try(smtp, session, envelope, address, options):
        envelope.rcpt_tos.append(address)
        return "252 will try"

    async def take(smtp, session, envelope):
        return "251 kept for somebody else"

    with serving() as server, plain(server) as transport:
        server.handler.handle_RCPT, server.handler.handle_DATA = will_try, take
        answer = send(transport)
        assert (answer.verdict, answer.reply) == (Verdict.SENT, "251 kept for somebody else")


def test_server_that_is_away_is_no_fault_of_the_message():
    answer = send(SmtpTransport("127.0.0.1", free_port(), tls="none"))
    assert (answer.verdict, answer.pause) == (Verdict.AWAY, True)


def test_server_that_does_not_greet_is_away():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        assert (
            send(
                SmtpTransport("127.0.0.1", listener.getsockname()[1], tls="none", timeout=0.2)
            ).verdict
            is Verdict.AWAY
        )


@contextmanager
def dripping(script, drip):
    """Serve a script of answers at once, and then send `drip` again and again, without an end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            with closing(listener.accept()[0]) as connection, suppress(OSError):
                # Each answer but the greeting is to a command, which is one line.
                for number, line in enumerate(script):
                    if number:
                        connection.recv(65_536)
                    connection.sendall(line)
                while True:
                    connection.sendall(drip)
                    time.sleep(0.02)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


GREETING = [b"220 hello\r\n"]
UNTIL_CONTENT = [*GREETING, b"250 a\r\n", b"250 b\r\n", b"250 c\r\n", b"354 go on\r\n"]


@pytest.mark.parametrize("drip", [b"2", b"250-more\r\n"], ids=["bytes", "lines"])
@pytest.mark.parametrize(
    ("script", "verdict"),
    [([], Verdict.AWAY), (GREETING, Verdict.AWAY), (UNTIL_CONTENT, Verdict.UNKNOWN)],
    ids=["greeting", "EHLO", "message"],
)
def test_answer_that_does_not_end_is_waited_for_no_longer_than_one_that_does_not_begin(
    script, verdict, drip
):
    # Without the limit this waits for ever.
    with dripping(script, drip) as port:
        transport = SmtpTransport("127.0.0.1", port, tls="none", timeout=0.3)
        with closing(transport):
            assert send(transport).verdict is verdict


def test_connection_is_used_again_and_replaced_when_the_server_closed_it():
    with serving() as server, plain(server) as transport:
        sessions = []
        taking = server.handler.handle_RCPT

        async def noting(smtp, session, envelope, address, options):
            sessions.append(session.peer)
            return await taking(smtp, session, envelope, address, options)

        server.handler.handle_RCPT = noting
        assert [send(transport).verdict for _ in range(3)] == [Verdict.SENT] * 3
        assert len(set(sessions)) == 1
        # As a server does that has had enough of a connection.
        transport._smtp.sock.shutdown(socket.SHUT_RDWR)
        assert send(transport).verdict is Verdict.SENT
        assert len(set(sessions)) == 2


@pytest.mark.parametrize("step", ["handle_MAIL", "handle_RSET"])
def test_connection_that_the_server_ends_after_refusals_is_replaced(step):
    async def enough(smtp, session, envelope, *_):
        envelope.mail_from = SENDER if step == "handle_MAIL" else None
        if session.peer not in met:
            met.append(session.peer)
            return "250 OK"
        smtp.transport.write(b"421 4.7.0 too many errors\r\n")
        smtp.transport.close()
        raise asyncio.CancelledError

    met = []
    with serving(["5xx", "5xx", "5xx"]) as server, plain(server) as transport:
        setattr(server.handler, step, enough)
        assert [send(transport).verdict for _ in range(4)] == [Verdict.REFUSED] * 3 + [Verdict.SENT]


def test_long_wait_is_for_the_answer_to_the_message_only():
    with serving(["data 4xx"]) as server, plain(server) as transport:
        assert send(transport).verdict is Verdict.LATER
        assert transport._smtp.sock.gettimeout() == HEALTHY


def test_address_that_is_not_ascii_needs_smtputf8():
    with serving() as server, plain(server) as transport:
        assert send(transport, "jörg@school.example").verdict is Verdict.SENT
        assert server.kept[0][1] == "jörg@school.example"
    with serving() as server, plain(server) as transport:
        server.handler.handle_EHLO = _without_smtputf8
        answer = send(transport, "jörg@school.example")
        assert (answer.verdict, answer.pause) == (Verdict.REFUSED, False)


async def _without_smtputf8(server, session, envelope, hostname, responses):
    session.host_name = hostname
    return [line for line in responses if "SMTPUTF8" not in line]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certificate")
    key, cert = folder / "key.pem", folder / "cert.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
    ]
    command += [
        "-addext",
        "subjectAltName=DNS:localhost,IP:127.0.0.1",
        "-keyout",
        str(key),
        "-out",
        str(cert),
    ]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return cert, context


def authenticate(server, session, envelope, mechanism, data):
    return AuthResult(success=data.password == b"right", handled=False)


def with_login(context):
    return serving(
        tls_context=context, authenticator=authenticate, auth_required=True, require_starttls=True
    )


def test_starttls_and_login(certificate, monkeypatch):
    cert, context = certificate
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    with with_login(context) as server:
        transport = SmtpTransport(
            "127.0.0.1", server.port, tls="starttls", user="school", password="right"
        )
        steps = []
        transport.tell = lambda step, answer: steps.append((step, answer.partition(" ")[0]))
        assert send(transport).verdict is Verdict.SENT
        transport.close()
    assert steps == [
        ("resolve", "127.0.0.1"),
        ("connect", "220"),
        ("EHLO", "250"),
        ("STARTTLS", "220"),
        ("EHLO", "250"),
        ("TLS", "TLSv1.3,"),
        ("AUTH", "235"),
        ("MAIL FROM", "250"),
        ("RCPT TO", "250"),
        ("DATA", "354"),
        ("message", "250"),
    ]


def test_wrong_password_fails_no_message(certificate, monkeypatch):
    cert, context = certificate
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    with with_login(context) as server:
        answer = send(
            SmtpTransport("127.0.0.1", server.port, tls="starttls", user="school", password="hush")
        )
    assert (answer.verdict, answer.pause) == (Verdict.AWAY, True)
    assert "hush" not in answer.reply


def test_server_without_login_fails_no_message(certificate, monkeypatch):
    cert, context = certificate
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    with serving(tls_context=context, auth_exclude_mechanism=["LOGIN", "PLAIN"]) as server:
        answer = send(
            SmtpTransport("127.0.0.1", server.port, tls="starttls", user="school", password="right")
        )
    assert (answer.verdict, answer.pause) == (Verdict.AWAY, True)


async def _offer_login(server, session, envelope, hostname, responses):
    session.host_name = hostname
    return [responses[0], "250-AUTH LOGIN", *responses[1:]]


async def _ask_nonsense(server, args):
    await server.push("334 abcde")


def test_login_that_asks_nonsense_fails_no_message(monkeypatch):
    with serving() as server:
        server.handler.handle_EHLO = _offer_login
        monkeypatch.setattr("aiosmtpd.smtp.SMTP.smtp_AUTH", _ask_nonsense)
        answer = send(
            SmtpTransport(
                "127.0.0.1",
                server.port,
                tls="none",
                user="school",
                password="hush",
                timeout=HEALTHY,
            )
        )
    assert (answer.verdict, answer.pause) == (Verdict.AWAY, True)
    assert "base64" in answer.reply


def test_host_that_is_no_name_fails_no_message():
    answer = send(open_transport("smtp://mail..example"))
    assert (answer.verdict, answer.pause) == (Verdict.AWAY, True)


def test_certificate_that_nobody_vouches_for_is_refused(certificate):
    _, context = certificate
    with serving(tls_context=context) as server:
        answer = send(SmtpTransport("127.0.0.1", server.port, tls="starttls"))
        assert (answer.verdict, server.kept) == (Verdict.AWAY, [])
    assert "CERTIFICATE_VERIFY_FAILED" in answer.reply


def test_server_without_starttls_gets_nothing():
    with serving() as server:
        assert (
            send(SmtpTransport("127.0.0.1", server.port, tls="starttls")).verdict,
            server.kept,
        ) == (Verdict.AWAY, [])


def test_folder_gets_one_file_a_message(tmp_path):
    transport = FolderTransport(tmp_path / "mail")
    assert [send(transport).verdict for _ in range(2)] == [Verdict.SENT] * 2
    assert [path.name for path in (tmp_path / "mail").iterdir()] == ["one.eml"]
    assert (tmp_path / "mail" / "one.eml").read_bytes() == content()


def test_folder_returns_a_message_by_the_reply_to_it(tmp_path):
    transport = FolderTransport(tmp_path / "mail")
    reply = send(transport).reply

    [file] = (tmp_path / "mail").iterdir()
    assert (transport.read(reply), transport.read("other.eml")) == (file.read_bytes(), None)


def test_folder_reads_nothing_beside_it(tmp_path):
    (tmp_path / "secret").write_bytes(b"ours")
    (tmp_path / "mail").mkdir()

    assert FolderTransport(tmp_path / "mail").read("../secret") is None


def test_folder_that_cannot_be_written_is_away(tmp_path):
    (tmp_path / "mail").write_text("a file")
    assert send(FolderTransport(tmp_path / "mail")).verdict is Verdict.AWAY


@pytest.mark.parametrize(
    ("url", "password", "message"),
    [
        ("mail.school.example:25", "", "MAIL_URL must be"),
        ("smtp://", "", "MAIL_URL must be"),
        ("smtp://school:hush@mail.school.example", "", "MAIL_PASSWORD"),
        ("smtp://school@mail.school.example", "", "MAIL_PASSWORD is needed"),
        ("smtp://school@mail.school.example?tls=none", "hush", "never sent in the clear"),
        ("smtp://mail.school.example?tls=maybe", "", "tls=none"),
        ("smtp://mail.school.example?timeout=0", "", "timeout=SECONDS"),
        ("smtp://mail.school.example?timeout=99999999999999", "", "timeout=SECONDS"),
        ("smtp://school@mail.school.example", "hush-ü", "must be ASCII"),
    ],
)
def test_wrong_url_says_what_is_wrong(url, password, message):
    with pytest.raises(InvalidInput, match=message) as caught:
        open_transport(url, password=password)
    assert "hush" not in str(caught.value)


def test_folder_of_mails_is_for_the_service_alone(tmp_path):
    folder = tmp_path / "mail"
    send(FolderTransport(folder))

    [file] = folder.iterdir()
    assert (file.stat().st_mode & 0o777, folder.stat().st_mode & 0o777) == (0o600, 0o700)
