"""Write the pages of docs/ that are made from the code: `python -m project.reference`.

A test holds them equal to the settings and commands of the components.
"""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import click
from nightshift.component import Composition, load
from nightshift.settings import ComponentSettings
from pydantic import SecretStr, TypeAdapter
from pydantic.fields import FieldInfo

from project.app import COMPONENTS

DOCS = Path(__file__).parent.parent / "docs"
WIDTH = 88

SETTINGS_HEAD = """\
# Settings

A setting is an environment variable, or a line of `.env` in the project's folder; the environment
wins. `.env.example` has all of them. Durations are ISO 8601 (`PT90S`, `PT15M`, `PT6H`) or
`H:MM:SS`. Each setting may also come from a file: `LINK_SECRET_FILE=/run/secrets/link_secret` names
the file, whose content is the value (a line break at its end is left out). A process refuses an
invalid value at its start, and names the setting.

With `ENVIRONMENT=production` a secret must have 12 characters and be no placeholder. A process need
not be given the secrets that it does not use: a worker and the web server refuse to start without
theirs, Flower without its login.

This page is made from the code by `make docs`.

## All components
"""

COMMANDS_HEAD = """\
# Commands

`celery -A project worker`, `beat`, `flower` and Celery's other commands work as in any project:
[Celery's documentation](https://docs.celeryq.dev) has them. The components add these. `make help`
lists what `make` does.

This page is made from the code by `make docs`."""


def render_settings(composition: Composition) -> str:
    """Return the page of all settings, by component."""
    lines = [SETTINGS_HEAD, *_rows(ComponentSettings, set())]
    for component in composition.components:
        section = component.settings
        if section is not None:
            lines += ["", f"## {component.name}", "", section.__doc__ or "", ""]
            lines += _rows(section, set(ComponentSettings.model_fields))
    return "\n".join(lines) + "\n"


def _rows(section: type[ComponentSettings], without: set[str]) -> Iterator[str]:
    yield "| Setting | Default | |"
    yield "|---|---|---|"
    for name, field in section.model_fields.items():
        if name not in without:
            default = _show_default(field)
            text = (field.description or "").replace("|", "\\|").replace("<", "&lt;")
            yield f"| `{name.upper()}` | {f'`{default}`' if default else 'empty'} | {text} |"


def _show_default(field: FieldInfo) -> str:
    default = "" if field.default_factory else field.default
    if isinstance(default, SecretStr):
        return default.get_secret_value()
    if isinstance(default, timedelta):
        return str(TypeAdapter(timedelta).dump_python(default, mode="json"))
    return str(default)


def render_commands(composition: Composition) -> str:
    """Return the page of the components' commands, as `--help` shows them."""
    lines = [COMMANDS_HEAD]
    for component in composition.components:
        for name, path in component.commands.items():
            lines += ["", f"## {name}"]
            for words, command in _walk((name,), load(path)):
                lines += ["", "```text", *_help(words, command).splitlines(), "```"]
    return "\n".join(lines) + "\n"


def _walk(
    words: tuple[str, ...], command: click.Command
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield words, command
    if isinstance(command, click.Group):
        for name in sorted(command.commands):
            yield from _walk((*words, name), command.commands[name])


def _help(words: tuple[str, ...], command: click.Command) -> str:
    name = f"celery -A project {' '.join(words)}"
    context = click.Context(command, info_name=name, terminal_width=WIDTH, max_content_width=WIDTH)
    return "\n".join(line.rstrip() for line in command.get_help(context).splitlines())


PAGES = {"settings.md": render_settings, "commands.md": render_commands}


def main() -> None:
    """Write the pages."""
    composition = Composition(COMPONENTS)
    for name, render in PAGES.items():
        (DOCS / name).write_text(render(composition), encoding="utf-8")


if __name__ == "__main__":
    main()
