"""The file systems of buckets as ``pyarrow.fs`` has them, with the usual variables of their clients saying where and who."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

_NEAR = 8  # files of one folder from which on it is listed


def s3_file_system(anonymous: bool = False) -> Any:
    """S3, and what speaks as S3 does (``AWS_ENDPOINT_URL``); ``anonymous`` of buckets that are open to all."""
    from pyarrow import fs

    given: dict[str, Any] = {"connect_timeout": 10, "request_timeout": 60, "allow_delayed_open": True}  # small files in one request
    if region := os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
        given["region"] = region
    if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        given["endpoint_override"] = endpoint
    return fs.S3FileSystem(**given, **({"anonymous": True} if anonymous else {}))


def sizes_of(fs: Any, paths: Sequence[str]) -> list[int | None]:
    """Sizes of files, None where there is none: a folder of which many are asked for is listed, a thousand a request."""
    from pyarrow.fs import FileSelector

    near: dict[str, list[str]] = {}
    for path in paths:
        near.setdefault(path.rpartition("/")[0], []).append(path)
    known: dict[str, int | None] = {}
    single: list[str] = []
    for folder, mine in near.items():
        if len(mine) < _NEAR:
            single += mine
            continue
        listed = fs.get_file_info(FileSelector(folder, recursive=False, allow_not_found=True))
        known |= {info.path: info.size for info in listed if info.is_file}
    infos = fs.get_file_info(single) if single else []
    known |= {path: info.size if info.is_file else None for path, info in zip(single, infos)}
    return [known.get(path) for path in paths]


def gs_file_system(anonymous: bool = False) -> Any:
    """Google Cloud Storage, or its emulator (``STORAGE_EMULATOR_HOST``)."""
    from pyarrow import fs

    given: dict[str, Any] = {"anonymous": anonymous, "retry_time_limit": timedelta(seconds=60)}
    if emulator := os.environ.get("STORAGE_EMULATOR_HOST"):
        protocol, _, host = emulator.rpartition("://")
        given |= {"endpoint_override": host, "scheme": protocol or "http", "anonymous": True}
    return fs.GcsFileSystem(**given)
