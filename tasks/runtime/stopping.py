"""Stopping a training: signals that the driver notes, and the file through which its workers hear of them."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tokenloom.tasks.store.storage import Storage

#: In the artifact's folder while its training is asked to stop.
STOP_FILE = "stop.json"


def asked_to_stop(storage: Storage, folder: str) -> Callable[[], bool]:
    """Whether a stop file is there, looked at now and then; for the worker that decides for all."""
    every, last, asked = (0.25 if storage.is_local else 3.0), 0.0, False

    def stop() -> bool:
        nonlocal last, asked
        if not asked and time.monotonic() - last >= every:
            last = time.monotonic()
            asked = storage.exists(f"{folder}/{STOP_FILE}")
        return asked

    return stop


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Note SIGTERM and SIGINT instead of dying of them; a second one acts as it would have."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def note(number: int, frame: Any) -> None:
        if asked:
            for each, handler in before.items():
                signal.signal(each, handler)
            signal.raise_signal(number)
        asked.append(number)

    for number in before:
        signal.signal(number, note)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
