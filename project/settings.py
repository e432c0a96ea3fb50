"""This project's name and ports, and the engine's settings with the defaults that follow from them.

A project that is made from the template has a name and ports of its own, so that two of them run on
one machine.
"""

from nightshift.settings import (
    DatabaseUrl,
    DeskBind,
    FlowerPort,
    ProjectName,
    Settings,
    WebBind,
)

NAME = "nightshift"
WEB_PORT = 8000
FLOWER_PORT = 5555
DESK_PORT = 8001


class ProjectSettings(Settings):
    """The engine's settings, with this project's defaults."""

    project_name: ProjectName = NAME
    database_url: DatabaseUrl = f"sqlite:///var/{NAME}.db"
    web_bind: WebBind = f"127.0.0.1:{WEB_PORT}"
    desk_bind: DeskBind = f"127.0.0.1:{DESK_PORT}"
    flower_port: FlowerPort = FLOWER_PORT
