"""What may differ between two installations, read from the environment and from `.env`. Each field is one line of `.env.example`."""

from datetime import timedelta
from email.utils import parseaddr
from pathlib import Path
from typing import Literal, Self
from zoneinfo import ZoneInfo

from email_validator import EmailNotValidError, validate_email
from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.errors import InvalidInput
from services.mail.transport import open_transport

PLACEHOLDER = "change-me"


class Settings(BaseSettings):
    """Everything that the environment decides. Raises pydantic.ValidationError that names the variable and what is wrong with it."""

    model_config = SettingsConfigDict(
        env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True, hide_input_in_errors=True
    )

    environment: Literal["development", "production"] = Field("development", description="production refuses placeholder secrets")
    database_url: str = Field(
        "sqlite:///var/nightshift.db", description="sqlite:///PATH or postgresql+psycopg://USER@HOST:PORT/NAME"
    )
    postgres_password: SecretStr = Field(
        SecretStr(PLACEHOLDER), description="the database's password, where DATABASE_URL carries none"
    )
    broker_url: str = Field(
        "filesystem://var/broker", description="filesystem://PATH, redis://HOST:PORT/DB or amqp://USER:PASSWORD@HOST//"
    )
    feed_store: Path = Field(Path("var/feeds"), description="the folder that the calendar files are kept in")
    school_name: str = Field("Nightshift", description="how the school is called in its calendars")
    school_domain: str = Field(
        "nightshift.example", description="makes event UIDs unique; never change it once calendars are subscribed to"
    )
    school_timezone: ZoneInfo = Field(ZoneInfo("Europe/Zurich"), description="the IANA zone of the school's wall clocks")
    feed_days_past: int = Field(31, ge=0, description="how many days an event stays in a feed after its end")
    feed_days_ahead: int = Field(465, ge=1, description="how many days before its start an event enters a feed")
    mail_url: str = Field(
        "folder://var/mail",
        description="folder://PATH (.eml files), smtp://USER@HOST:PORT (STARTTLS; ?tls=none without) or smtps://…",
    )
    mail_password: SecretStr = Field(SecretStr(""), description="the mail server's password, where MAIL_URL names a user")
    mail_from: str = Field("Nightshift <noreply@nightshift.example>", description="NAME <ADDRESS> that mail comes from")
    mail_concurrency: int = Field(2, ge=1, description="connections to the mail server at a time, over all workers")
    mail_rate: int = Field(0, ge=0, description="messages a minute, over all workers; 0 sets no limit")
    mail_retry_after: timedelta = Field(
        timedelta(minutes=1), gt=timedelta(), description="wait before a message is tried again; doubled each time, up to an hour"
    )
    mail_keep_sent: timedelta = Field(timedelta(days=30), gt=timedelta(), description="how long sent mail stays in the outbox")
    mail_keep_failed: timedelta = Field(
        timedelta(days=90), gt=timedelta(), description="how long mail that failed, or ended otherwise unsent, stays in the outbox"
    )
    sync_every: timedelta = Field(timedelta(hours=6), gt=timedelta(), description="how often all feeds are brought up to date")
    public_url: str = Field(
        "http://127.0.0.1:8000",
        pattern=r"^https?://[!-~]{1,180}$",  # what a header may hold
        description="where people reach the feed server: calendars and links in mails; a host with other letters in its xn-- form",
    )
    link_secret: SecretStr = Field(
        SecretStr(PLACEHOLDER),
        description="signs the links in mails that turn a kind of mail off; another one makes all of them void",
    )
    web_bind: str = Field("127.0.0.1:8000", pattern=r"^\S+:\d{1,5}$", description="ADDRESS:PORT that the feed server listens at")
    metrics_token: SecretStr = Field(
        SecretStr(""), description="what a scrape of /metrics carries as its bearer token; without one the page is off"
    )
    flower_basic_auth: SecretStr = Field(SecretStr("admin:" + PLACEHOLDER), description="NAME:PASSWORD of Flower's login")
    log_format: Literal["console", "json"] = Field("console", description="console for people, json for machines")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="the lowest level that is logged")
    worker_concurrency: int | Literal["auto"] = Field(
        "auto", description="processes of a worker; auto follows the cgroup's CPU limit"
    )
    heartbeat_interval: timedelta = Field(
        timedelta(seconds=4), gt=timedelta(), description="how often a worker gives a sign of life"
    )
    worker_silent_after: timedelta = Field(
        timedelta(seconds=24), gt=timedelta(), description="a worker silent this long is dead, and its jobs run elsewhere"
    )
    relay_interval: timedelta = Field(
        timedelta(seconds=1), gt=timedelta(), description="how often due jobs are looked for; the latest that a due one is sent"
    )
    relay_buffer: int = Field(100, ge=1, description="messages a queue that the broker holds at most; the rest waits in the ledger")
    resend_after: timedelta = Field(
        timedelta(seconds=30), gt=timedelta(), description="a message that the broker lost is sent again after this"
    )
    visibility_timeout: timedelta = Field(
        timedelta(seconds=900), gt=timedelta(), description="Redis gives an unacknowledged message to another worker after this"
    )
    jobs_keep_succeeded: timedelta = Field(
        timedelta(days=7), gt=timedelta(), description="how long jobs that succeeded stay in the ledger"
    )
    jobs_keep_failed: timedelta = Field(
        timedelta(days=30),
        gt=timedelta(),
        description="how long jobs that failed, or were discarded or cancelled, stay in the ledger",
    )

    @field_validator("feed_store")
    @classmethod
    def _feed_store_is_a_folder(cls, path: Path) -> Path:
        if path.exists() and not path.is_dir():
            raise ValueError(f"{path} is a file; name a folder")
        return path

    @model_validator(mode="after")
    def _times_fit(self) -> Self:
        if self.worker_silent_after < 3 * self.heartbeat_interval:
            raise ValueError("WORKER_SILENT_AFTER must be at least three times HEARTBEAT_INTERVAL, or living workers look dead")
        return self

    @model_validator(mode="after")
    def _mail_can_go_out(self) -> Self:
        try:
            open_transport(self.mail_url, password=self.mail_password.get_secret_value())
        except InvalidInput as error:
            raise ValueError(str(error)) from error
        try:
            validate_email(self.mail_sender, check_deliverability=False, allow_smtputf8=False)
        except EmailNotValidError as error:
            raise ValueError(f"MAIL_FROM must be NAME <ADDRESS>: {error}") from error
        return self

    @model_validator(mode="after")
    def _no_placeholder_in_production(self) -> Self:
        if self.environment == "production":
            for name in ("postgres_password", "link_secret", "flower_basic_auth"):
                secret: SecretStr = getattr(self, name)
                if PLACEHOLDER in secret.get_secret_value() and (name != "postgres_password" or self.needs_password):
                    raise ValueError(f"{name.upper()} is still the placeholder {PLACEHOLDER!r}: set a secret of your own")
        return self

    @property
    def mail_sender(self) -> str:
        """Return the address in MAIL_FROM."""
        return parseaddr(self.mail_from)[1]

    @property
    def needs_password(self) -> bool:
        """Say whether POSTGRES_PASSWORD is used: a server's address that carries no password of its own."""
        address, _, _ = self.database_url.partition("@")
        return self.database_url.startswith("postgresql") and ":" not in address.partition("://")[2]
