"""A project that is made from this repository, ready to be used."""

import pytest

from tests.making import make_environment, make_project


@pytest.fixture(
    scope="session",
    params=[False, pytest.param(True, marks=pytest.mark.faults)],
    ids=["without the school", "with the school"],
)
def made(request, tmp_path_factory):
    """Return a made project, with an environment and a first commit."""
    folder = tmp_path_factory.mktemp("made") / "my-shop"
    project = make_project(folder, school=request.param)
    make_environment(project)
    project.run("git", "init", "--quiet")
    project.commit("Start from Nightshift")
    return project
