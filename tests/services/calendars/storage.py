"""A server of S3-compatible storage (moto's), and what tests do to a store behind its back."""

import importlib.util
import os
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from servers import free_port

from services.calendars.folders import FolderStore
from services.calendars.models import FeedKind
from services.calendars.store import FeedStore, Owner, name_file

BUCKET = "feeds"
KEY, SECRET = "a-key", "a-secret"
# moto takes the region of a request from here, and does not check the rest.
SIGNED = {
    "authorization": f"AWS4-HMAC-SHA256 Credential={KEY}/20261121/us-east-1/s3/aws4_request",
}
VERSIONED = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"


LINE = re.compile(r'"(?P<method>[A-Z]+) (?P<path>\S+) HTTP/1.1" (?P<status>\d+)')


@dataclass(frozen=True)
class Storage:
    """A server of S3-compatible storage, and the file with a line for each request."""

    address: str
    log: Path

    def count(self, prefix: str) -> Counter[str]:
        """Return how many requests there were below a prefix, by what they did."""
        found: Counter[str] = Counter()
        for line in LINE.finditer(self.log.read_text(encoding="utf-8")):
            if f"/{BUCKET}/{prefix}/" in line["path"]:
                found[line["method"]] += 1
            elif f"prefix={prefix}" in line["path"]:
                found["LIST"] += 1
        return found


@contextmanager
def storage(log: Path, host: str = "127.0.0.1") -> Iterator["Storage"]:
    """Yield a server with an empty bucket, which writes a line for each request.

    The bucket keeps versions, so that a write of the same bytes is seen.
    """
    if importlib.util.find_spec("moto") is None or importlib.util.find_spec("obstore") is None:
        pytest.skip("S3-COMPATIBLE STORAGE IS NOT TESTED: moto and obstore are not installed")
    port = free_port()
    with log.open("wb") as lines:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "--host", host, "--port", str(port)],
            stdout=lines,
            stderr=lines,
            env=os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "ignore"},
        )
    address = f"http://{host}:{port}"
    try:
        give_up = time.monotonic() + 60
        while True:
            assert server.poll() is None, log.read_text(encoding="utf-8")
            with suppress(OSError):
                socket.create_connection((host, port), timeout=1).close()
                break
            assert time.monotonic() < give_up
            time.sleep(0.05)
        with httpx.Client(base_url=address, headers=SIGNED, trust_env=False) as client:
            client.put(f"/{BUCKET}").raise_for_status()
            client.put(f"/{BUCKET}?versioning", content=VERSIONED).raise_for_status()
        yield Storage(address, log)
    finally:
        server.terminate()
        server.wait(20)


def settings(address: str, prefix: str = "") -> dict[str, str]:
    """Return the settings of an installation whose feeds are in the bucket."""
    return {
        "FEED_STORE": f"s3://{BUCKET}/{prefix or uuid4().hex}",
        "FEED_STORE_ENDPOINT": address,
        "FEED_STORE_KEY": KEY,
        "FEED_STORE_SECRET": SECRET,
    }


def make_bucket_store(address: str, *, name: str = BUCKET, prefix: str = "") -> Any:
    """Return a store in the bucket, under a prefix of its own."""
    # Not at the top: the library need not be there.
    from services.calendars.buckets import Bucket, BucketStore

    prefix = prefix or uuid4().hex
    return BucketStore(Bucket(name, prefix, address, "us-east-1", KEY, SECRET))


@dataclass(frozen=True)
class Stored:
    """One feed in a bucket, with the methods that a test uses of a file's path."""

    store: FeedStore
    owner: Owner

    def read_bytes(self) -> bytes:
        content = self.store.read(*self.owner)
        assert content is not None
        return content

    def write_bytes(self, content: bytes) -> None:
        self.store.write(*self.owner, content)

    def unlink(self) -> None:
        self.store.remove(*self.owner)


def place(store: FeedStore, kind: FeedKind, owner_id: int) -> Any:
    """Return a feed's file, or what behaves like one."""
    if isinstance(store, FolderStore):
        return store.path(kind, owner_id)
    return Stored(store, (kind, owner_id))


def files(store: FeedStore) -> dict[str, bytes]:
    """Return all that is in a store, by name."""
    if isinstance(store, FolderStore):
        return {
            str(path.relative_to(store.root)): path.read_bytes()
            for path in sorted(store.root.rglob("*"))
            if path.is_file()
        }
    found = {owner: store.read(*owner) for owner in store.list_owners()}
    return {name_file(*owner): content for owner, content in sorted(found.items()) if content}


def stamps(store: FeedStore) -> dict[str, Any]:
    """Return of each file which one it is and when it was written: every write changes that."""
    if isinstance(store, FolderStore):
        stats = {name: (store.root / name).stat() for name in files(store)}
        return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}
    import obstore

    return {name: obstore.head(store._writing, name)["version"] for name in files(store)}
