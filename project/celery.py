"""The Celery app, for `celery -A project worker`, `beat`, `flower` and the other commands."""

from nightshift.celery.app import App
from nightshift.cli.output import refusals
from nightshift.component import Composition

from project.app import COMPONENTS

# Every process of this project begins here: a wrong setting ends it with a line.
with refusals():
    app = App(__name__, Composition(COMPONENTS))
