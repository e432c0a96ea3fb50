"""Calendar feeds in S3-compatible storage, for workers and web servers on several hosts."""

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from services.calendars.models import FeedKind
from services.calendars.store import A, B, Owner, StoreAway, name_file, read_name

# Requests at a time of one job: some providers refuse many more.
MOST_AT_ONCE = 16
# One list tells the stamps of a thousand objects, also of those that nobody asked for.
LISTED_FROM = 250

# A request takes at most (retries + 1) × timeout: below the time limit of the jobs that write, and
# so short for readers that a subscriber is still there.
WRITING_TIMEOUT, WRITING_RETRIES = "10s", 2
READING_TIMEOUT, READING_RETRIES = "4s", 1
CONNECT_TIMEOUT = "3s"

CONTENT_TYPE = "text/calendar; charset=utf-8"
# Never written. Asked for where only the answer's kind matters.
NOTHING = "nothing"

CODE = re.compile(r"<Code>(\w+)</Code>")
REFUSED = re.compile(r"status code: 40[13] ")
STATUS = re.compile(r"status code: (\d+ [\w ]+)")


@dataclass(frozen=True, slots=True)
class Bucket:
    """Where feeds are kept, and what opens it. `endpoint` is a URL; empty: Amazon's."""

    name: str
    prefix: str
    endpoint: str
    region: str
    key: str
    secret: str

    def __repr__(self) -> str:
        """Return it without its secret."""
        return f"s3://{'/'.join(filter(None, (self.name, self.prefix)))}"


class BucketStore:
    """A feed store in a bucket. A stamp is an object's ETag.

    Make it in the process that uses it: the library's threads do not survive a fork.
    """

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket
        self._writing = _connect(bucket, timeout=WRITING_TIMEOUT, retries=WRITING_RETRIES)
        self._reading = _connect(bucket, timeout=READING_TIMEOUT, retries=READING_RETRIES)

    def locate(self, kind: FeedKind, owner_id: int) -> str:
        """Return an object's address."""
        return f"{self.bucket!r}/{name_file(kind, owner_id)}"

    def write(self, kind: FeedKind, owner_id: int, content: bytes) -> str:
        """Replace an object in one request, and return its stamp."""
        with self._told():
            put = obstore.put(
                self._writing,
                name_file(kind, owner_id),
                content,
                attributes={"Content-Type": CONTENT_TYPE},
                use_multipart=False,
            )
        return _read_stamp(put["e_tag"])

    def read(self, kind: FeedKind, owner_id: int) -> bytes | None:
        """Return an object's bytes, or None when there is none."""
        with self._told():
            try:
                return bytes(obstore.get(self._reading, name_file(kind, owner_id)).bytes())
            except FileNotFoundError as error:
                _require_bucket(error)
                return None

    def find_stamps(self, owners: Collection[Owner]) -> dict[Owner, str]:
        """Return the stamps of those of these objects that exist.

        That is one request for each of a few, and one for each thousand in the bucket for many.
        """
        if len(owners) > LISTED_FROM:
            wanted = set(owners)
            return {owner: stamp for owner, stamp in self._list() if owner in wanted}
        found = self.each(self._find_stamp, owners)
        return {owner: stamp for owner, stamp in zip(owners, found, strict=True) if stamp}

    def _find_stamp(self, owner: Owner) -> str | None:
        with self._told():
            try:
                return _read_stamp(obstore.head(self._reading, name_file(*owner))["e_tag"])
            except FileNotFoundError:
                return None

    def _list(self) -> Iterator[tuple[Owner, str]]:
        with self._told():
            for some in obstore.list(self._writing, chunk_size=1000):
                for one in some:
                    owner = read_name(one["path"])
                    if owner is not None:
                        yield owner, _read_stamp(one["e_tag"])

    def remove(self, kind: FeedKind, owner_id: int) -> None:
        """Remove an object, if there is one."""
        with self._told():
            obstore.delete(self._writing, name_file(kind, owner_id))

    def list_owners(self) -> set[Owner]:
        """Return kind and owner of every feed that has an object."""
        return {owner for owner, _ in self._list()}

    def each(self, act: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
        """Yield what `act` returns for each item, in order, from several threads."""
        failures: list[Exception] = []

        def act_unless_failed(item: A) -> B:
            if failures:
                raise failures[0]
            try:
                return act(item)
            except Exception as error:
                failures.append(error)
                raise

        with ThreadPoolExecutor(MOST_AT_ONCE, "feeds") as pool:
            yield from pool.map(act_unless_failed, items)

    def remove_leftovers(self, *, before: datetime) -> None:
        """Do nothing: a request that breaks off leaves nothing."""

    def check_readable(self) -> str:
        """Return the bucket's address."""
        with self._told():
            try:
                obstore.get(self._reading, NOTHING)
            except FileNotFoundError as error:
                _require_bucket(error)
        return f"{self.bucket!r} at {self.bucket.endpoint or 'Amazon'}"

    def check_writable(self) -> str:
        """Return the bucket's address. Whether it may be written only a write shows."""
        return self.check_readable()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Let what goes wrong be StoreAway, in one line, with the setting to look at."""
        try:
            yield
        except (BaseError, OSError) as error:
            raise StoreAway(_describe(self.bucket, error)) from error


def _connect(bucket: Bucket, *, timeout: str, retries: int) -> S3Store:
    return S3Store(
        bucket.name,
        prefix=bucket.prefix or None,
        endpoint=bucket.endpoint or None,
        region=bucket.region,
        access_key_id=bucket.key,
        secret_access_key=bucket.secret,
        virtual_hosted_style_request=False,
        client_options={
            "allow_http": bucket.endpoint.startswith("http://"),
            "timeout": timeout,
            "connect_timeout": CONNECT_TIMEOUT,
        },
        retry_config={
            "max_retries": retries,
            "retry_timeout": timedelta(minutes=1),
            "backoff": {
                "init_backoff": timedelta(milliseconds=100),
                "max_backoff": timedelta(seconds=1),
                "base": 2,
            },
        },
    )


def _read_stamp(etag: str | None) -> str:
    # Some servers quote it in one answer, and not in another.
    return (etag or "").strip('"')


def _require_bucket(error: FileNotFoundError) -> None:
    """Raise the error again unless the bucket is there, and only the object is not."""
    if "NoSuchBucket" in str(error):
        raise error


def _describe(bucket: Bucket, error: Exception) -> str:
    """Return one line. What the library says has many, and names objects."""
    said = str(error)
    code = CODE.search(said) or STATUS.search(said)
    why = code[1].strip() if code else "no answer"
    where = bucket.endpoint or "Amazon"
    if why == "NoSuchBucket" or isinstance(error, FileNotFoundError):
        return f"FEED_STORE: there is no bucket {bucket.name!r} at {where}"
    if REFUSED.search(said):
        return (
            f"FEED_STORE_KEY and FEED_STORE_SECRET: {where} refuses them for {bucket!r} ({why});"
            " they must be allowed to list, read, write and delete there"
        )
    if "configured region" in said or why in ("AuthorizationHeaderMalformed", "PermanentRedirect"):
        return f"FEED_STORE_REGION: {bucket.region!r} is not the region of {bucket!r} at {where}"
    return f"FEED_STORE_ENDPOINT: {where} does not answer for {bucket!r} ({why})"
