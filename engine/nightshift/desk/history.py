"""Who did what: every action of the desk's users, and how far one on many jobs is."""

from starlette.requests import Request
from starlette.responses import Response

from nightshift.desk.site import Desk, Part
from nightshift.errors import NotFound
from nightshift.jobs import actions
from nightshift.jobs.models import Action, Job

PAGE = 50
LARGEST_ID = 2**31 - 1


def make_part(desk: Desk) -> Part:
    """Return the pages of what people did."""

    def show(request: Request) -> Response:
        given = request.query_params.get("before", "")
        before = int(given) if given.isdecimal() and int(given) <= LARGEST_ID else None
        with desk.runtime.read_only() as session:
            found = actions.find_actions(session, before=before, limit=PAGE + 1)
            return desk.page(
                request,
                "actions.html",
                found=found[:PAGE],
                before=found[PAGE - 1].id if len(found) > PAGE else None,
            )

    def show_one(request: Request) -> Response:
        action_id = request.path_params["action_id"]
        with desk.runtime.read_only() as session:
            action = session.get(Action, action_id) if action_id <= LARGEST_ID else None
            if action is None:
                raise NotFound(f"there is no action {action_id}")
            job = None if action.job_id is None else session.get(Job, action.job_id)
            return desk.page(request, "action.html", action=action, job=job)

    pages = {"/": show, "/{action_id:int}": show_one}
    return Part(name="actions", title="Actions", pages=pages)
