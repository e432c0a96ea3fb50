"""The components of this project, in the order of their commands and probes.

docs/components.md shows how a part joins, and how one is left out.
"""

from dataclasses import replace

from nightshift.ledger import ledger

from project.alerts.component import alerts
from project.calendars.component import calendars
from project.front.component import front
from project.letters.component import letters
from project.mail.component import mail
from project.school.component import school
from project.settings import ProjectSettings
from project.timetable.component import timetable

COMPONENTS = (
    replace(ledger, settings=ProjectSettings),
    mail,
    alerts,
    school,
    timetable,
    calendars,
    letters,
    front,
)
