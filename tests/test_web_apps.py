"""The recipes of docs/web-apps.md, as a user would copy them."""

import asyncio
import importlib
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import django
import httpx
import pytest
from django.conf import settings
from installations import create_tables
from nightshift.celery.app import App
from nightshift.celery.task import job
from nightshift.component import Component, Composition
from nightshift.jobs.models import Job
from nightshift.ledger import ledger
from nightshift.testing import run_due
from servers import postgres_database
from sqlalchemy import make_url, select, text

from tests.conftest import ROOT

RECIPES = {
    "fastapi_app": ("sqlite", "postgres"),
    "fastapi_async_app": ("postgres",),  # a driver for SQLite would be one more package
    "flask_app": ("sqlite", "postgres"),
    "django_views": ("postgres",),
}


@dataclass(frozen=True)
class Shop:
    """A web app of the page, and an app of the project that works on its jobs."""

    call: Any  # (method, path) -> (status, JSON)
    app: App
    table: str

    def count(self) -> tuple[int, int]:
        """Return how many orders and how many jobs there are."""
        with self.app.runtime.read_only() as session:
            counts = (f"select count(*) from {name}" for name in (self.table, "job"))
            orders, jobs = (session.execute(text(count)).scalar_one() for count in counts)
            return orders, jobs


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Iterator[list[str]]:
    """Write the page's modules into a folder where Python finds them, and return their names."""
    text = (ROOT / "docs" / "web-apps.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n# (\w+)\.py\n(.*?)```", text, re.DOTALL)
    folder = tmp_path_factory.mktemp("web")
    for name, code in blocks:
        (folder / f"{name}.py").write_text(code, encoding="utf-8")
    names = [name for name, _ in blocks]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield names
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def orders(page) -> Component:
    """Return the component of the page's kind, with a body for it."""
    from orders import SendReceipt

    @job(SendReceipt)
    def send_receipt(session, args, run):
        run.progress(2, 3)
        return f"receipt of order {args.order_id}"

    return Component(name="orders", kinds=(SendReceipt,))


def _fastapi(recipe: Any, runner: asyncio.Runner) -> Any:
    client = httpx.AsyncClient(
        transport=httpx.ASGITransport(recipe.app), base_url="http://shop.example"
    )

    def call(method: str, path: str) -> tuple[int, Any]:
        response = runner.run(client.request(method, path))
        return response.status_code, response.json()

    return call


def _flask(recipe: Any) -> Any:
    client = recipe.app.test_client()

    def call(method: str, path: str) -> tuple[int, Any]:
        response = client.open(path, method=method)
        return response.status_code, response.json

    return call


def _django(recipe: Any) -> Any:
    from django.test import Client

    client = Client()

    def call(method: str, path: str) -> tuple[int, Any]:
        response = client.generic(method, path)
        is_json = response["Content-Type"] == "application/json"
        return response.status_code, response.json() if is_json else None

    return call


def set_up_django(url: str) -> None:
    address = make_url(url)
    settings.configure(
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.postgresql",
                "NAME": address.database,
                "USER": address.username,
                "PASSWORD": address.password or "",
                "HOST": address.host,
                "PORT": address.port,
            }
        },
        ROOT_URLCONF="django_views",
        ALLOWED_HOSTS=["testserver"],
        USE_TZ=True,
    )
    django.setup()


@contextmanager
def running(name: str, orders: Component, url: str, folder: Any) -> Iterator[Shop]:
    """Import a recipe on a database, and make its table."""
    with pytest.MonkeyPatch.context() as patch, asyncio.Runner() as runner:
        patch.setenv("DATABASE_URL", url)
        if name == "django_views":
            set_up_django(url)
        sys.modules.pop(name, None)
        recipe = importlib.import_module(name)
        broker = f"filesystem://{folder}/broker"
        composition = Composition([ledger, orders])
        app = App("orders", composition, _env_file=None, database_url=url, broker_url=broker)
        create_tables(app)
        if name == "django_views":
            from django.db import connection

            with connection.schema_editor() as editor:
                editor.create_model(recipe.Order)
            yield Shop(_django(recipe), app, "shop_order")
            connection.close()
        else:
            recipe.Base.metadata.create_all(app.runtime.engine)
            call = _flask(recipe) if name == "flask_app" else _fastapi(recipe, runner)
            yield Shop(call, app, "customer_order")
            closing = recipe.engine.dispose()
            if closing is not None:
                runner.run(closing)
        app.runtime.close()


@pytest.fixture(
    scope="module",
    params=[(name, kind) for name, kinds in RECIPES.items() for kind in kinds],
    ids="-".join,
)
def installed(request, orders, tmp_path_factory) -> Iterator[Shop]:
    name, kind = request.param
    folder = tmp_path_factory.mktemp(name)
    if kind == "sqlite":
        with running(name, orders, f"sqlite:///{folder}/shop.db", folder) as shop:
            yield shop
        return
    with postgres_database() as url, running(name, orders, url, folder) as shop:
        yield shop


@pytest.fixture
def shop(installed) -> Shop:
    """Return the shop with no order and no job."""
    with installed.app.runtime.unit_of_work() as session:
        for table in (installed.table, "job"):
            session.execute(text(f"delete from {table}"))
    return installed


def place(shop: Shop) -> str:
    status, job_id = shop.call("POST", "/orders?item=chair")
    assert status == 202
    return job_id


def test_every_recipe_of_the_page_is_run(page):
    assert {*RECIPES, "orders", "ledger"} == set(page)


def test_order_and_job_are_one_transaction(shop):
    place(shop)

    assert shop.count() == (1, 1)


def test_request_that_fails_enqueues_nothing(shop):
    assert shop.call("POST", "/orders?item=sold%20out")[0] == 409

    assert shop.count() == (0, 0)


def test_state_progress_and_result_are_read(shop):
    job_id = place(shop)

    before = shop.call("GET", f"/jobs/{job_id}")
    [row] = run_due(shop.app)
    after = shop.call("GET", f"/jobs/{job_id}")

    names = ("id", "kind", "state", "done", "total", "result")
    told = [(status, *(found[name] for name in names)) for status, found in (before, after)]
    assert told == [
        (200, job_id, "orders.send_receipt", "queued", None, None, None),
        (200, job_id, "orders.send_receipt", "succeeded", 2, 3, row.result),
    ]
    assert row.result == f"receipt of order {row.args['order_id']}"


def test_unknown_job_is_not_found(shop):
    assert shop.call("GET", f"/jobs/{uuid4()}")[0] == 404


def test_job_is_cancelled_once(shop):
    job_id = place(shop)

    assert [shop.call("DELETE", f"/jobs/{job_id}") for _ in range(2)] == [(200, True), (200, False)]
    with shop.app.runtime.read_only() as session:
        assert session.scalars(select(Job.state)).all() == ["cancelled"]
    assert run_due(shop.app) == []


def test_job_that_runs_is_cancelled_too(shop):
    job_id = place(shop)
    with shop.app.runtime.unit_of_work() as session:
        session.execute(text("update job set state = 'running'"))

    assert shop.call("DELETE", f"/jobs/{job_id}") == (200, True)
    assert shop.call("GET", f"/jobs/{job_id}")[1]["state"] == "cancelled"
