"""The desk: the ledger as pages, for people who look at jobs and act on them.

logins.py      users, hashed passwords, and a limit on attempts to guess one
site.py        the frame of all pages: templates, what is masked, messages
guard.py       who may do what; nothing is answered without a login
overview.py    workers, queues, failures, charts, tiles of the components
jobs.py        the list of jobs, a job's page, actions on one or on all that match
recurring.py   the schedule in words, with run now and pause
charts.py      small charts as SVG
server.py      the application, and `celery -A project desk`
"""

from nightshift.desk.site import Cached, Desk, Form, Number, Part, Tile

__all__ = ["Cached", "Desk", "Form", "Number", "Part", "Tile"]
