"""The Celery app, for `celery -A project worker`, `beat`, `flower` and the other commands."""

from nightshift.celery.app import App
from nightshift.component import Composition

from project.app import COMPONENTS

app = App(__name__, Composition(COMPONENTS))
