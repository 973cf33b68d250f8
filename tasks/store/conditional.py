"""Conditional writes on S3, which ``pyarrow.fs`` has not: create if absent, replace if unchanged.

Some servers do not honour them (they answer 501, or let two writers win): what rests on them is advice, never correctness.
A write whose answer was lost and that is repeated finds its own object and says that it was not written.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from tokenloom.tasks.runtime.errors import StepError

_CONNECT, _READ = 10, 60  # seconds


class ConditionalWrites:
    """The objects of one bucket."""

    def __init__(self, bucket: str) -> None:
        self.bucket = bucket

    @cached_property
    def _client(self) -> Any:
        try:
            import boto3
            from botocore.config import Config
        except ImportError as error:
            raise StepError("leases on S3 need the package boto3: install it") from error
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        # One attempt: patience is ours (tasks/store/retry.py).
        config = Config(retries={"total_max_attempts": 1}, connect_timeout=_CONNECT, read_timeout=_READ)
        return boto3.client("s3", region_name=region, config=config)

    def create(self, key: str, data: bytes) -> bool | None:
        """Put an object unless one is there; whether it was put, None on a server without conditional writes."""
        return self._put(key, data, IfNoneMatch="*")

    def swap(self, key: str, old: bytes, new: bytes) -> bool | None:
        """Replace an object whose content is still ``old``; whether it was replaced, None on a server without conditional writes."""
        client = self._client
        with _network():
            try:
                answer = client.get_object(Bucket=self.bucket, Key=key)
                content = answer["Body"].read()
            except client.exceptions.NoSuchKey:
                return False
        return self._put(key, new, IfMatch=answer["ETag"]) if content == old else False

    def _put(self, key: str, data: bytes, **condition: str) -> bool | None:
        from botocore.exceptions import ClientError

        client = self._client
        with _network():
            try:
                client.put_object(Bucket=self.bucket, Key=key, Body=data, **condition)
            except ClientError as error:
                status = _status(error)
                if status in (404, 409, 412):
                    return False
                if status == 501:
                    return None
                raise
        return True


@contextmanager
def _network() -> Iterator[None]:
    """Errors of the network and answers of 5xx as ``ConnectionError``, other answers as ``OSError``."""
    from botocore import exceptions

    try:
        yield
    except (exceptions.HTTPClientError, exceptions.ConnectionError, exceptions.IncompleteReadError) as error:
        raise ConnectionError(str(error)) from error
    except exceptions.ClientError as error:
        busy = _status(error) >= 500 or _status(error) == 429
        raise (ConnectionError if busy else OSError)(str(error)) from error
    except exceptions.BotoCoreError as error:  # no credentials, for one
        raise OSError(str(error)) from error


def _status(error: Any) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
