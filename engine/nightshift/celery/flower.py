"""Flower with the login of the settings, on this machine only unless it is told otherwise.

Flower itself reads FLOWER_BASIC_AUTH from the environment and not from `.env`, is open where there
is none, takes a comma for the end of a login, and listens everywhere. Its /metrics need no login.
"""

import sys
from importlib import import_module
from typing import Any

from nightshift.settings import Settings, find_weakness

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def install(settings: Settings) -> None:
    """Let `celery flower`, where Flower is installed, start as the module's docstring says.

    Celery imports all commands before the app, and Flower reads its options after that: what the
    environment or the command line says wins over what is set here.
    """
    command: Any = sys.modules.get("flower.command")
    if command is None:
        return
    options = command.options
    options.basic_auth = [settings.flower_basic_auth.get_secret_value()]
    options.address = LOOPBACK[0]
    options.port = settings.flower_port
    command.Flower = _make_guarded(settings)


def _make_guarded(settings: Settings) -> type[Any]:
    web: Any = import_module("tornado.web")
    flower: Any = import_module("flower.app")
    metrics: Any = import_module("flower.views.monitor").Metrics
    metrics.get = web.authenticated(metrics.get)

    class Guarded(flower.Flower):
        def __init__(self, options: Any, **others: Any) -> None:
            if reason := find_refusal(settings, options):
                sys.exit(f"Flower does not start: {reason}")
            super().__init__(options=options, **others)

    return Guarded


def find_refusal(settings: Settings, options: Any) -> str:
    """Return why Flower would be open with these options, or an empty string."""
    if options.auth:
        return ""  # another service asks for the login
    logins = options.basic_auth or [""]
    for login in logins:
        name, _, password = login.partition(":")
        if not name or not password:
            return "its login must be NAME:PASSWORD: set FLOWER_BASIC_AUTH"
        if settings.environment == "production" and (
            weakness := settings.find_weakness("flower_basic_auth", login)
        ):
            return f"the password of its login {weakness}: set FLOWER_BASIC_AUTH"
    if not options.unix_socket and not options.address:
        return "an empty address means all networks: name one, such as --address=127.0.0.1"
    if options.address not in LOOPBACK and any(find_weakness(one, at_least=1) for one in logins):
        return f"at {options.address} it needs a login of its own: set FLOWER_BASIC_AUTH"
    return ""
