"""The only door to files that outlive a process: a folder on local disk or a prefix on S3, same verbs.

Paths are relative to the store's root, with ``/``, and cannot leave it.  A file appears whole or not at
all: on local disk by temporary name, fsync and rename, on S3 because an object appears when its upload ends.
S3 is reached through ``pyarrow.fs`` with the usual ``AWS_*`` variables and ``AWS_ENDPOINT_URL``.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.runtime.errors import StepError
from tokenloom.tasks.runtime.surroundings import proxied
from tokenloom.tasks.store.buckets import s3_file_system, sizes_of
from tokenloom.tasks.store.conditional import ConditionalWrites
from tokenloom.tasks.store.files import atomic, clean, create, files_below, is_temporary, sync_folder
from tokenloom.tasks.store.retry import retry

__all__ = ["Storage", "atomic", "clean", "is_temporary", "sync_folder"]

STAGING = ".staging"  # folder of what waits for its artifact
_COPY = 8 << 20  # bytes held in memory while a file is copied

Listing = list[tuple[str, int]]
Names = list[str]
T = TypeVar("T")


class Storage:
    """A folder or a bucket's prefix.

    Args:
        uri: ``path``, ``/abs/path``, ``file:///…`` or ``s3://bucket/prefix``.

    Raises:
        ConfigError: a scheme that is not supported.
    """

    def __init__(self, uri: str) -> None:
        parts = urlsplit(uri)
        if parts.scheme == "s3":
            if not parts.netloc:
                raise ConfigError(f"store {uri!r}: give s3://bucket/prefix")
            if parts.query or parts.fragment:
                raise ConfigError(f"store {uri!r}: a prefix cannot hold '?' or '#'")
            self.is_local = False
            self._base = "/".join([parts.netloc, *[p for p in parts.path.split("/") if p]])
        elif parts.scheme in ("", "file"):
            path = unquote(parts.path) if parts.scheme else uri
            if not path:
                raise ConfigError(f"store {uri!r}: give a folder or s3://bucket/prefix")
            self.is_local = True
            self._base = str(Path(path).expanduser().absolute())
        else:
            raise ConfigError(f"store {uri!r}: scheme {parts.scheme!r} is not supported; use a path, file:// or s3://")

    def __repr__(self) -> str:
        return f"Storage({self.uri('')!r})"

    @cached_property
    def fs(self) -> Any:
        """The ``pyarrow.fs`` file system; paths in it are ``fs_path(path)``."""
        if self.is_local:
            from pyarrow import fs

            return fs.LocalFileSystem()
        return s3_file_system()

    def fs_path(self, path: str) -> str:
        """The path inside ``fs``."""
        path = clean(path)
        return f"{self._base}/{path}" if path else self._base

    def uri(self, path: str = "") -> str:
        """Absolute address of a path: an absolute file path on local disk, ``s3://…`` otherwise."""
        return self.fs_path(path) if self.is_local else f"s3://{self.fs_path(path)}"

    def local_path(self, path: str = "") -> Path:
        """The path on local disk (local stores only)."""
        if not self.is_local:
            raise StepError(f"{self.uri(path)} is not on local disk")
        return Path(self.fs_path(path))

    def check(self, write: bool = False) -> None:
        """See that the store can be used.

        Args:
            write: also see that a file can be written (writes and removes one).

        Raises:
            ConfigError: a file stands in its place, the bucket is missing, or permission is denied.
        """
        advice = "choose another --store or fix its permissions"
        if self.is_local:
            nearest = Path(self._base)
            while not nearest.exists() and nearest != nearest.parent:
                nearest = nearest.parent
            if not nearest.is_dir():
                raise ConfigError(f"store {self.uri()}: {nearest} is a file, not a folder; choose another --store")
            if not os.access(nearest, os.R_OK | os.X_OK | (os.W_OK if write else 0)):
                raise ConfigError(f"store {self.uri()}: no permission on {nearest}; {advice}")
        try:
            if not self.is_local:
                from pyarrow import fs

                bucket = self._base.split("/")[0]
                if retry(lambda: self.fs.get_file_info(bucket), f"look at {self.uri()}", self._base).type == fs.FileType.NotFound:
                    raise ConfigError(f"store {self.uri()}: no bucket {bucket!r}; create it or choose another --store")
            if write:
                probe = f".probe-{uuid.uuid4().hex[:8]}"
                self.write(probe, b"")
                self.delete(probe)
        except (OSError, StepError) as error:
            via = self._proxied() if isinstance(error, OSError) else ""  # else it is said already
            raise ConfigError(f"store {self.uri()}: {error}{via}; {advice}") from error

    def read(self, path: str) -> bytes:
        """The whole file; ``FileNotFoundError`` when it is not there."""

        def remote() -> bytes:
            with self.fs.open_input_file(self.fs_path(path)) as file:
                return bytes(file.read())

        return self._do("read", path, lambda: self.local_path(path).read_bytes(), remote)

    def write(self, path: str, data: bytes) -> None:
        """Write a file whole, replacing one that is there."""

        def local() -> None:
            with atomic(self.local_path(path)) as file:
                file.write(data)

        def remote() -> None:
            with self.fs.open_output_stream(self.fs_path(path)) as stream:
                stream.write(data)

        self._do("write", path, local, remote)

    def write_if_absent(self, path: str, data: bytes) -> bool:
        """Write a file whole unless it exists; whether it was written.  One of several writers wins.

        Some S3 servers do not make this exclusive: use it for advice, never for correctness.  After a lost connection the answer may
        be no although the file is this writer's own.
        """

        done = self._do("write", path, lambda: create(self.local_path(path), data), lambda: self._conditional.create(self._key(path), data))
        return self._confirmed(path, data, done)

    def swap(self, path: str, old: bytes, new: bytes) -> bool:
        """On S3, replace a file whose content is still ``old``; whether it was replaced (see ``write_if_absent`` on lost connections)."""
        done = self._do("write", path, lambda: False, lambda: self._conditional.swap(self._key(path), old, new))
        return self._confirmed(path, new, done)

    def _confirmed(self, path: str, data: bytes, done: bool | None) -> bool:
        if done is None:  # the server has no conditional writes: the lease is advice anyway
            self.write(path, data)
        return done is not False

    def _key(self, path: str) -> str:
        return self.fs_path(path).split("/", 1)[1]

    def exists(self, path: str) -> bool:
        """Whether a file is there."""
        return self.size(path) is not None

    def size(self, path: str) -> int | None:
        """Size of a file in bytes, None when there is no such file."""
        return self.sizes([path])[path]

    def sizes(self, paths: Sequence[str]) -> dict[str, int | None]:
        """Sizes of many files at once (on S3 by lists of their folders)."""

        def local() -> dict[str, int | None]:
            found: dict[str, int | None] = {}
            for path in paths:
                file = self.local_path(path)
                found[path] = file.stat().st_size if file.is_file() else None
            return found

        def remote() -> dict[str, int | None]:
            return dict(zip(paths, sizes_of(self.fs, [self.fs_path(path) for path in paths])))

        return self._do("look at", paths[0] if paths else "", local, remote)

    def list(self, prefix: str = "") -> Listing:
        """All files below a folder, as (path, size), sorted; unfinished writes are left out."""

        def local() -> Listing:
            return files_below(self.local_path(), self.local_path(prefix))

        cut = len(self._base) + 1
        return self._do(
            "list", prefix, local, lambda: sorted((info.path[cut:], info.size) for info in self._below(prefix, True) if info.is_file)
        )

    def folders(self, prefix: str = "") -> Names:
        """Names of the folders directly below a folder, sorted."""

        def local() -> Names:
            here = self.local_path(prefix)
            return sorted(p.name for p in here.iterdir() if p.is_dir()) if here.is_dir() else []

        def remote() -> Names:
            from pyarrow import fs

            return sorted(info.base_name for info in self._below(prefix, False) if info.type == fs.FileType.Directory)

        return self._do("list", prefix, local, remote)

    def _below(self, prefix: str, recursive: bool) -> Any:
        from pyarrow import fs

        return self.fs.get_file_info(fs.FileSelector(self.fs_path(prefix), recursive=recursive, allow_not_found=True))

    def delete(self, path: str) -> None:
        """Remove a file, or a folder with all below it; nothing happens when it is not there."""
        if not clean(path):
            raise StepError("the whole store is never deleted at once")

        def local() -> None:
            here = self.local_path(path)
            if here.is_dir():
                shutil.rmtree(here)
            else:
                here.unlink(missing_ok=True)

        def remote() -> None:
            if self.fs.get_file_info(self.fs_path(path)).is_file:
                with contextlib.suppress(FileNotFoundError):
                    self.fs.delete_file(self.fs_path(path))
            elif any(info.is_file for info in self._below(path, True)):
                self.fs.delete_dir(self.fs_path(path))

        self._do("delete", path, local, remote)

    def move(self, path: str, target: str) -> None:
        """Give a file another path, replacing what is there; on S3 a copy and a removal.  Nothing happens when it is not there."""

        def local() -> None:
            with contextlib.suppress(FileNotFoundError):
                self.local_path(target).parent.mkdir(parents=True, exist_ok=True)
                os.replace(self.local_path(path), self.local_path(target))

        def remote() -> None:
            if self.fs.get_file_info(self.fs_path(path)).is_file:
                self.fs.copy_file(self.fs_path(path), self.fs_path(target))
                self.fs.delete_file(self.fs_path(path))

        self._do("move", path, local, remote)

    def copy(self, path: str, target: str) -> None:
        """A second file of the same content, replacing what is there (on local disk one content under two names); ``FileNotFoundError``."""

        def local() -> None:
            here, there = self.local_path(path), self.local_path(target)
            there.parent.mkdir(parents=True, exist_ok=True)
            aside = there.with_name(f".{there.name}.{uuid.uuid4().hex[:8]}.tmp")
            try:
                os.link(here, aside)
            except FileNotFoundError:
                raise
            except OSError:  # a file system without links
                shutil.copyfile(here, aside)
            os.replace(aside, there)

        self._do("write", target, local, lambda: self.fs.copy_file(self.fs_path(path), self.fs_path(target)))

    def upload(self, local: Path, path: str) -> None:
        """Copy a local file into the store."""

        def copy() -> None:
            with open(local, "rb") as source, atomic(self.local_path(path)) as target:
                shutil.copyfileobj(source, target, _COPY)

        def send() -> None:
            with open(local, "rb") as source:
                stream = self.fs.open_output_stream(self.fs_path(path))
                while block := source.read(_COPY):
                    stream.write(block)
                stream.close()
            # A stream that is dropped half-way ends its upload all the same: only an object of the whole size counts.
            if (there := self.fs.get_file_info(self.fs_path(path)).size) != (size := local.stat().st_size):
                raise ConnectionError(f"{there} of {size} bytes have arrived")

        self._do("write", path, copy, send)

    def download(self, path: str, local: Path) -> None:
        """Copy a file of the store to local disk, where it appears whole; ``FileNotFoundError`` when it is not there."""

        def copy() -> None:
            with self.fs.open_input_file(self.fs_path(path)) as source, atomic(local) as target:
                shutil.copyfileobj(source, target, _COPY)

        self._do("read", path, copy, copy)

    @cached_property
    def _conditional(self) -> ConditionalWrites:
        return ConditionalWrites(self._base.split("/")[0])

    def _do(self, verb: str, path: str, local: Callable[[], T], remote: Callable[[], T]) -> T:
        """The result of one request; on S3 it is repeated while its error may pass."""
        try:
            return local() if self.is_local else retry(remote, f"{verb} {self.uri(path)}", self._base)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StepError(f"cannot {verb} {self.uri(path)}: {error}{self._proxied()}") from error

    def _proxied(self) -> str:
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "https://s3.amazonaws.com"
        return "" if self.is_local else proxied(endpoint)
