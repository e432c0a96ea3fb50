"""A person who reads the desk's pages and sends their forms, without a server or a real browser."""

import re
from functools import partial
from typing import Any

import anyio
import httpx

PASSWORD = "correct horse battery"
TOKEN = re.compile(r'name="csrf" value="([^"]+)"')


class Browser:
    """A client of a desk's application, with cookies of its own."""

    def __init__(self, desk: Any, base: str = "http://127.0.0.1:8001") -> None:
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(desk), base_url=base)

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send one request; a redirect is not followed."""
        return anyio.run(partial(self.client.request, method, path, **options))

    def get(self, path: str, **headers: str) -> httpx.Response:
        return self.request("GET", path, headers=headers)

    def token(self) -> str:
        """Return the token of this session's forms."""
        return TOKEN.search(self.get("/login").text)[1]

    def post(self, path: str, **form: str) -> httpx.Response:
        """Send a form with this session's token."""
        return self.request("POST", path, data={"csrf": self.token(), **form})

    def log_in(self, name: str, password: str = PASSWORD, to: str = "/") -> httpx.Response:
        return self.post("/login", name=name, password=password, to=to)

    def said(self) -> str:
        """Return what the last act told."""
        page = self.get("/actions").text
        found = re.search(r'class="said \w+" role="status">(.*?)</p>', page)
        return "" if found is None else found[1]
