"""A file of a source that lies elsewhere (``s3://``, ``gs://``, ``https://``, ``hf://``), with the verbs that ``Path`` has for one here.

Buckets are reached through ``pyarrow.fs``, with the usual variables of their clients; the rest through ``fsspec`` behind its wrapper of
pyarrow.  ``s3://anonymous@bucket/…`` and ``gs://anonymous@bucket/…`` are asked without credentials.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache
from hashlib import sha256
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, NamedTuple

from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.sources.blocks import BlockFile
from tokenloom.tasks.store.buckets import gs_file_system, s3_file_system

_ADDRESS = re.compile(r"(s3|gs|https?|hf)://(anonymous@)?(.*)", re.DOTALL)
#: Nanoseconds within which a bucket may give two contents of one size the same time.
_RECENT = 2_000_000_000
#: Variables that say where and who; another value means another file system.
_ENVIRONMENT = (
    *("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID"),
    *("STORAGE_EMULATOR_HOST", "HF_ENDPOINT", "HF_TOKEN"),
)
#: Those that list what is below an address.
LISTED = ("s3", "gs", "hf")


class State(NamedTuple):
    """What is known of a file without reading it, under the names of ``os.stat``; ``st_ctime_ns`` stands for what else changes with it."""

    st_size: int
    st_mtime_ns: int
    st_ctime_ns: int


@dataclass(frozen=True, slots=True)
class Far:
    """A file or folder elsewhere.

    ``path`` is what follows the scheme; ``size`` (bytes), ``mtime`` (ns) and ``tag`` (of its content or revision) are those of the listing
    that it comes from, None and empty before.
    """

    scheme: str
    path: str
    anonymous: bool = False
    size: int | None = field(default=None, compare=False)
    mtime: int = field(default=0, compare=False)
    tag: str = field(default="", compare=False)

    @classmethod
    def parse(cls, address: str) -> Far:
        """The place of an address; raises ``ConfigError`` for one without a bucket, host or repository."""
        match = _ADDRESS.fullmatch(address)
        if match is None or not match[3].strip("/") or match[3].startswith("/"):
            raise ConfigError(f"{address!r} is no address: write s3://BUCKET/…, gs://BUCKET/…, https://HOST/… or hf://OWNER/NAME")
        return cls(match[1], match[3].strip("/"), bool(match[2]))

    def __str__(self) -> str:
        return f"{self.scheme}://{'anonymous@' if self.anonymous else ''}{self.path}"

    def __truediv__(self, other: str | PurePosixPath) -> Far:
        parts: list[str] = []
        for part in f"{self.path}/{other}".split("/"):
            parts = parts[:-1] if part == ".." else [*parts, part] if part not in ("", ".") else parts
        return Far(self.scheme, "/".join(parts), self.anonymous)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """The end of the name, with its dot."""
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> Far:
        """The folder around it."""
        return Far(self.scheme, self.path.rpartition("/")[0], self.anonymous)

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of the path."""
        return tuple(self.path.split("/"))

    def as_posix(self) -> str:
        """The whole address."""
        return str(self)

    def relative_to(self, base: Far) -> PurePosixPath:
        """The path below a folder."""
        return PurePosixPath(self.path[len(base.path) + 1 :])

    def with_suffix(self, suffix: str) -> Far:
        """The file beside it with another end, of which nothing is known."""
        return Far(self.scheme, str(PurePosixPath(self.path).with_suffix(suffix)), self.anonymous)

    @property
    def there(self) -> str:
        """The path as its file system takes it."""
        return str(self) if self.scheme.startswith("http") else f"datasets/{self.path}" if self.scheme == "hf" else self.path

    @property
    def recent(self) -> bool:
        """Whether it was written when it was listed, so that another content may have the same time."""
        return self.tag.startswith("recent")

    def stat(self) -> State:
        """Size and times; raises ``FileNotFoundError``."""
        known = self if self.size is not None else located(self)
        assert known.size is not None
        return State(known.size, known.mtime, int(sha256(known.tag.encode()).hexdigest()[:15], 16) if known.tag else 0)

    def native(self) -> Any:
        """The file, open for reading at any place, as pyarrow has it."""
        return file_system(self).open_input_file(self.there)

    def open(self, mode: str = "rb") -> BlockFile:
        """The file, open for reading; what is near each other is fetched in one request."""
        assert mode == "rb"
        size = self.size if self.size is not None else self.stat().st_size
        return BlockFile((self.scheme, self.path, self.mtime, self.tag), size, self.native)

    def read_bytes(self) -> bytes:
        """The whole content."""
        with self.native() as file:
            return bytes(file.read())

    def is_symlink(self) -> bool:
        """No file elsewhere is a link."""
        return False


Place = Path | Far


def relative(path: Place, base: Place) -> PurePath:
    """The path of a file below a folder, both here or both elsewhere."""
    if isinstance(path, Far):
        assert isinstance(base, Far)
        return path.relative_to(base)
    assert isinstance(base, Path)
    return path.relative_to(base)


def placed(where: str) -> Place:
    """A place on this machine, absolute, or elsewhere."""
    return Far.parse(where) if _ADDRESS.fullmatch(where) else Path(where).expanduser().absolute()


def file_system(place: Far) -> Any:
    """The ``pyarrow.fs`` file system of a place; one in a process for each way of asking.

    Raises:
        ConfigError: a package is missing.
    """
    given = tuple(os.environ.get(name) for name in _ENVIRONMENT)
    return _file_system(place.scheme, place.anonymous, os.getpid(), given)


@lru_cache(maxsize=8)
def _file_system(scheme: str, anonymous: bool, _process: int, _given: tuple[str | None, ...]) -> Any:
    from pyarrow import fs

    if scheme == "s3":
        return s3_file_system(anonymous=anonymous)
    if scheme == "gs":
        return gs_file_system(anonymous)
    try:
        import fsspec

        options: dict[str, Any] = {"skip_instance_cache": True}
        if scheme == "hf":
            options |= {"endpoint": os.environ.get("HF_ENDPOINT")}
        plain = fsspec.filesystem("hf" if scheme == "hf" else "http", **options)
    except ImportError as error:
        raise ConfigError(f"data.source: {scheme}:// needs a package that is not installed: {error}") from error
    return fs.PyFileSystem(fs.FSSpecHandler(plain))


def located(place: Far) -> Far:
    """A file with its size, time and tag; raises ``FileNotFoundError``."""
    if place.scheme in ("s3", "gs"):
        info = file_system(place).get_file_info(place.there)
        if not info.is_file:
            raise FileNotFoundError(2, "No such file", str(place))
        return _of_bucket(place, info)
    return _of_spec(place, file_system(place).handler.fs.info(place.there))


def _of_bucket(place: Far, info: Any) -> Far:
    """The same from what ``pyarrow.fs`` says of a file."""
    mtime, now = info.mtime_ns or 0, time.time_ns()
    return replace(place, size=info.size, mtime=mtime, tag=f"recent {now}" if now - mtime < _RECENT else "")


def again(places: Iterable[Far]) -> list[Far | None]:
    """Files as they are now; None of those that are gone.  Those of a revision, once looked at, stay as they are."""
    listed = list(places)
    found: dict[Far, Far | None] = {}
    for way in dict.fromkeys((each.scheme, each.anonymous) for each in listed):
        mine = [each for each in listed if (each.scheme, each.anonymous) == way]
        found |= dict(zip(mine, _again(mine)))
    return [found[each] for each in listed]


def _again(listed: list[Far]) -> list[Far | None]:
    """The same of files that are asked for in one way."""
    if listed[0].scheme in ("s3", "gs"):
        infos = file_system(listed[0]).get_file_info([each.there for each in listed])
        return [_of_bucket(each, info) if info.is_file else None for each, info in zip(listed, infos)]
    if listed[0].scheme == "hf" and all(each.size is not None for each in listed):
        return list(listed)  # a revision does not change
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(_or_none, listed))


def _or_none(place: Far) -> Far | None:
    try:
        return located(place)
    except FileNotFoundError:
        return None


def _of_spec(place: Far, info: dict[str, Any]) -> Far:
    """The same from what ``fsspec`` says of a file."""
    if info.get("type") == "directory":
        raise FileNotFoundError(2, "Is a folder", str(place))
    names = ("blob_id", "ETag", "Last-Modified", "Content-MD5", "Digest")
    tag = "\0".join(f"{name}={info[name]}" for name in names if info.get(name))
    if lfs := info.get("lfs"):
        tag += f"\0{lfs['sha256']}"
    if (size := info.get("size")) is None:
        with place.native() as file:  # a server that does not say how much it sends
            size = len(file.read())
    return replace(place, size=int(size), tag=tag)


def below(folder: Far, deep: bool = True) -> list[Far]:
    """All files below a folder (not ``deep``: directly in it), sorted by path; none where there is no such folder.

    Raises:
        ConfigError: addresses of this scheme cannot be listed.
    """
    from pyarrow import fs

    if folder.scheme not in LISTED:
        raise ConfigError(f"{folder}: what lies below an address of {folder.scheme}:// cannot be listed; give files, or a manifest of them")
    if folder.scheme == "hf":
        try:
            found = file_system(folder).handler.fs.find(folder.there, detail=True)
        except FileNotFoundError:
            return []
        return [_of_spec(Far("hf", path.removeprefix("datasets/")), info) for path, info in sorted(found.items())]
    infos = file_system(folder).get_file_info(fs.FileSelector(folder.there, recursive=deep, allow_not_found=True))
    files = [_of_bucket(Far(folder.scheme, info.path, folder.anonymous), info) for info in infos if info.is_file]
    return sorted(files, key=lambda file: file.path)
