"""What the school contributes: its tables, settings and commands, and the import of calendars."""

from collections.abc import Sequence

from nightshift.component import Component
from nightshift.jobs.schedule import Entry
from nightshift.runtime import Runtime

from project.school.settings import SchoolSettings
from services.school.downloads import Limits
from services.school.import_jobs import ImportSource, ImportSources
from services.school.importing import ImportRules


def make_import_rules(runtime: Runtime) -> ImportRules:
    """Return the school's settings that imports depend on."""
    settings = runtime[SchoolSettings]
    return ImportRules(
        zone=settings.school_timezone,
        domain=settings.school_domain,
        limits=Limits(networks=settings.source_networks),
    )


def make_schedule(runtime: Runtime) -> Sequence[Entry]:
    """Return the nightly import."""
    zone = runtime[SchoolSettings].school_timezone
    return [Entry("school.import_sources", ImportSources(), "0 3 * * *", zone, missed="latest")]


school = Component(
    name="school",
    models=("services.school.models", "services.school.source_models"),
    migrations="school",
    kinds=(ImportSources, ImportSource),
    tasks=("tasks.sources",),
    settings=SchoolSettings,
    schedule=make_schedule,
    provides={ImportRules: make_import_rules},
    commands={"school": "project.school.cli:school"},
)
