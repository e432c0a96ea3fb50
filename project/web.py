"""The web server: `python -m project.web`. docs/serving.md says what it answers, and why."""

from nightshift.web.server import serve

from project.celery import app

if __name__ == "__main__":
    serve(app.runtime)
