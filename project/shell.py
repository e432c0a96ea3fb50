"""`make shell`: a Python prompt in this installation."""

from nightshift.cli.shell import open_shell

from project.celery import app

if __name__ == "__main__":
    open_shell(app)
