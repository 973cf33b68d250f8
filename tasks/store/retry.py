"""Waiting for an object store that is away for a while: the same request again, later and later, up to a limit.

Every request of a store is made so that it may be repeated: files are written whole, removals and listings say the same twice, and
who repeats a conditional write looks whose it was.
"""

from __future__ import annotations

import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable
from typing import TypeVar

log = logging.getLogger(__name__)

LIMIT = "TOKENLOOM_STORE_PATIENCE"  # environment: seconds for which one request is tried again
_DEFAULT = 60.0  # seconds
_FIRST, _LONGEST = 0.1, 8.0  # seconds of the first and of the longest pause; each is drawn between half and all of it

T = TypeVar("T")

#: What a network or a busy server answers, in the words of ``pyarrow.fs``. Anything else (no permission, no bucket) stays as it is.
_PASSING = re.compile(
    r"NETWORK_CONNECTION|INTERNAL_FAILURE|SERVICE_UNAVAILABLE|SLOW_DOWN|THROTTLING|REQUEST_TIMEOUT|HTTP status 5\d\d|curlCode|timed? ?out",
    re.IGNORECASE,
)
_jitter = random.SystemRandom()  # of its own: nothing else may see a draw
_exhausted: set[str] = set()  # stores that did not come back in time: the next request is not waited for
_lock = threading.Lock()


def passing(error: Exception) -> bool:
    """Whether an error may pass by itself: a broken or refused connection, a timeout, an answer of 5xx."""
    if isinstance(error, (FileNotFoundError, PermissionError)):
        return False
    return isinstance(error, (ConnectionError, TimeoutError)) or (isinstance(error, OSError) and bool(_PASSING.search(str(error))))


def retry(call: Callable[[], T], what: str, where: str) -> T:
    """The result of a call, made again while its error may pass.

    Args:
        call: the request; it must be safe to repeat.
        what: the request for the warning, e.g. ``read s3://bucket/x``.
        where: the store; one that did not answer within the limit is not retried until it answers again.

    Raises:
        OSError: the call's last error, after ``TOKENLOOM_STORE_PATIENCE`` seconds (60) or at once when it cannot pass.
    """
    began, pause = time.monotonic(), _FIRST
    warned = False
    while True:
        try:
            result = call()
        except OSError as error:
            left = began + seconds() - time.monotonic()
            if not passing(error) or where in _exhausted or left <= 0:
                if passing(error):
                    with _lock:
                        _exhausted.add(where)
                raise
            if not warned:
                log.warning("cannot %s now (%s): trying again for %.0f s", what, _short(error), seconds())
            warned = True
            time.sleep(min(left, pause * _jitter.uniform(0.5, 1.0)))
            pause = min(2 * pause, _LONGEST)
        else:
            if where in _exhausted:
                with _lock:
                    _exhausted.discard(where)
            return result


def seconds() -> float:
    """For how long a request is tried again."""
    try:
        return max(0.0, float(os.environ.get(LIMIT, _DEFAULT)))
    except ValueError:
        return _DEFAULT


def _short(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][-160:]
