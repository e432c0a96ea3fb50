"""Keys on real workers: they arrive, they work, and they are nowhere but in the mail."""

import re
from email import message_from_bytes
from email.policy import default

import pytest
from sqlalchemy import select

from services.database import Base
from services.mail import accounts
from services.school import users
from services.school.models import KeyPurpose
from tests.worker.conftest import any_installation

pytestmark = pytest.mark.worker

ANNA = {"email": "anna@school.example", "first_name": "Anna", "last_name": "Müller", "role": "teacher", "locale": "en"}
# Where a person's address belongs.
WITH_ADDRESSES = ("user_account", "user_key", "mail")


@pytest.mark.parametrize("kind", ["embedded", "servers"])
def test_keys_and_addresses_are_in_the_mail_only(kind, tmp_path):
    folder = tmp_path / "mail"
    quick = {"heartbeat_interval": "PT1S", "worker_silent_after": "PT5S", "relay_interval": "PT0.2S"}
    with any_installation(kind, tmp_path, mail_url=f"folder://{folder}", log_level="DEBUG", **quick) as installation:
        boot = installation.boot
        with boot.unit_of_work() as session:
            user_id = users.register(session, users.details(ANNA), now=boot.now())
            for purpose in KeyPurpose:
                users.request_key(session, ANNA["email"], purpose, now=boot.now())
        installation.worker()
        installation.until(lambda: len(list(folder.glob("*.eml"))) == 3)
        installation.until(lambda: installation.open_jobs() == 0)
        read = [message_from_bytes(file.read_bytes(), policy=default) for file in folder.glob("*.eml")]
        texts = "\n".join(mail.get_body(("plain",)).get_content() for mail in read)
        keys = {path: re.search(rf"/u/{path}\?key=(\S+)", texts)[1] for path in ("verify", "reset")}
        with boot.read_only() as session:
            tables = {table.name: repr(session.execute(select(table)).all()) for table in Base.metadata.tables.values()}
        # What the broker wrote down, and the logs. A database keeps what was erased until it needs the room.
        others = [path for path in tmp_path.rglob("*") if path.is_file() and not path.name.startswith("nightshift.db")]
        written = {path.name: path.read_text(errors="replace") for path in others if folder not in path.parents}

        assert len(written) >= 1
        for name, content in {**tables, **written}.items():
            assert [key for key in keys.values() if key in content] == [], name
            assert name in WITH_ADDRESSES or ANNA["email"] not in content, name
        assert {mail["To"] for mail in read} == {"Anna Müller <anna@school.example>"}
        with boot.unit_of_work() as session:
            redeemed = [
                accounts.redeem(session, keys["verify"], KeyPurpose.VERIFY_ADDRESS, now=boot.now()),
                accounts.redeem(session, keys["reset"], KeyPurpose.RESET_PASSWORD, now=boot.now()),
            ]
        assert redeemed == [user_id, user_id]
