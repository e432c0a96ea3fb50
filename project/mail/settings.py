"""The mail's settings."""

from datetime import timedelta
from email.utils import parseaddr
from typing import Self

from email_validator import EmailNotValidError, validate_email
from nightshift.errors import InvalidInput
from nightshift.settings import ComponentSettings, Count, Duration
from pydantic import Field, SecretStr, model_validator

from project.settings import NAME
from services.mail.mailbox import open_mailbox
from services.mail.transport import open_transport

# RFC 5321, 4.5.3.1.1 allows 64 characters; the number and the signature need up to 40.
LONGEST_LOCAL_PART = 24


class MailSettings(ComponentSettings):
    """Where mail is sent, its sender, and how long it is kept."""

    foreign_secrets = frozenset({"mail_password", "bounce_mailbox_password"})

    mail_url: str = Field(
        "folder://var/mail",
        description="folder://PATH (.eml files), smtp://USER@HOST:PORT (STARTTLS; ?tls=none"
        " without) or smtps://…",
    )
    mail_password: SecretStr = Field(
        SecretStr(""), description="the mail server's password, where MAIL_URL names a user"
    )
    mail_from: str = Field(
        f"{NAME.capitalize()} <noreply@{NAME}.example>",
        description="NAME <ADDRESS> that mail comes from",
    )
    mail_concurrency: Count = Field(
        2, ge=1, description="connections to the mail server at a time, over all workers"
    )
    mail_rate: Count = Field(
        0, ge=0, description="messages a minute, over all workers; 0 sets no limit"
    )
    mail_retry_after: Duration = Field(
        timedelta(minutes=1),
        description="wait before a message is tried again; doubled each time, up to an hour",
    )
    mail_keep_sent: Duration = Field(
        timedelta(days=30), description="how long sent mail stays in the outbox"
    )
    mail_keep_failed: Duration = Field(
        timedelta(days=90),
        description="how long mail that failed, or ended otherwise unsent, stays in the outbox",
    )

    bounce_address: str = Field(
        "",
        description="where undelivered mail goes back to: NAME@DOMAIN, whose server also takes"
        " NAME+ANYTHING@DOMAIN; empty: the address of MAIL_FROM",
    )
    bounce_secret: SecretStr = Field(
        SecretStr(""),
        description="signs the addresses that undelivered mail goes back to; who posts a report to"
        " /mail/bounces sends it as a bearer token. Empty: there is neither",
    )
    bounce_mailbox: str = Field(
        "", description="imaps://USER@HOST/FOLDER in which reports arrive; empty: none is read"
    )
    bounce_mailbox_password: SecretStr = Field(
        SecretStr(""), description="the password of BOUNCE_MAILBOX"
    )

    @model_validator(mode="after")
    def _require_a_way_back(self) -> Self:
        if self.bounce_address:
            try:
                validate_email(
                    self.bounce_address, check_deliverability=False, allow_smtputf8=False
                )
            except EmailNotValidError as error:
                raise ValueError(f"BOUNCE_ADDRESS: {error}") from error
            if len(self.bounce_address.partition("@")[0]) > LONGEST_LOCAL_PART:
                raise ValueError(
                    f"BOUNCE_ADDRESS has more than {LONGEST_LOCAL_PART} characters before the @:"
                    " there is no room for a message's number"
                )
            if not self.bounce_secret.get_secret_value():
                raise ValueError("BOUNCE_ADDRESS needs BOUNCE_SECRET")
        if self.bounce_mailbox:
            password = self.bounce_mailbox_password.get_secret_value()
            try:
                open_mailbox(self.bounce_mailbox, password=password)
            except InvalidInput as error:
                raise ValueError(str(error)) from error
        return self

    @model_validator(mode="after")
    def _require_a_transport_and_a_sender(self) -> Self:
        try:
            open_transport(self.mail_url, password=self.mail_password.get_secret_value())
        except InvalidInput as error:
            raise ValueError(str(error)) from error
        try:
            validate_email(self.mail_sender, check_deliverability=False, allow_smtputf8=False)
        except EmailNotValidError as error:
            raise ValueError(f"MAIL_FROM must be NAME <ADDRESS>: {error}") from error
        return self

    @property
    def mail_sender(self) -> str:
        """Return the address in MAIL_FROM."""
        return parseaddr(self.mail_from)[1]
