"""The web server: `python -m project.web`. docs/serving.md says what it answers, and why."""

from nightshift.cli.output import refusals
from nightshift.web.server import serve

from project.celery import app

if __name__ == "__main__":
    with refusals():
        serve(app.runtime)
