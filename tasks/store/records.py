"""The nouns of the store: references, steps, outcomes and records, with the hashes that make them trustworthy."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from tokenloom.models.core.config import ConfigError, canonical
from tokenloom.tasks.runtime.errors import ArtifactError, OldRecordError
from tokenloom.tasks.store import manifests
from tokenloom.tasks.store.storage import Storage

KINDS = ("dataset", "tokenizer", "tokens", "generator", "density", "features", "evaluation", "registration")
RECORD = "record.json"
#: Number of the form of records, raised when older versions can no longer read what is written; the first form had none.
FORMAT = 3
_OLDEST = 2  # that is read as it is; it holds all its shards itself
_LIBRARIES = ("tokenloom", "torch", "numpy", "pyarrow", "ray", "mlflow", "prefect", "pillow")


def canonical_json(value: Any) -> bytes:
    """The one JSON form of plain data; raises ``ConfigError`` for a value that has none."""
    return json.dumps(canonical(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def sha256_of(data: bytes | Path) -> str:
    """SHA-256 of bytes or of a local file, as hex."""
    if isinstance(data, bytes):
        return hashlib.sha256(data).hexdigest()
    with open(data, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sealed(content: Mapping[str, Any]) -> bytes:
    """Plain data as JSON that carries its own hash; ``unsealed`` is the inverse."""
    text = json.dumps(dict(content), sort_keys=True, allow_nan=False)
    return json.dumps({"content": json.loads(text), "sha256": sha256_of(text.encode())}, sort_keys=True).encode()


def unsealed(data: bytes) -> dict[str, Any]:
    """The content of sealed JSON; raises ``ValueError`` when a single byte is not as it was written."""
    envelope = json.loads(data)
    content = envelope.get("content") if isinstance(envelope, dict) else None
    if not isinstance(content, dict) or sealed(content) != data:
        raise ValueError("its own hash is wrong")
    return content


@dataclass(frozen=True)
class Artifact:
    """A reference: small, plain, safe to pass anywhere.  ``uri`` is the absolute address of the folder."""

    kind: str
    name: str
    fingerprint: str
    uri: str

    @property
    def id(self) -> str:
        """``<name>-<fingerprint>``."""
        return f"{self.name}-{self.fingerprint}"

    @property
    def folder(self) -> str:
        """Folder relative to the store."""
        return f"{self.kind}/{self.id}"

    def to_dict(self) -> dict[str, str]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, str]) -> Artifact:
        """Inverse of ``to_dict``."""
        return cls(data["kind"], data["name"], data["fingerprint"], data["uri"])


@dataclass(frozen=True)
class StepSpec:
    """What to make: the identity part of the configuration and the inputs decide the fingerprint, the name does not.

    ``version`` is raised when the step's code changes what it makes; ``notes`` are recorded, not fingerprinted.
    """

    step: str
    version: int
    kind: str
    name: str
    config: dict[str, Any]
    inputs: dict[str, Artifact] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"artifact kind {self.kind!r}: there are {', '.join(KINDS)}")
        if not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}", self.name):
            raise ConfigError(f"artifact name {self.name!r}: use letters, digits, _, . and -, at most 63")

    @functools.cached_property
    def fingerprint(self) -> str:
        """12 hex digits over step, version, config and the inputs' fingerprints."""
        inputs = {role: artifact.fingerprint for role, artifact in self.inputs.items()}
        return sha256_of(canonical_json([self.step, self.version, self.config, inputs]))[:12]

    @property
    def folder(self) -> str:
        """Folder relative to the store."""
        return f"{self.kind}/{self.name}-{self.fingerprint}"


@dataclass(frozen=True)
class Outcome:
    """What ``execute`` did; ``metrics`` are the recorded ones, also of a cached artifact; ``told`` is a line for people."""

    artifact: Artifact
    status: Literal["cached", "ran"]
    seconds: float
    metrics: dict[str, Any]
    told: str = ""


@dataclass(frozen=True)
class Record:
    """A parsed ``record.json``; ``files`` are {path relative to the store, size, sha256, …}.

    Of one with a ``manifest``, ``files`` and ``notes["shards"]`` are read when they are looked into first.
    """

    artifact: Artifact
    step: str
    version: int
    config: dict[str, Any]
    inputs: dict[str, Artifact]
    files: Sequence[dict[str, Any]]
    metrics: dict[str, Any]
    versions: dict[str, str]
    commit: str | None
    seconds: float
    created: str
    notes: dict[str, Any]
    format: int = FORMAT
    manifest: dict[str, Any] | None = None  # {path, size, sha256, shards} of the list of its shards, where they are many

    def to_bytes(self) -> bytes:
        """JSON with the SHA-256 of everything else in it; without what stands in its ``manifest``."""
        plain = dict(self.__dict__) | {"artifact": asdict(self.artifact), "inputs": {k: asdict(a) for k, a in self.inputs.items()}}
        if self.manifest is None:
            plain = {k: v for k, v in plain.items() if k != "manifest"} | {"format": _OLDEST}
        return _record_bytes(json.loads(json.dumps(plain, allow_nan=False)))

    def divided(self) -> tuple[Record, bytes | None]:
        """The record that refers to a manifest of its shards, with that, where there are many; else itself."""
        if (parts := manifests.split(self.files, self.notes)) is None:
            return self, None
        files, data = parts
        path, shards = f"{self.artifact.folder}/{manifests.NAME}", self.notes["shards"]
        noted = {"path": path, "sha256": sha256_of(data), "size": len(data), "shards": len(shards)}
        notes = {name: value for name, value in self.notes.items() if name != "shards"}
        return replace(self, files=files, notes=notes, manifest=noted), data

    @classmethod
    def from_bytes(cls, data: bytes, where: str, storage: Storage) -> Record:
        """Parse and check; addresses follow the store, wherever it has been moved.

        Raises:
            ArtifactError: not JSON, a field is missing, or its own hash is wrong.
            OldRecordError: an older version wrote it, whose fingerprints were others.
            ConfigError: a newer version wrote it.
        """
        try:
            plain = json.loads(data)
            plain.pop("sha256")
            if data != _record_bytes(plain):  # to the byte, blanks too
                raise ArtifactError(f"{where}: the record's own hash is wrong: the file was changed or damaged")
            if (number := plain.get("format", 1)) > FORMAT:
                raise ConfigError(f"{where}: format {number} is newer than {FORMAT}, which this version reads: update Tokenloom")
            if number < _OLDEST:
                raise OldRecordError(f"{where}: an older version made this, whose fingerprints were others")
            known = {k: plain[k] for k in cls.__dataclass_fields__ if k != "manifest"}
            if (manifest := plain.get("manifest")) is not None:
                folder = _at(storage, plain["artifact"]).folder
                listed = {**manifest, "path": f"{folder}/{manifests.NAME}"}

                def read() -> bytes:
                    return read_listed(storage, listed["path"], listed["sha256"])

                own = {name: listed[name] for name in ("path", "size", "sha256")}
                files, shards = manifests.joined([*known["files"], own], manifest["shards"], read, where)
                known |= {"files": files, "notes": known["notes"] | {"shards": shards}, "manifest": listed}
            return cls(
                **known
                | {
                    "artifact": _at(storage, plain["artifact"]),
                    "inputs": {role: _at(storage, a) for role, a in plain["inputs"].items()},
                }
            )
        except ConfigError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(f"{where}: not a record: {error}") from error


def _record_bytes(data: dict[str, Any]) -> bytes:
    return json.dumps({**data, "sha256": sha256_of(canonical_json(data))}, indent=1, sort_keys=True).encode()


def read_listed(storage: Storage, path: str, sha256: str) -> bytes:
    """A manifest's bytes, which have this hash; ``ArtifactError`` where it is missing or damaged."""
    try:
        data = storage.read(path)
    except FileNotFoundError as error:
        raise ArtifactError(f"{storage.uri(path)}: missing; run again to make it anew") from error
    if sha256_of(data) != sha256:
        raise ArtifactError(f"{storage.uri(path)}: not as it was recorded; run again to make it anew")
    return data


def _at(storage: Storage, data: Mapping[str, str]) -> Artifact:
    artifact = Artifact.from_dict(data)
    return Artifact(artifact.kind, artifact.name, artifact.fingerprint, storage.uri(artifact.folder))


@functools.cache
def library_versions() -> dict[str, str]:
    """Versions of Python and the libraries that shape results."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in _LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


@functools.cache
def code_commit() -> str | None:
    """The commit of the code that runs, if it is a checkout, with ``+changes`` where its files differ from that commit."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None
    # Where a hook or another program has set them, git would speak of another checkout.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(here), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=5, env=environment, check=True).stdout.strip()

    with contextlib.suppress(OSError, subprocess.SubprocessError):
        commit = git("rev-parse", "HEAD")
        return f"{commit}+changes" if git("status", "--porcelain", "--untracked-files=no") else commit
    return None
