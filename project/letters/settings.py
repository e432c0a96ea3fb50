"""The letters' settings."""

from nightshift.settings import PLACEHOLDER, ComponentSettings
from pydantic import Field, SecretStr


class LetterSettings(ComponentSettings):
    """The secret that signs the links in letters."""

    link_secret: SecretStr = Field(
        SecretStr(PLACEHOLDER),
        description="signs the links in mails that turn a kind of mail off; another one makes all"
        " of them void",
    )
