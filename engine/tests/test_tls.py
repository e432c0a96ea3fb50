"""Whose certificates database and broker connections accept, with a server that shows one."""

import socket
import ssl
import subprocess
import threading
from contextlib import contextmanager, suppress

import pytest
from nightshift.celery.app import App
from nightshift.celery.publisher import connect
from nightshift.component import Composition
from nightshift.ledger import ledger
from nightshift.settings import Settings
from pydantic import ValidationError

FAR = "db.school.example"
URLS = {
    "redis": ("broker_url", "rediss://localhost:{}/0"),
    "rabbit": ("broker_url", "amqps://u:p@localhost:{}//"),
    # Another machine's name, and this one's address.
    "postgres": (
        "database_url",
        f"postgresql+psycopg://u:p@{FAR}:{{}}/x?hostaddr=127.0.0.1",
    ),
}


def make_certificate(folder, *names):
    key, cert = folder / "key.pem", folder / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", f"/CN={names[0]}", "-keyout", str(key), "-out", str(cert)]
    command += ["-addext", "subjectAltName=" + ",".join(f"DNS:{name}" for name in names)]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    return {
        "right": make_certificate(tmp_path_factory.mktemp("right"), "localhost", FAR),
        "other name": make_certificate(tmp_path_factory.mktemp("other"), "other.example"),
    }


@contextmanager
def showing(cert, key, *, postgres):
    """Show a certificate to each client, and end its connection after that. Yield the port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    ended = threading.Event()

    def serve():
        while not ended.is_set():
            with listening.accept()[0] as connection, suppress(OSError):
                connection.settimeout(10)
                if postgres:
                    connection.recv(8)  # the request for TLS
                    connection.sendall(b"S")
                context.wrap_socket(connection, server_side=True).close()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        thread = threading.Thread(target=serve)
        thread.start()
        yield port
        ended.set()
        socket.create_connection(("127.0.0.1", port)).close()
        thread.join()


def connect_to(kind, port, tmp_path, **values):
    """Return why a connection ended: for its certificate, or because the server ended it."""
    setting, url = URLS[kind]
    usual = {"broker_url": f"filesystem://{tmp_path}/broker", "database_url": "sqlite:///:memory:"}
    values = usual | {setting: url.format(port)} | values
    app = App("tls", Composition([ledger]), _env_file=None, **values)
    with pytest.raises(Exception) as ended:  # noqa: PT012 - a driver's own
        if kind == "postgres":
            with app.runtime.read_only() as session:
                session.connection()
        else:
            with connect(app.connection_for_read, 5) as connection:
                connection.default_channel.client.ping()
    app.runtime.close()
    return str(ended.value)


CASES = {
    "unknown authority": ("right", None, {}, "refused"),
    "TLS_CA": ("right", "right", {}, "accepted"),
    "another name": ("other name", "other name", {}, "refused"),
    "TLS_VERIFY=no": ("right", None, {"tls_verify": "no"}, "accepted"),
}


@pytest.mark.parametrize("kind", URLS)
@pytest.mark.parametrize("case", CASES)
def test_certificate_is_verified(certificates, tmp_path, kind, case):
    shown, trusted, values, expected = CASES[case]
    if trusted:
        values = values | {"tls_ca": str(certificates[trusted][0])}
    with showing(*certificates[shown], postgres=kind == "postgres") as port:
        why = connect_to(kind, port, tmp_path, **values)

    assert ("certificate" in why) is (expected == "refused"), why


@pytest.mark.parametrize(
    ("values", "unverified"),
    [
        ({}, []),
        (
            {"database_url": "postgresql+psycopg://u:p@db/x", "broker_url": "redis://redis:6379/0"},
            [],
        ),
        ({"database_url": "postgresql+psycopg://u:p@127.0.0.1/x"}, []),
        ({"database_url": "postgresql+psycopg://u:p@/x?host=/run"}, []),
        ({"database_url": f"postgresql+psycopg://u:p@{FAR}/x"}, []),
        (
            {"database_url": f"postgresql+psycopg://u:p@{FAR}/x?sslmode=require"},
            [f"database {FAR} (sslmode require)"],
        ),
        (
            {"database_url": f"postgresql+psycopg://u:p@{FAR}/x", "tls_verify": "no"},
            [f"database {FAR} (sslmode prefer)"],
        ),
        ({"broker_url": f"redis://{FAR}/0"}, [f"broker {FAR} (redis:// is not encrypted)"]),
        ({"broker_url": "amqp://u:p@10.0.0.5//"}, ["broker 10.0.0.5 (amqp:// is not encrypted)"]),
        ({"broker_url": f"amqps://u:p@{FAR}//"}, []),
        (
            {"broker_url": f"rediss://{FAR}/0", "tls_verify": "no"},
            [f"broker {FAR} (TLS_VERIFY=no)"],
        ),
    ],
)
def test_what_is_not_verified_is_known(values, unverified):
    assert (
        Settings(_env_file=None, **{"broker_url": "filesystem://a", **values}).find_unverified()
        == unverified
    )


@pytest.mark.parametrize(
    ("content", "why"), [(None, "No such file or directory"), ("no PEM", "holds no certificate")]
)
def test_file_without_authorities_is_refused(tmp_path, content, why):
    path = tmp_path / "ca.pem"
    if content:
        path.write_text(content)
    with pytest.raises(ValidationError, match=f"{path}: "):
        Settings(_env_file=None, tls_ca=str(path))
