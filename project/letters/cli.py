"""`celery -A project letters …`: show what the school's mails look like."""

import webbrowser
from email.policy import SMTP
from pathlib import Path

import click
from nightshift.cli.boundary import FilePath
from nightshift.cli.output import pass_runtime
from nightshift.runtime import Runtime

from services.letters.examples import EXAMPLES, make_example
from services.letters.rules import LetterRules
from services.translation import Locale


@click.group()
def letters() -> None:
    """Show what the school's mails look like."""


@letters.command()
@click.argument("kind", type=click.Choice(list(EXAMPLES)))
@click.option(
    "--locale",
    type=click.Choice([locale.value for locale in Locale]),
    default="en",
    show_default=True,
)
@click.option(
    "--out",
    type=FilePath(file_okay=False),
    default="var/preview",
    show_default=True,
)
@click.option("--open/--no-open", "opening", default=True, help="Open the page in a browser.")
@pass_runtime
def preview(runtime: Runtime, kind: str, locale: str, out: Path, opening: bool) -> None:
    """Write a mail with example data to a folder, as .eml and as a page, and open the page.

    Nothing is sent.
    """
    content = make_example(kind, Locale(locale), runtime[LetterRules])
    page = content.get_body(("html",))
    assert page is not None
    out.mkdir(parents=True, exist_ok=True)
    eml, html = (out / f"{kind}.{locale}{suffix}" for suffix in (".eml", ".html"))
    eml.write_bytes(content.as_bytes(policy=SMTP))
    html.write_bytes(page.get_content().encode())
    click.echo(f"{click.format_filename(eml)}\n{click.format_filename(html)}")
    if opening and not webbrowser.open(html.absolute().as_uri()):
        click.echo("there is no browser here: open the page with one, or read the .eml", err=True)
