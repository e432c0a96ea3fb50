"""The rules of the mail's settings."""

import pytest
from pydantic import ValidationError

from project.mail.settings import MailSettings
from project.settings import NAME
from services.mail.transport import FolderTransport, open_transport

FORMS = "MAIL_URL must be folder://PATH, smtp://USER@HOST:PORT or smtps://USER@HOST:PORT"


def make_settings(**values):
    return MailSettings(_env_file=None, **values)


def test_defaults_need_no_server():
    settings = make_settings()
    assert isinstance(open_transport(settings.mail_url), FolderTransport)
    assert settings.mail_sender == f"noreply@{NAME}.example"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mail_url": "memory://"}, FORMS),
        ({"mail_url": "folder://"}, FORMS),
        ({"mail_url": "smtp://"}, FORMS),
        ({"mail_url": "smtp://school@mail.example"}, "MAIL_URL names a user"),
        ({"mail_url": "smtp://mail.example?tls=maybe"}, "MAIL_URL takes ?tls=none"),
        ({"mail_from": "nobody"}, "MAIL_FROM must be NAME <ADDRESS>"),
        ({"mail_from": "Schule <jörg@school.example>"}, "MAIL_FROM must be NAME <ADDRESS>"),
        ({"mail_concurrency": 0}, "greater than or equal to 1"),
        ({"mail_rate": -1}, "greater than or equal to 0"),
        ({"mail_retry_after": "PT0S"}, "from PT0.001S"),
        ({"mail_keep_sent": "PT0S"}, "from PT0.001S"),
        ({"mail_keep_failed": "PT0S"}, "from PT0.001S"),
        ({"bounce_address": "bounces@school.example"}, "BOUNCE_ADDRESS needs BOUNCE_SECRET"),
        ({"bounce_address": "nobody", "bounce_secret": "a" * 40}, "BOUNCE_ADDRESS: "),
        (
            {"bounce_address": "b" * 25 + "@a.example", "bounce_secret": "a" * 40},
            "BOUNCE_ADDRESS has more than 24 characters",
        ),
        ({"bounce_mailbox": "pop://me@a.example"}, "BOUNCE_MAILBOX must be imaps://"),
    ],
)
def test_wrong_value_is_refused_with_what_is_wrong(values, message):
    with pytest.raises(ValidationError) as raised:
        make_settings(**values)
    (error,) = raised.value.errors()
    assert message in error["msg"]


def test_password_is_not_shown():
    settings = make_settings(mail_url="smtp://school@mail.example", mail_password="hush")
    assert "hush" not in repr(settings)


def test_sender_is_the_address_in_mail_from():
    settings = make_settings(mail_from="Gymnasium Muster <noreply@school.example>")
    assert settings.mail_sender == "noreply@school.example"
