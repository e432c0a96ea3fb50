"""The Celery app: `celery -A project worker`, `celery -A project beat`, `celery -A project flower`."""

from celery import Celery

from project import logs, redisbroker, steps
from project.celeryconfig import configuration
from project.settings import Settings

app = Celery("nightshift")
app.conf.update(configuration(Settings()))
logs.install()
redisbroker.install()
steps.install(app)
