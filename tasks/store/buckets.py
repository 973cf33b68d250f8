"""The file systems of buckets as ``pyarrow.fs`` has them, with the usual variables of their clients saying where and who."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any


def s3_file_system(anonymous: bool = False) -> Any:
    """S3, and what speaks as S3 does (``AWS_ENDPOINT_URL``); ``anonymous`` of buckets that are open to all."""
    from pyarrow import fs

    given: dict[str, Any] = {"connect_timeout": 10, "request_timeout": 60, "allow_delayed_open": True}  # small files in one request
    if region := os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
        given["region"] = region
    if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        given["endpoint_override"] = endpoint
    return fs.S3FileSystem(**given, **({"anonymous": True} if anonymous else {}))


def gs_file_system(anonymous: bool = False) -> Any:
    """Google Cloud Storage, or its emulator (``STORAGE_EMULATOR_HOST``)."""
    from pyarrow import fs

    given: dict[str, Any] = {"anonymous": anonymous, "retry_time_limit": timedelta(seconds=60)}
    if emulator := os.environ.get("STORAGE_EMULATOR_HOST"):
        protocol, _, host = emulator.rpartition("://")
        given |= {"endpoint_override": host, "scheme": protocol or "http", "anonymous": True}
    return fs.GcsFileSystem(**given)
