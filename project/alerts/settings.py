"""The alerts' setting."""

from email_validator import EmailNotValidError, validate_email
from nightshift.settings import ComponentSettings
from pydantic import Field, SecretStr, field_validator


class AlertSettings(ComponentSettings):
    """Who is told when a probe begins to fail, or a job fails for good."""

    foreign_secrets = frozenset({"alerts_to"})

    alerts_to: SecretStr = Field(
        SecretStr(""),
        description="mailto:ADDRESS, or an https:// address that takes JSON; empty: no alerts",
    )

    @field_validator("alerts_to")
    @classmethod
    def _require_an_address(cls, value: SecretStr) -> SecretStr:
        given = value.get_secret_value()
        scheme, _, rest = given.partition(":")
        if scheme == "mailto":
            try:
                validate_email(rest, check_deliverability=False)
            except EmailNotValidError as error:
                raise ValueError(f"must be mailto:ADDRESS: {error}") from error
        elif given and not (scheme in ("http", "https") and len(rest) > len("//")):
            raise ValueError("must be mailto:ADDRESS or https://…")
        return value
