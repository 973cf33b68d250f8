"""Reading what may fail for a while: tried again, and told apart from content that is damaged."""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable
from typing import IO, Any, Protocol, TypeVar

Content = TypeVar("Content")
#: Seconds to wait before each further attempt.
WAITS = (0.1, 0.5)
#: Errors that the next attempt will meet again: rights, and files that are gone.
_LASTING = {errno.EACCES, errno.EPERM, errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP}
#: Packages whose errors come from a network, whatever their types are.
_REMOTE = ("requests", "httpx", "httpcore", "urllib3", "aiohttp", "botocore", "huggingface_hub", "fsspec")


class Readable(Protocol):
    """A file here (``pathlib.Path``) or elsewhere (``tokenloom.tasks.sources.far.Far``)."""

    def open(self, mode: str, /) -> Any: ...

    def read_bytes(self) -> bytes: ...


#: How errors of buckets read, which have no number; and those among them that the next attempt will meet again.
_OF_BUCKETS, _DENIED = (
    re.compile(r"AWS Error|google::cloud|curlCode"),
    re.compile(r"ACCESS_DENIED|NO_SUCH_|HTTP status 40[0134]|PERMISSION_DENIED"),
)


class ReadError(OSError):
    """A content could not be read now; what it holds is unknown, and another time it may be read."""


def passing(error: BaseException) -> bool:
    """Whether an error is one of reading (a disk, rights, a network), which says nothing about the content."""
    if isinstance(error, OSError) and (error.errno is not None or _OF_BUCKETS.search(str(error))):
        return True
    return isinstance(error, (ReadError, ConnectionError, TimeoutError)) or type(error).__module__.split(".")[0] in _REMOTE


def attempted(read: Callable[[], Content]) -> Content:
    """What ``read`` gives, tried again where an error of reading may pass.

    Raises:
        ReadError: it did not pass.
    """
    for wait in (*WAITS, None):
        try:
            return read()
        except Exception as error:
            if not passing(error):
                raise
            if wait is None or (isinstance(error, OSError) and (error.errno in _LASTING or _DENIED.search(str(error)))):
                raise ReadError(f"cannot be read: {said(error)}") from error
            time.sleep(wait)
    raise AssertionError("unreachable")


def said(error: BaseException) -> str:
    """An error in words: of the system, only what it says (the file is named elsewhere)."""
    if isinstance(error, ReadError):
        return str(error).removeprefix("cannot be read: ")
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__


def opened(path: Readable) -> IO[bytes]:
    """A file, open for reading; raises ``ReadError``."""
    return attempted(lambda: open(path, "rb") if isinstance(path, os.PathLike) else path.open("rb"))


def nothing() -> bytes:
    """What an item that cannot be used holds."""
    return b""


def file_bytes(path: Readable) -> bytes:
    """A file's content; raises ``ReadError``."""
    return attempted(path.read_bytes)
