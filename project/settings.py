"""This project's name, and the engine's settings with the defaults that follow from it."""

from nightshift.settings import DatabaseUrl, ProjectName, Settings

NAME = "nightshift"


class ProjectSettings(Settings):
    """The engine's settings, with this project's defaults."""

    project_name: ProjectName = NAME
    database_url: DatabaseUrl = f"sqlite:///var/{NAME}.db"
