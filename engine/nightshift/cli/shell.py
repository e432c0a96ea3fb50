"""A Python prompt with what a person needs to look at an installation and to try something."""

import code
import sys
from importlib.util import find_spec
from typing import Any

from sqlalchemy.orm import Session

from nightshift.celery.app import App
from nightshift.jobs import enqueue
from nightshift.jobs.session import Carried, carry

BANNER = """\
session  a transaction on {database}; session.commit() keeps what was done in it,
         session.rollback() drops it, and so does the end of the prompt
enqueue  write a job: enqueue(session, Args(...), now=runtime.now())
runtime  the settings, and what the components provide: runtime.settings, runtime[Type]
app      the Celery app; app.composition has the components
"""


def open_shell(app: App) -> None:
    """Open a prompt, by IPython where that is installed. Nothing is kept unless it is committed."""
    runtime = app.runtime
    app.composition.table_branches()  # imports the models, so that relations find each other
    banner = BANNER.format(database=runtime.engine.url.render_as_string())
    with Session(runtime.engine, expire_on_commit=False) as session:
        # `enqueue` refuses a kind that no component declares, as everywhere else.
        carry(session, Carried(kinds=runtime.kinds))
        names = {"session": session, "enqueue": enqueue, "runtime": runtime, "app": app}
        _interact(names, banner)
    runtime.close()


def _interact(names: dict[str, Any], banner: str) -> None:
    if find_spec("IPython") is not None and sys.stdin.isatty():
        from IPython import start_ipython  # noqa: PLC0415 - need not be there

        print(banner)  # noqa: T201 - it belongs to the prompt
        start_ipython(argv=["--no-banner"], user_ns=names)
        return
    code.interact(banner, local=names, exitmsg="")
