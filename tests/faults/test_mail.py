"""10,000 messages to a server that misbehaves at random, while workers are killed."""

from fault_servers import free_port

from tests.installing import install
from tests.mail_accounting import EVERYTHING, mail_settings, send_while_killing
from tests.smtp import ServerProcess

MESSAGES = 10_000
KILLS = 30


def test_every_message_is_accounted_for(tmp_path):
    server = ServerProcess(free_port(), tmp_path / "journal", EVERYTHING)
    try:
        with install("servers", tmp_path, **mail_settings(server)) as installation:
            figures = send_while_killing(installation, server, MESSAGES, KILLS)
            print(f"\n{MESSAGES} messages, killed {figures.pop('killed')}")
            for name, number in figures.items():
                print(f"  {name:<26}{number:>8}")
    finally:
        server.stop()
