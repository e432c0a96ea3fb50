"""Alembic's entry: the database of the settings, and every component's tables."""

from nightshift.cli.output import refusals
from nightshift.migrations import run_migrations

from project.celery import app

with refusals():
    run_migrations(app.runtime, app.composition.table_branches())
