"""Mask secrets in what a person is shown of jobs: arguments, results, errors and log lines."""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from nightshift.runtime import Runtime
from nightshift.settings import PLACEHOLDER

MASK = "***"

# A link may be a secret: anyone who has it can do what it is for. In the path or the query, a part
# as long as a random token is masked; the host is not, and neither is text outside of links.
LINK = re.compile(r"(?<=://)(?P<host>[^\s/?#]+)(?P<rest>[/?][^\s\"'<>]+)")
TOKEN = re.compile(r"(?<=[/=])[\w.-]*[\w-]{22,}")

# The names of fields whose values nobody needs to see.
SECRET_NAME = re.compile(r"passw|secret|token|api_?key|credential|authorization", re.IGNORECASE)


def mask_links(text: str) -> str:
    """Return a text without the secrets in its links."""
    return LINK.sub(lambda link: link["host"] + TOKEN.sub("…", link["rest"]), text)


class Mask:
    """What masks the secrets of an installation. It reads the settings once."""

    def __init__(self, runtime: Runtime) -> None:
        urls = (runtime.settings.database_url, runtime.settings.broker_url)
        # A driver's message may hold a password, quoted as in a URL or not.
        given = [urlsplit(url).password or "" for url in urls]
        for section in runtime.sections:
            for secret in section.secrets().values():
                given += [secret, secret.partition(":")[2]]
        found = {*given, *map(unquote, given)} - {"", PLACEHOLDER}
        self._secrets = sorted(found, key=len, reverse=True)

    def settings(self, text: str) -> str:
        """Return a text without the secrets of the settings."""
        for secret in self._secrets:
            text = text.replace(secret, MASK)
        return text

    def text(self, text: str) -> str:
        """Return a text without the secrets of the settings, and those in its links."""
        return mask_links(self.settings(text))

    def value(self, value: Any) -> Any:
        """Return a JSON value whose texts are masked, and the values of secret names altogether."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {
                self.text(str(name)): MASK
                if SECRET_NAME.search(str(name)) and isinstance(one, str) and one
                else self.value(one)
                for name, one in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.value(one) for one in value]
        return value
