"""What the process is: settings, wiring and the Celery app, which `celery -A project` finds in project.celery.

Nothing is imported here, so that `project.settings` can be read without making an app.
"""
