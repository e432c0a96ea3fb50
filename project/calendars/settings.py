"""The calendars' settings."""

import re
from datetime import datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

from nightshift.settings import ComponentSettings, Days, Duration
from pydantic import Field, SecretStr, field_validator, model_validator

# A run may be missed, and may take its time.
LATE_AFTER_RUNS, GRACE = 2, timedelta(hours=1)

S3 = "s3://"
BUCKET = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9_.=-]+)*/?")


class CalendarSettings(ComponentSettings):
    """Where the feeds are kept, what they hold, and how often they are brought up to date."""

    # Whoever runs the storage has made it.
    foreign_secrets = frozenset({"feed_store_secret"})

    feed_store: Path | str = Field(
        Path("var/feeds"),
        description="the folder that the calendar files are kept in, or s3://BUCKET/PREFIX",
    )
    feed_store_endpoint: str = Field(
        "",
        pattern=r"^(https?://[!-~]{1,200})?$",
        description="the address of the S3-compatible storage, where it is not Amazon's",
    )
    feed_store_region: str = Field(
        "us-east-1", pattern=r"^[a-z0-9-]{1,40}$", description="the region of the bucket"
    )
    feed_store_key: str = Field("", description="the id of the access key, for s3://")
    feed_store_secret: SecretStr = Field(SecretStr(""), description="the secret access key")
    feed_days_past: Days = Field(
        31, ge=0, description="how many days an event stays in a feed after its end"
    )
    feed_days_ahead: Days = Field(
        465, ge=1, description="how many days before its start an event enters a feed"
    )
    sync_every: Duration = Field(
        timedelta(hours=6), description="how often all feeds are brought up to date"
    )

    @field_validator("feed_store", mode="before")
    @classmethod
    def _tell_folders_from_buckets(cls, place: Any) -> Any:
        if not isinstance(place, str):
            return place
        if BUCKET.fullmatch(place):
            return place
        if "://" in place:
            raise ValueError("name a folder, or a bucket as s3://BUCKET/PREFIX")
        return Path(place)

    @field_validator("feed_store")
    @classmethod
    def _require_a_folder(cls, path: Path | str) -> Path | str:
        if isinstance(path, str):
            return path
        try:
            is_file = path.exists() and not path.is_dir()
        except OSError as error:
            raise ValueError(f"{error.strerror}; name a folder") from error
        if is_file:
            raise ValueError(f"{path} is a file; name a folder")
        return path

    @model_validator(mode="after")
    def _require_what_a_bucket_needs(self) -> Self:
        if isinstance(self.feed_store, str):
            if find_spec("obstore") is None:
                raise ValueError(
                    "FEED_STORE: a bucket needs the package obstore: install the extra `s3`"
                )
            if not self.feed_store_key:
                raise ValueError("FEED_STORE_KEY: a bucket needs it, and FEED_STORE_SECRET")
        return self

    def is_late(self, last_good: datetime | None, *, now: datetime) -> bool:
        """Return whether a sync should have been good since then."""
        longest = LATE_AFTER_RUNS * self.sync_every + GRACE
        return last_good is None or now - last_good > longest
