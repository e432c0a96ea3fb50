"""Settings that every installation has, read from the environment and from `.env`.

Each field is one line of `.env.example`. A component declares its own settings as another subclass
of `ComponentSettings`; nightshift/component.py refuses two components that claim one name.
"""

from datetime import timedelta
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

PLACEHOLDER = "change-me"

# What the engine is made for and tested with.
BROKERS = ("filesystem", "redis", "rediss", "amqp", "amqps")

Environment = Literal["development", "production"]

# A project that has a name of its own gives these two fields other defaults: project/settings.py.
ProjectName = Annotated[
    str,
    Field(
        # What a host's name, a container's, a database's and a Prometheus metric's may be.
        pattern=r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$",
        max_length=30,
        description="this installation's name: metrics and keys in Redis begin with it",
    ),
]
DatabaseUrl = Annotated[
    str, Field(description="sqlite:///PATH or postgresql+psycopg://USER@HOST:PORT/NAME")
]


class ComponentSettings(BaseSettings):
    """What one component reads from the environment.

    Raises pydantic.ValidationError, which says what is wrong with which variable. In production
    that includes a secret that is still the placeholder.
    """

    model_config = SettingsConfigDict(
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
    )

    environment: Environment = Field(
        "development", description="production refuses placeholder secrets"
    )

    @model_validator(mode="after")
    def _refuse_placeholders_in_production(self) -> Self:
        if self.environment == "production":
            for name, secret in self.secrets().items():
                if PLACEHOLDER in secret:
                    raise ValueError(
                        f"{name.upper()} is still the placeholder {PLACEHOLDER!r}:"
                        " set a secret of your own"
                    )
        return self

    def secrets(self) -> dict[str, str]:
        """Return the secrets in use, by field. No output of a command may show them."""
        return {
            name: value.get_secret_value() for name, value in self if isinstance(value, SecretStr)
        }


class Settings(ComponentSettings):
    """The engine's own settings: database, broker, web server, logs, workers and ledger."""

    project_name: ProjectName = "nightshift"
    database_url: DatabaseUrl = "sqlite:///var/nightshift.db"
    postgres_password: SecretStr = Field(
        SecretStr(PLACEHOLDER),
        description="the database's password, where DATABASE_URL carries none",
    )
    database_pooler: Literal["none", "transaction"] = Field(
        "none",
        description="transaction where DATABASE_URL leads to PgBouncer",
    )
    broker_url: str = Field(
        "filesystem://var/broker",
        description="filesystem://PATH, redis://HOST:PORT/DB or amqp://USER:PASSWORD@HOST//",
    )
    public_url: str = Field(
        "http://127.0.0.1:8000",
        pattern=r"^https?://[!-~]{1,180}$",  # what a mail's header may hold
        description="where people reach the web server; a host with other letters in its xn-- form",
    )
    web_bind: str = Field(
        "127.0.0.1:8000",
        pattern=r"^\S+:\d{1,5}$",
        description="ADDRESS:PORT that the web server listens at",
    )
    metrics_token: SecretStr = Field(
        SecretStr(""),
        description="the bearer token that a scrape of /metrics sends; without one it is off",
    )
    flower_basic_auth: SecretStr = Field(
        SecretStr("admin:" + PLACEHOLDER), description="NAME:PASSWORD of Flower's login"
    )
    log_format: Literal["console", "json"] = Field(
        "console", description="console for people, json for machines"
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="the lowest level that is logged"
    )
    worker_concurrency: int | Literal["auto"] = Field(
        "auto", description="processes of a worker; auto follows the cgroup's CPU limit"
    )
    heartbeat_interval: timedelta = Field(
        timedelta(seconds=4), gt=timedelta(), description="how often a worker gives a sign of life"
    )
    worker_silent_after: timedelta = Field(
        timedelta(seconds=24),
        gt=timedelta(),
        description="a worker silent this long is dead, and its jobs run elsewhere",
    )
    relay_interval: timedelta = Field(
        timedelta(seconds=1),
        gt=timedelta(),
        description="how often due jobs are looked for; the latest that a due one is sent",
    )
    relay_buffer: int = Field(
        100,
        ge=1,
        description="messages a queue that the broker holds at most; the rest waits in the ledger",
    )
    resend_after: timedelta = Field(
        timedelta(seconds=30),
        gt=timedelta(),
        description="a message that the broker lost is sent again after this",
    )
    unknown_kind_age: timedelta = Field(
        timedelta(days=1),
        gt=timedelta(),
        description="a job whose kind no worker has known for this long is discarded",
    )
    visibility_timeout: timedelta = Field(
        timedelta(seconds=900),
        gt=timedelta(),
        description="Redis gives an unacknowledged message to another worker after this",
    )
    jobs_keep_succeeded: timedelta = Field(
        timedelta(days=7),
        gt=timedelta(),
        description="how long jobs that succeeded stay in the ledger",
    )
    jobs_keep_failed: timedelta = Field(
        timedelta(days=30),
        gt=timedelta(),
        description="how long jobs that failed, or were discarded or cancelled, stay in the ledger",
    )

    @field_validator("broker_url")
    @classmethod
    def _refuse_unknown_brokers(cls, url: str) -> str:
        scheme, separator, _ = url.partition("://")
        if scheme not in BROKERS or not separator:
            known = ", ".join(f"{scheme}://" for scheme in BROKERS)
            raise ValueError(f"BROKER_URL must begin with one of: {known}")
        return url

    @model_validator(mode="after")
    def _require_time_for_heartbeats(self) -> Self:
        if self.worker_silent_after < 3 * self.heartbeat_interval:
            raise ValueError(
                "WORKER_SILENT_AFTER must be at least three times HEARTBEAT_INTERVAL,"
                " or living workers look dead"
            )
        return self

    @property
    def needs_password(self) -> bool:
        """Whether POSTGRES_PASSWORD is used: DATABASE_URL is Postgres's and has no password."""
        address, _, _ = self.database_url.partition("@")
        is_postgres = self.database_url.startswith("postgresql")
        return is_postgres and ":" not in address.partition("://")[2]

    def secrets(self) -> dict[str, str]:
        """Return the secrets in use, by field; the database's password only where it is used."""
        found = super().secrets()
        if not self.needs_password:
            del found["postgres_password"]
        return found
