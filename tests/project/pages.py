"""The pages of an installation, without a server."""

import anyio
import httpx
from nightshift.component import Composition
from nightshift.runtime import Runtime
from starlette.applications import Starlette


def get(runtime: Runtime, path: str, headers: dict[str, str] | None = None) -> httpx.Response:
    """Return what the components' routes answer."""
    app = Starlette(routes=runtime[Composition].routes(runtime))

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.get(path, headers=headers)

    return anyio.run(ask)
