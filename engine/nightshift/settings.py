"""Settings that every installation has, read from the environment and from `.env`.

Each field is one line of `.env.example`. A component declares its own settings as another subclass
of `ComponentSettings`; nightshift/component.py refuses two components that claim one name.
"""

import re
import ssl
from collections.abc import Iterator, Sequence
from datetime import timedelta
from io import StringIO
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

from dotenv.parser import parse_stream
from pydantic import (
    AfterValidator,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from nightshift.errors import InvalidInput

PLACEHOLDER = "change-me"
# What a secret is not: somebody's stand-in for it, or something that is soon guessed.
STAND_IN = re.compile(
    r"change.?me|replace.?me|placeholder|your.?(secret|password|token)", re.IGNORECASE
)
# What docker-compose.yml gives to a service that does not need the secret: as if it were not given.
NOT_GIVEN = "not-given-to-this-service"
SHORTEST_SECRET, FEWEST_CHARACTERS = 12, 5

# What the engine is made for and tested with.
BROKERS = ("filesystem", "redis", "rediss", "amqp", "amqps")
ENCRYPTED = ("rediss", "amqps")
DATABASES = (("sqlite", "pysqlite"), ("postgresql", "psycopg"))
LONGEST_DATABASE_NUMBER = 4

Environment = Literal["development", "production"]

# Long enough for any policy, and short enough that a date plus or minus it is a date.
SHORTEST, LONGEST = timedelta(milliseconds=1), timedelta(days=36_500)


def _require_a_usual_duration(value: timedelta) -> timedelta:
    if not SHORTEST <= value <= LONGEST:
        raise ValueError("must be a duration from PT0.001S to P36500D")
    return value


Duration = Annotated[timedelta, AfterValidator(_require_a_usual_duration)]
Days = Annotated[int, Field(le=36_500)]
Count = Annotated[int, Field(le=1_000_000)]

# What no setting holds: control characters, and bytes that are not UTF-8.
UNWANTED = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
LONGEST_VALUE = 10_000
HIGHEST_PORT = 65_535

# A user of the desk. No part holds what a shell, Compose or a list takes for its own.
DESK_USER = re.compile(
    r"(?P<name>[\w.@-]{1,50}):(?P<role>look|act):(?P<hash>scrypt\.\d+\.\d+\.\d+\.[\w-]+\.[\w-]+)",
    re.ASCII,
)

# A URL of files whose path is relative: sqlite:///var/…, filesystem://var/…, folder://var/…
RELATIVE = re.compile(r"(sqlite:///(?!:memory:)|(filesystem|folder)://)[^/?]")

# A project of its own gives these fields other defaults: project/settings.py.
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
PublicUrl = Annotated[
    str,
    Field(
        pattern=r"^https?://[!-~]{1,180}$",  # what a mail's header may hold
        description="where people reach the web server, a host with other letters in its xn-- form;"
        " empty: at WEB_BIND",
    ),
]
WebBind = Annotated[
    str,
    Field(pattern=r"^\S+:\d{1,5}$", description="ADDRESS:PORT that the web server listens at"),
]
DeskBind = Annotated[
    str,
    Field(pattern=r"^\S+:\d{1,5}$", description="ADDRESS:PORT that the desk listens at"),
]
FlowerPort = Annotated[
    int, Field(ge=1, le=HIGHEST_PORT, description="Flower's port on this machine")
]


def find_weakness(secret: str, *, at_least: int = SHORTEST_SECRET) -> str:
    """Return what is wrong with a secret, or an empty string. It is not shown."""
    if STAND_IN.search(secret):
        return "is still a placeholder"
    if len(secret) < at_least:
        return f"is shorter than {at_least} characters"
    few = at_least > 1 and len(set(secret)) < FEWEST_CHARACTERS
    return f"has fewer than {FEWEST_CHARACTERS} different characters" if few else ""


def is_near(host: str | None) -> bool:
    """Return whether a host is this machine, or a container beside this one.

    Such a one is named without a dot, and has no certificate that an authority would sign.
    """
    try:
        return ip_address(host or "127.0.0.1").is_loopback
    except ValueError:
        return host is None or "." not in host or host.startswith("/")


def _follow_web_bind(values: dict[str, Any]) -> str:
    """Return where a server that listens at WEB_BIND is reached on this machine."""
    host, _, port = str(values["web_bind"]).rpartition(":")
    return f"http://{'127.0.0.1' if host in ('0.0.0.0', '[::]') else host}:{port}"  # noqa: S104


class _NamingFiles(PydanticBaseSettingsSource):
    """Reads each setting of which another source has NAME_FILE, the path of a file with its value.

    That is how Docker's and Kubernetes' secrets reach a process. Raises InvalidInput where the
    source has NAME too, and for a file that cannot be read.
    """

    def __init__(self, settings_cls: type[BaseSettings], source: Any) -> None:
        super().__init__(settings_cls)
        self._values = source.env_vars

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Return the value that the file holds, without a line break at its end."""
        name, path = field_name.upper(), self._values.get(f"{field_name}_file")
        if not path:
            return None, field_name, False
        if self._values.get(field_name):
            raise InvalidInput(f"{name} and {name}_FILE are both set: remove one of them")
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise InvalidInput(f"{name}_FILE: {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise InvalidInput(f"{name}_FILE: {path}: is not UTF-8") from error
        return re.sub(r"\r?\n\Z", "", text), field_name, False

    def __call__(self) -> dict[str, Any]:
        """Return the values, by field."""
        fields = self.settings_cls.model_fields.items()
        read = {name: self.get_field_value(field, name)[0] for name, field in fields}
        return {name: value for name, value in read.items() if value}


class ComponentSettings(BaseSettings):
    """What one component reads from the environment.

    Raises pydantic.ValidationError, which says what is wrong with which variable. In production
    that includes a secret that is a placeholder or short. One that is not given is empty there, so
    that a process need not know the secrets of others: `require_secrets` of component.py refuses a
    process that needs it. `foreign_secrets`: another program's, which may be short.
    """

    foreign_secrets: ClassVar[frozenset[str]] = frozenset()

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

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read arguments, then the environment, then `.env`; and files that the last two name."""
        env, file = (_NamingFiles(settings_cls, one) for one in (env_settings, dotenv_settings))
        return init_settings, env, env_settings, file, dotenv_settings

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_unusable_text(cls, value: Any) -> Any:
        if isinstance(value, str):
            if len(value) > LONGEST_VALUE:
                raise ValueError(f"has {len(value)} characters; at most {LONGEST_VALUE} are read")
            if UNWANTED.search(value):
                raise ValueError("holds a control character, or is not UTF-8")
        return value

    @model_validator(mode="after")
    def _refuse_weak_secrets_in_production(self) -> Self:
        if self.environment == "production":
            for name in self.find_missing_secrets():
                self.__dict__[name] = SecretStr("")
            for name, secret in self.secrets().items():
                weakness = self.find_weakness(name, secret) if secret else ""
                if weakness:
                    raise ValueError(f"{name.upper()} {weakness}: set a secret of your own")
        return self

    @classmethod
    def find_weakness(cls, name: str, secret: str) -> str:
        """Return what is wrong with a secret in production, or an empty string."""
        return find_weakness(secret, at_least=1 if name in cls.foreign_secrets else SHORTEST_SECRET)

    def find_missing_secrets(self) -> list[str]:
        """Return the secrets, by field, that were not given and have no usable default."""
        return [
            name
            for name, field in type(self).model_fields.items()
            if isinstance(value := getattr(self, name), SecretStr)
            and PLACEHOLDER in field.default.get_secret_value()
            and (name not in self.model_fields_set or NOT_GIVEN in value.get_secret_value())
        ]

    def secrets(self) -> dict[str, str]:
        """Return the secrets in use, by field. No output of a command may show them."""
        return {
            name: value.get_secret_value() for name, value in self if isinstance(value, SecretStr)
        }

    def relative_paths(self) -> list[str]:
        """Return the names of the settings that name files relative to the working directory."""
        return [
            name.upper()
            for name, value in self
            if (isinstance(value, Path) and not value.is_absolute())
            or (isinstance(value, str) and RELATIVE.match(value))
        ]


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
    tls_ca: str = Field(
        "",
        description="a file with the authorities (PEM) that vouch for database and broker; empty:"
        " the system's",
    )
    tls_verify: Literal["yes", "no"] = Field(
        "yes",
        description="no takes any certificate of database and broker; doctor then warns",
    )
    web_bind: WebBind = "127.0.0.1:8000"
    public_url: PublicUrl = Field(default_factory=_follow_web_bind)
    metrics_token: SecretStr = Field(
        SecretStr(""),
        description="the bearer token that a scrape of /metrics sends; without one it is off",
    )
    flower_basic_auth: SecretStr = Field(
        SecretStr("admin:" + PLACEHOLDER),
        description="NAME:PASSWORD of Flower's login, without a comma",
    )
    flower_port: FlowerPort = 5555
    desk_bind: DeskBind = "127.0.0.1:8001"
    desk_url: Annotated[str, Field(pattern=r"^(https?://[!-~]{1,180})?$")] = Field(
        "",
        description="where people reach the desk; with https:// its cookie is sent over TLS only;"
        " empty: at DESK_BIND",
    )
    desk_users: SecretStr = Field(
        SecretStr(""),
        description="NAME:look:HASH and NAME:act:HASH, with commas between them; `desk hash` makes"
        " a hash",
    )
    desk_secret: SecretStr = Field(
        SecretStr(PLACEHOLDER), description="signs the desk's sessions; another one ends them all"
    )
    desk_keep_actions: Duration = Field(
        timedelta(days=365), description="how long it is kept who did what at the desk"
    )
    log_format: Literal["console", "json"] = Field(
        "console", description="console for people, json for machines"
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="the lowest level that is logged"
    )
    sentry_dsn: SecretStr = Field(
        SecretStr(""),
        description="where errors are sent, without private data; needs the extra sentry",
    )
    worker_concurrency: Annotated[int, Field(ge=1, le=1_000)] | Literal["auto"] = Field(
        "auto",
        description="processes of a worker; auto follows the cgroup's limits of CPU and memory",
    )
    heartbeat_interval: Duration = Field(
        timedelta(seconds=4), description="how often a worker gives a sign of life"
    )
    worker_silent_after: Duration = Field(
        timedelta(seconds=24),
        description="a worker silent this long is dead, and its jobs run elsewhere",
    )
    relay_interval: Duration = Field(
        timedelta(seconds=1),
        description="how often due jobs are looked for; the latest that a due one is sent",
    )
    relay_buffer: Count = Field(
        100,
        ge=1,
        description="messages a queue that the broker holds at most; the rest waits in the ledger",
    )
    resend_after: Duration = Field(
        timedelta(seconds=30),
        description="a message that the broker lost is sent again after this",
    )
    unknown_kind_age: Duration = Field(
        timedelta(days=1),
        description="a job whose kind no worker has known for this long is discarded",
    )
    visibility_timeout: Duration = Field(
        timedelta(seconds=900),
        description="Redis gives an unacknowledged message to another worker after this",
    )
    jobs_keep_succeeded: Duration = Field(
        timedelta(days=7),
        description="how long jobs that succeeded stay in the ledger",
    )
    jobs_keep_failed: Duration = Field(
        timedelta(days=30),
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

    @field_validator("broker_url")
    @classmethod
    def _require_an_address(cls, url: str) -> str:
        scheme = url.partition("://")[0]
        try:
            parts = urlsplit(url)
            number = parts.path.strip("/")
            good = scheme == "filesystem" or (parts.port != 0 and parts.hostname is not None)
        except ValueError:
            good = False
        if good and scheme.startswith("redis"):
            good = number == "" or (number.isdecimal() and len(number) <= LONGEST_DATABASE_NUMBER)
        if not good:
            raise ValueError("is not an address such as redis://HOST:PORT/DB")
        return url

    @field_validator("database_url")
    @classmethod
    def _require_a_known_database(cls, url: str) -> str:
        try:
            address = make_url(url)
            known = (address.get_backend_name(), address.get_dialect().driver) in DATABASES
        except (ArgumentError, ValueError):
            known = False
        if not known:
            raise ValueError("must be sqlite:///PATH or postgresql+psycopg://USER@HOST:PORT/NAME")
        if address.port is not None and not 0 < address.port <= HIGHEST_PORT:
            raise ValueError(f"its port must be 1 to {HIGHEST_PORT}")
        if address.query and address.get_backend_name() == "sqlite":
            raise ValueError("takes no ?options with sqlite")
        return url

    @field_validator("flower_basic_auth")
    @classmethod
    def _require_one_login(cls, login: SecretStr) -> SecretStr:
        name, _, password = login.get_secret_value().partition(":")
        # Flower would take the comma for the end of a login, and what follows for another one.
        if not name or not password or "," in name + password:
            raise ValueError("must be NAME:PASSWORD, without a comma")
        return login

    @field_validator("desk_users")
    @classmethod
    def _require_users_with_hashes(cls, users: SecretStr) -> SecretStr:
        names = []
        for number, user in enumerate(filter(None, users.get_secret_value().split(",")), start=1):
            found = DESK_USER.fullmatch(user.strip())
            if found is None:
                raise ValueError(
                    f"user {number} must be NAME:look:HASH or NAME:act:HASH; `celery -A project"
                    " desk hash` makes a hash"
                )
            names.append(found["name"])
        if len(set(names)) < len(names):
            raise ValueError("names a user twice")
        return users

    @field_validator("web_bind", "desk_bind")
    @classmethod
    def _require_a_port(cls, bind: str) -> str:
        if int(bind.rpartition(":")[2]) > HIGHEST_PORT:
            raise ValueError(f"its port must be 0 to {HIGHEST_PORT}")
        return bind

    @field_validator("tls_ca")
    @classmethod
    def _require_authorities(cls, path: str) -> str:
        if path:
            try:
                ssl.create_default_context(cafile=path)
            except OSError as error:  # ssl.SSLError is one
                why = error.strerror or "holds no certificate"
                raise ValueError(f"{path}: {why}") from error
        return path

    @model_validator(mode="after")
    def _require_the_databases_password(self) -> Self:
        if self.needs_password and not self.postgres_password.get_secret_value():
            raise ValueError("POSTGRES_PASSWORD is missing: set it, or name it in DATABASE_URL")
        return self

    @classmethod
    def find_weakness(cls, name: str, secret: str) -> str:
        """Return what is wrong with a secret in production, or an empty string."""
        if name == "flower_basic_auth":
            secret = secret.partition(":")[2]
        return super().find_weakness(name, secret)

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

    @property
    def authorities(self) -> str:
        """The file of certificate authorities: TLS_CA, or the system's."""
        paths = ssl.get_default_verify_paths()
        return self.tls_ca or paths.cafile or paths.openssl_cafile

    @property
    def database_tls(self) -> dict[str, str]:
        """What libpq is told about TLS beside DATABASE_URL, whose own ?sslmode=… wins.

        Another machine's certificate is verified, name included.
        """
        address = make_url(self.database_url)
        if not self.database_url.startswith("postgresql"):
            return {}
        mode = address.query.get("sslmode")
        told: dict[str, str] = {}
        if mode is None and self.tls_verify == "yes" and not is_near(address.host):
            mode = told["sslmode"] = "verify-full"
        if str(mode).startswith("verify-") and "sslrootcert" not in address.query:
            told["sslrootcert"] = self.authorities
        return told

    def find_unverified(self) -> list[str]:
        """Return the connections to other machines of which nothing proves who answers."""
        found = []
        address = make_url(self.database_url)
        mode = str({**address.query, **self.database_tls}.get("sslmode", "prefer"))
        is_postgres = self.database_url.startswith("postgresql")
        if is_postgres and not is_near(address.host) and not mode.startswith("verify-"):
            found.append(f"database {address.host} (sslmode {mode})")
        broker = urlsplit(self.broker_url)
        encrypted = broker.scheme in ENCRYPTED
        if broker.scheme != "filesystem" and not is_near(broker.hostname):
            if not encrypted:
                found.append(f"broker {broker.hostname} ({broker.scheme}:// is not encrypted)")
            elif self.tls_verify == "no":
                found.append(f"broker {broker.hostname} (TLS_VERIFY=no)")
        return found

    def secrets(self) -> dict[str, str]:
        """Return the secrets in use, by field; the database's password only where it is used."""
        found = super().secrets()
        if not self.needs_password:
            del found["postgres_password"]
        return found


def read_sections(
    sections: Sequence[type[ComponentSettings]], **values: Any
) -> dict[type[ComponentSettings], ComponentSettings]:
    """Read these settings; `values` override the environment's.

    Raises InvalidInput with a line for each setting, and for each line of `.env`, that is wrong.
    """
    file = values.get("_env_file", sections[0].model_config.get("env_file"))
    wrong = [] if file is None else list(_find_unreadable_lines(Path(file)))
    read: dict[type[ComponentSettings], ComponentSettings] = {}
    for section in () if wrong else sections:
        try:
            read[section] = section(**values)
        except ValidationError as error:
            wrong += _describe(section, error)
        except InvalidInput as error:
            wrong.append(str(error))
    if wrong:
        raise InvalidInput("\n".join(dict.fromkeys(wrong)))
    return read


def _find_unreadable_lines(file: Path) -> Iterator[str]:
    """Yield what is wrong in a file like `.env`, of which dotenv itself only skips the lines."""
    if not file.is_file():
        return
    content = file.read_bytes()
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        yield f"{file}, line {line}: is not UTF-8; save the file as UTF-8"
        return
    for binding in parse_stream(StringIO(text)):
        if binding.error or (binding.key is not None and binding.value is None):
            yield f"{file}, line {binding.original.line}: is not a setting; write NAME=VALUE"


def _describe(section: type[ComponentSettings], error: ValidationError) -> list[str]:
    """Return a line for each setting that is wrong, which says what it should be."""
    lines: dict[str, str] = {}
    for one in error.errors(include_url=False, include_input=False):
        if one["type"] == "default_factory_not_called":
            continue  # it follows from another setting, which has a line
        reason = str(one["ctx"]["error"]) if one["type"] == "value_error" else one["msg"]
        if not one["loc"]:  # of several settings, which the reason names
            lines[reason] = reason
            continue
        name = str(one["loc"][0])
        about = section.model_fields[name].description
        reason = reason.removeprefix(f"{name.upper()} ").replace("Input should", "should")
        lines.setdefault(name, f"{name.upper()}: {reason} ({about})")
    return list(lines.values())
