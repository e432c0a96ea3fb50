"""What the school contributes: its tables, its settings, and the commands to look after them."""

from nightshift.component import Component

from project.school.settings import SchoolSettings

school = Component(
    name="school",
    models=("services.school.models",),
    migrations="school",
    settings=SchoolSettings,
    commands={"school": "project.school.cli:school"},
)
