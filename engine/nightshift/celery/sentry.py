"""Errors to Sentry, or to a server that speaks like it, where SENTRY_DSN names one.

Only what the log has as an error is sent: an exception's type, the places in the code, the line
without its arguments, and the job's task and id. An exception's message stays here, because it may
hold private data; so do variables, requests and this machine's environment.
"""

from importlib import import_module
from typing import Any

from nightshift.errors import InvalidInput
from nightshift.settings import Settings

SENT = ("task", "job")


def start(settings: Settings) -> None:
    """Send this process's errors from now on. Raises InvalidInput without the extra `sentry`."""
    dsn = settings.sentry_dsn.get_secret_value()
    if not dsn:
        return
    try:
        sdk: Any = import_module("sentry_sdk")
        logs: Any = import_module("sentry_sdk.integrations.logging")
    except ImportError as error:
        raise InvalidInput(
            'SENTRY_DSN: needs the extra: pip install "celery-nightshift[sentry]"'
        ) from error
    try:
        sdk.init(
            dsn,
            environment=settings.environment,
            server_name=settings.project_name,
            default_integrations=False,
            integrations=[logs.LoggingIntegration(level=None)],
            before_send=strip,
            max_breadcrumbs=0,
            include_local_variables=False,
            shutdown_timeout=2,
        )
    except ValueError as error:  # its own error for a DSN that is none
        raise InvalidInput(f"SENTRY_DSN: {error}") from error


def strip(event: dict[str, Any], _hint: Any = None) -> dict[str, Any]:
    """Return an event without what may be private."""
    for one in event.get("exception", {}).get("values", []):
        one["value"] = ""
    line = event.get("logentry", {}).get("message", "")
    event["logentry"] = {"message": line}
    kept = {name: value for name, value in event.get("extra", {}).items() if name in SENT}
    event["extra"], event["tags"] = kept, kept
    return event
