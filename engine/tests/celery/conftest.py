"""Apps in the test's process, each on files of its own."""

from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import probe_app
import pytest
from installations import create_tables
from nightshift.celery.app import App
from nightshift.celery.keeper import Keeper
from nightshift.celery.link import Link, open_pair
from nightshift.component import Component, Composition


@pytest.fixture
def make_app(tmp_path: Path) -> Iterator[Callable[..., App]]:
    """Yield what makes an app with the probe's components and others, on SQLite and files."""
    made: list[App] = []

    def make(*components: Component, **settings: object) -> App:
        folder = tmp_path / f"app{len(made)}"
        folder.mkdir()
        values = {
            "database_url": f"sqlite:///{folder}/nightshift.db",
            "broker_url": f"filesystem://{folder}/broker",
            **settings,
        }
        composition = Composition([*probe_app.app.composition.components, *components])
        app = App("probe_app", composition, _env_file=None, **values)
        create_tables(app)
        made.append(app)
        return app

    yield make
    for app in made:
        app.runtime.close()


@pytest.fixture
def links() -> Iterator[tuple[Link, Link]]:
    """Yield the link of a worker that is not there, and its keeper's."""
    ends = open_pair()
    yield ends
    for end in ends:
        end.socket.close()


@pytest.fixture
def worker_end(links: tuple[Link, Link]) -> Link:
    """Return what a worker that is not there would hear of its keeper."""
    return links[0]


@pytest.fixture
def keeper(app: App, links: tuple[Link, Link]) -> Link:
    """Return the keeper's end of the link of a module's `app`."""
    app.keeper = links[0]
    return links[1]


@pytest.fixture
def make_keeper(links: tuple[Link, Link]) -> Iterator[Callable[[App], Keeper]]:
    """Yield what makes a keeper of an app, for a worker that is not there."""
    made: list[Keeper] = []

    def make(app: App) -> Keeper:
        keeper = Keeper(app, uuid4(), "nobody@test", ["default"], pid=1, link=links[1])
        made.append(keeper)
        return keeper

    yield make
    for keeper in made:
        keeper.publisher.close()


@pytest.fixture
def count_messages() -> Callable[[App], int]:
    """Return what counts the messages in an app's broker."""

    def count(app: App) -> int:
        options = app.conf.broker_transport_options
        return len(list(Path(options["data_folder_in"]).iterdir()))

    return count
