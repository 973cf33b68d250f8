"""Reading a file elsewhere by blocks: what is near each other comes in one request, and a few blocks stay for whoever reads on."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from threading import Lock
from typing import Any

BLOCK = 4 << 20  # bytes
_KEPT = 16  # blocks of all files together


class _Blocks:
    """Blocks of files of this process; one that is asked for twice at once is fetched once."""

    def __init__(self, most: int) -> None:
        self._most, self._lock = most, Lock()
        self._found: OrderedDict[Hashable, Future[bytes]] = OrderedDict()

    def get(self, key: Hashable, fetch: Callable[[], bytes]) -> bytes:
        with self._lock:
            waiting = self._found.get(key)
            if mine := waiting is None:
                waiting = self._found[key] = Future()
            assert waiting is not None
            self._found.move_to_end(key)
            while len(self._found) > self._most:
                self._found.popitem(last=False)
        if mine:
            try:
                waiting.set_result(fetch())
            except BaseException as error:
                with self._lock:
                    self._found.pop(key, None)
                waiting.set_exception(error)
        return waiting.result()


_blocks = _Blocks(_KEPT)


class BlockFile(io.RawIOBase):
    """A file elsewhere, open for reading.

    Args:
        key: what it is, with what changes when its content does.
        size: in bytes.
        native: opens it, as pyarrow has it.
    """

    def __init__(self, key: Hashable, size: int, native: Callable[[], Any]) -> None:
        super().__init__()
        self._key, self._size, self._native = key, size, native
        self._at, self._opened = 0, None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def read(self, size: int = -1) -> bytes:
        """Bytes from where it stands; the whole of what is asked for, unless the file ends."""
        end = self._size if size is None or size < 0 else min(self._size, self._at + size)
        parts = []
        while self._at < end:
            number, start = divmod(self._at, BLOCK)
            part = self._block(number)[start : start + end - self._at]
            if not part:
                break  # it is shorter than it was
            parts.append(part)
            self._at += len(part)
        return b"".join(parts)

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _block(self, number: int) -> bytes:
        def fetch() -> bytes:
            if self._opened is None:
                self._opened = self._native()
            assert self._opened is not None
            return bytes(self._opened.read_at(min(BLOCK, self._size - number * BLOCK), number * BLOCK))

        return _blocks.get((self._key, number), fetch)

    def close(self) -> None:
        if not self.closed and self._opened is not None:
            self._opened.close()
        super().close()
