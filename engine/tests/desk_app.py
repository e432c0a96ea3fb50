"""An app with jobs that fail until they are mended, for the desk: `celery -A desk_app desk`.

The file at DESK_MENDED says that what makes the jobs fail is corrected.
"""

from datetime import UTC, timedelta
from pathlib import Path

from nightshift.celery.app import App
from nightshift.celery.task import job
from nightshift.component import Component, Composition
from nightshift.database import Session
from nightshift.desk import Desk, Form, Number, Part, Tile
from nightshift.errors import Conflict, PermanentError
from nightshift.jobs import JobArgs, Outcome, Run
from nightshift.jobs.schedule import Entry
from nightshift.ledger import ledger
from nightshift.runtime import Runtime
from nightshift.settings import ComponentSettings
from starlette.requests import Request
from starlette.responses import Response


class BakerySettings(ComponentSettings):
    desk_mended: Path = Path("mended")


class Bake(JobArgs, kind="bakery.bake", queue="oven"):
    """Bake a loaf, which fails while the oven is broken."""

    order: int
    customer: str = ""


class Sweep(JobArgs, kind="bakery.sweep", unique_by=()):
    """Sweep the floor."""


class Knead(JobArgs, kind="bakery.knead", queue="oven"):
    """Knead for many loaves, each a child."""

    loaves: int


@job(Bake)
def bake(session: Session, args: Bake, run: Run) -> Outcome:
    run.log(f"order {args.order} is in the oven")
    if not run.runtime[BakerySettings].desk_mended.exists():
        raise PermanentError(f"the oven is cold: order {args.order} cannot be baked")
    return {"loaf": args.order}


@job(Sweep)
def sweep(session: Session, args: Sweep, run: Run) -> None:
    return None


@job(Knead)
def knead(session: Session, args: Knead, run: Run) -> None:
    run.spawn(session, [Bake(order=number) for number in range(args.loaves)])


def make_schedule(_runtime: Runtime) -> list[Entry]:
    return [Entry("bakery.sweep", Sweep(), timedelta(hours=6), UTC)]


def make_part(desk: Desk) -> Part:
    def show(request: Request) -> Response:
        return desk.page(request, "refused.html", title="The shop", why="is open")

    def sell(request: Request, form: Form) -> str:
        if form.get("what") != "bread":
            raise Conflict("there is only bread")
        with desk.runtime.unit_of_work() as session:
            desk.record(session, request, "sell", "bread")
        return "Bread is sold."

    return Part(
        name="shop",
        title="Shop",
        pages={"/": show},
        acts={"/sell": sell},
        tile=lambda _session: Tile("Shop", "/shop", [Number("loaves", 7, "good")]),
    )


bakery = Component(
    name="bakery",
    kinds=(Bake, Sweep, Knead),
    tasks=("desk_app",),
    settings=BakerySettings,
    schedule=make_schedule,
    desk="desk_app:make_part",
)
app = App("desk_app", Composition([ledger, bakery]))
