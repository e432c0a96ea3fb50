"""10,000 messages to a server that misbehaves at random, while workers are killed."""

from tests.faults.servers import free_port
from tests.smtp import ServerProcess
from tests.worker.conftest import any_installation
from tests.worker.test_mail import EVERYTHING, settings, weather

MESSAGES = 10_000
KILLS = 30


def test_every_message_is_accounted_for(tmp_path):
    server = ServerProcess(free_port(), tmp_path / "journal", EVERYTHING)
    try:
        with any_installation("servers", tmp_path, **settings(server)) as installation:
            figures = weather(installation, server, MESSAGES, KILLS)
            print(f"\n{MESSAGES} messages, killed {figures.pop('killed')}")
            for name, number in figures.items():
                print(f"  {name:<26}{number:>8}")
    finally:
        server.stop()
