"""The first page: each component's `front` is a section of it."""

from nightshift.component import Component

front = Component(name="front", routes="project.front.routes:make_routes")
