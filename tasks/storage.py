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
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from models.config import ConfigError
from tasks.errors import StepError

_COPY = 8 << 20  # bytes held in memory while a file is copied

Listing = list[tuple[str, int]]
Names = list[str]


def clean(path: str) -> str:
    """The path without ``.`` parts; raises ``StepError`` when it could leave the store."""
    if path.startswith(("/", "~")) or "\\" in path or "\0" in path or ".." in path.split("/"):
        raise StepError(f"path {path!r}: must be relative to the store, with / and without ..")
    return "/".join(part for part in path.split("/") if part not in ("", "."))


@contextlib.contextmanager
def atomic(target: Path) -> Iterator[IO[bytes]]:
    """A file open for writing that takes ``target``'s place, synced to disk, when the block ends without error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make a rename in this folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_temporary(name: str) -> bool:
    """Whether a file name is that of a write which has not ended."""
    return name.startswith(".") and name.endswith(".tmp")


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
        from pyarrow import fs

        if self.is_local:
            return fs.LocalFileSystem()
        given: dict[str, Any] = {"connect_timeout": 10, "request_timeout": 60, "allow_delayed_open": True}  # small files in one request
        if region := os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
            given["region"] = region
        if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
            given["endpoint_override"] = endpoint
        return fs.S3FileSystem(**given)

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
                if self.fs.get_file_info(bucket).type == fs.FileType.NotFound:
                    raise ConfigError(f"store {self.uri()}: no bucket {bucket!r}; create it or choose another --store")
            if write:
                probe = f".probe-{uuid.uuid4().hex[:8]}"
                self.write(probe, b"")
                self.delete(probe)
        except (OSError, StepError) as error:
            raise ConfigError(f"store {self.uri()}: {error}; {advice}") from error

    def read(self, path: str) -> bytes:
        """The whole file; ``FileNotFoundError`` when it is not there."""
        with self._speaking("read", path):
            if self.is_local:
                return self.local_path(path).read_bytes()
            with self.fs.open_input_file(self.fs_path(path)) as file:
                return bytes(file.read())

    def write(self, path: str, data: bytes) -> None:
        """Write a file whole, replacing one that is there."""
        with self._speaking("write", path):
            if self.is_local:
                with atomic(self.local_path(path)) as file:
                    file.write(data)
            else:
                with self.fs.open_output_stream(self.fs_path(path)) as stream:
                    stream.write(data)

    def write_if_absent(self, path: str, data: bytes) -> bool:
        """Write a file whole unless it exists; whether it was written.  One of several writers wins.

        Some S3 servers do not make this exclusive: use it for advice, never for correctness.
        """
        with self._speaking("write", path):
            if self.is_local:
                target = self.local_path(path)
                target.parent.mkdir(parents=True, exist_ok=True)
                temporary = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.tmp"
                try:
                    temporary.write_bytes(data)
                    os.link(temporary, target)
                except FileExistsError:
                    return False
                finally:
                    temporary.unlink(missing_ok=True)
                return True
            return self._put_if(path, data, IfNoneMatch="*")

    def swap(self, path: str, old: bytes, new: bytes) -> bool:
        """On S3, replace a file whose content is still ``old``; whether it was replaced."""
        from botocore.exceptions import ClientError

        bucket, key = self.fs_path(path).split("/", 1)
        try:
            answer = self._boto.get_object(Bucket=bucket, Key=key)
        except ClientError:
            return False
        return bool(answer["Body"].read() == old) and self._put_if(path, new, IfMatch=answer["ETag"])

    def _put_if(self, path: str, data: bytes, **condition: str) -> bool:
        from botocore.exceptions import ClientError

        bucket, key = self.fs_path(path).split("/", 1)
        try:
            self._boto.put_object(Bucket=bucket, Key=key, Body=data, **condition)
        except ClientError as error:
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if status in (404, 409, 412):
                return False
            if status == 501:  # the server has no conditional writes: the lease is advice anyway
                self.write(path, data)
                return True
            raise StepError(f"cannot write {self.uri(path)}: {error}") from error
        return True

    def exists(self, path: str) -> bool:
        """Whether a file is there."""
        return self.size(path) is not None

    def size(self, path: str) -> int | None:
        """Size of a file in bytes, None when there is no such file."""
        return self.sizes([path])[path]

    def sizes(self, paths: Sequence[str]) -> dict[str, int | None]:
        """Sizes of many files at once (on S3 requests run in parallel)."""
        if self.is_local:
            found: dict[str, int | None] = {}
            for path in paths:
                local = self.local_path(path)
                found[path] = local.stat().st_size if local.is_file() else None
            return found
        infos = self.fs.get_file_info([self.fs_path(path) for path in paths]) if paths else []
        return {path: info.size if info.is_file else None for path, info in zip(paths, infos)}

    def list(self, prefix: str = "") -> Listing:
        """All files below a folder, as (path, size), sorted; unfinished writes are left out."""
        if self.is_local:
            base, files = self.local_path(), []
            for folder, _, names in os.walk(self.local_path(prefix)):
                for name in names:
                    if not is_temporary(name):
                        file = Path(folder, name)
                        with contextlib.suppress(FileNotFoundError):
                            files.append((file.relative_to(base).as_posix(), file.stat().st_size))
            return sorted(files)
        from pyarrow import fs

        selector = fs.FileSelector(self.fs_path(prefix), recursive=True, allow_not_found=True)
        cut = len(self._base) + 1
        return sorted((info.path[cut:], info.size) for info in self.fs.get_file_info(selector) if info.is_file)

    def folders(self, prefix: str = "") -> Names:
        """Names of the folders directly below a folder, sorted."""
        if self.is_local:
            here = self.local_path(prefix)
            return sorted(p.name for p in here.iterdir() if p.is_dir()) if here.is_dir() else []
        from pyarrow import fs

        selector = fs.FileSelector(self.fs_path(prefix), allow_not_found=True)
        return sorted(info.base_name for info in self.fs.get_file_info(selector) if info.type == fs.FileType.Directory)

    def delete(self, path: str) -> None:
        """Remove a file, or a folder with all below it; nothing happens when it is not there."""
        if not clean(path):
            raise StepError("the whole store is never deleted at once")
        with self._speaking("delete", path):
            if self.is_local:
                local = self.local_path(path)
                if local.is_dir():
                    shutil.rmtree(local)
                else:
                    local.unlink(missing_ok=True)
                return
            info = self.fs.get_file_info(self.fs_path(path))
            if info.is_file:
                self.fs.delete_file(self.fs_path(path))
            elif self.list(path):
                self.fs.delete_dir(self.fs_path(path))

    def upload(self, local: Path, path: str) -> None:
        """Copy a local file into the store."""
        with self._speaking("write", path), open(local, "rb") as source:
            if self.is_local:
                with atomic(self.local_path(path)) as target:
                    shutil.copyfileobj(source, target, _COPY)
                return
            stream = self.fs.open_output_stream(self.fs_path(path))
            while block := source.read(_COPY):  # closed only at the end: an upload cut short leaves no object
                stream.write(block)
            stream.close()

    def download(self, path: str, local: Path) -> None:
        """Copy a file of the store to local disk, where it appears whole; ``FileNotFoundError`` when it is not there."""
        with self._speaking("read", path), self.fs.open_input_file(self.fs_path(path)) as source, atomic(local) as target:
            shutil.copyfileobj(source, target, _COPY)

    @cached_property
    def _boto(self) -> Any:
        try:
            import boto3
        except ImportError as error:
            raise StepError("leases on S3 need the package boto3: install it") from error
        return boto3.client("s3", region_name=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1")

    @contextlib.contextmanager
    def _speaking(self, verb: str, path: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StepError(f"cannot {verb} {self.uri(path)}: {error}") from error
