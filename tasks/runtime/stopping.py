"""Stopping a training: signals that the driver notes, and the file through which its workers hear of them."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tokenloom.tasks.store.storage import Storage

#: In the artifact's folder while its training is to stop.
STOP_FILE = "stop.json"


def stop_requested(storage: Storage, folder: str) -> Callable[[], bool]:
    """Whether a stop file is there, looked at now and then; for the worker that decides for all."""
    every, last, requested = (0.25 if storage.is_local else 3.0), 0.0, False

    def stop() -> bool:
        nonlocal last, requested
        if not requested and time.monotonic() - last >= every:
            last = time.monotonic()
            requested = storage.exists(f"{folder}/{STOP_FILE}")
        return requested

    return stop


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Note SIGTERM and SIGINT instead of dying of them; a second one acts as it would have."""
    requested: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield requested
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def note(number: int, frame: Any) -> None:
        if requested:
            for each, handler in before.items():
                signal.signal(each, handler)
            signal.raise_signal(number)
        requested.append(number)

    for number in before:
        signal.signal(number, note)
    try:
        yield requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
