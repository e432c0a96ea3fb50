"""The feed server when somebody guesses, and when its database goes away."""

import asyncio
import os
import secrets
from pathlib import Path

import httpx
import psutil
from fault_servers import Postgres
from installations import Installation, installed

from services.calendars import serving
from services.calendars.models import FeedKind
from tests.installing import install, migrate_installation
from tests.serving import load_example, serve, sync

GUESSES = int(os.environ.get("GUESSES", "1_000_000"))
CLIENTS = 16


def address(installation: Installation) -> str:
    """Bring the example school's calendars up to date and return the path of one."""
    load_example(installation.app)
    sync(installation.app)
    with installation.runtime.read_only() as session:
        return f"/f/{serving.find_token(session, FeedKind.CLASS, '27Ga')}.ics"


async def guess(port: int, number: int, seen: set[bytes]) -> None:
    """Ask for `number` addresses over one connection; keep the different answers, without dates."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(number):
        writer.write(f"GET /f/{secrets.token_urlsafe(24)}.ics HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        lines = [line for line in head.split(b"\r\n") if not line.startswith(b"date:")]
        seen.add(b"\n".join(lines) + await reader.readexactly(10))
    writer.close()
    await writer.wait_closed()


def test_a_million_guesses_find_nothing_and_cost_no_memory(tmp_path: Path) -> None:
    with install("servers", tmp_path) as installation:
        path = address(installation)
        with serve(tmp_path, LOG_LEVEL="WARNING") as web:
            port, process, seen = web.client.base_url.port, psutil.Process(web.pid), set[bytes]()
            assert port is not None

            async def all_at_once(number: int) -> None:
                await asyncio.gather(
                    *(guess(port, number // CLIENTS, seen) for _ in range(CLIENTS))
                )

            asyncio.run(all_at_once(GUESSES // 20))
            before = process.memory_info().rss
            asyncio.run(all_at_once(GUESSES))
            after = process.memory_info().rss
            print(
                f"\n{GUESSES:,} wrong tokens: {len(seen)} answers;"
                f" memory {before / 2**20:.1f} MiB, then {after / 2**20:.1f} MiB"
            )
            assert [answer.startswith(b"HTTP/1.1 404 Not Found\n") for answer in seen] == [True]
            assert after < before + 4 * 2**20
            assert web.request("GET", path).status_code == 200


def test_restarted_database_is_no_reason_to_forget_an_address(tmp_path: Path) -> None:
    postgres = Postgres()
    try:
        with installed(
            "project.celery",
            tmp_path,
            postgres.url,
            f"filesystem://{tmp_path}/broker",
            prepare=migrate_installation,
            feed_store=f"{tmp_path}/feeds",
        ) as installation:
            path = address(installation)
            with serve(tmp_path) as web:
                etag = web.request("GET", path).headers["etag"]
                installation.runtime.disconnect()
                answers = []

                def ask(times: int) -> None:
                    answers.extend(
                        web.request("GET", path, {"if-none-match": etag}).status_code
                        for _ in range(times)
                    )

                for mode in ("fast", "immediate"):
                    ask(20)
                    postgres.stop(mode)
                    ask(20)
                    assert web.client.get("/health").status_code == httpx.codes.OK
                    assert web.client.get("/ready").json()["probes"]["database"] == "fail"
                    postgres.start()
                    ask(20)
                assert answers == ([304] * 20 + [503] * 20 + [304] * 20) * 2
                assert path.partition(".")[0] not in web.log.read_text()
    finally:
        postgres.remove()
