"""The jobs that import calendars which are kept elsewhere."""

from nightshift.celery.task import job
from nightshift.database import Session
from nightshift.jobs import Outcome, Run

from services.school import importing
from services.school.import_jobs import ImportSource, ImportSources
from services.school.importing import ImportRules


@job(ImportSources)
def import_sources(session: Session, args: ImportSources, run: Run) -> Outcome:
    """Start a job for each nightly source. A second run starts those that have ended."""
    sources = importing.find_nightly(session)
    run.spawn(session, [ImportSource(source_id=source) for source in sources])
    return {"sources": len(sources)}


@job(ImportSource, own_transactions=True)
def import_source(args: ImportSource, run: Run) -> Outcome:
    """Import a source. A second run with the same bytes writes nothing but its record."""
    return importing.import_source(run, args, run.runtime[ImportRules])
