"""Artifacts: what a step makes, once, under a fingerprint of everything that shapes it.

An artifact is a folder ``<kind>/<name>-<fingerprint>/`` of the store.  ``record.json`` is written last and
completes it: no record, no artifact.  ``Store.execute`` runs a step unless its artifact is there and whole.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from models.config import ConfigError, canonical
from tasks.errors import ArtifactError
from tasks.leases import file_lock, file_lock_held, object_lease, object_lease_held
from tasks.storage import Storage

log = logging.getLogger(__name__)

KINDS = ("dataset", "tokenizer", "tokens", "generator", "features", "evaluation", "registration")
RECORD = "record.json"
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
class Step:
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
    """What ``execute`` did; ``metrics`` are the recorded ones, also of a cached artifact."""

    artifact: Artifact
    status: Literal["cached", "ran"]
    seconds: float
    metrics: dict[str, Any]


@dataclass(frozen=True)
class Record:
    """A parsed ``record.json``; ``files`` are {path relative to the store, size, sha256, …}."""

    artifact: Artifact
    step: str
    version: int
    config: dict[str, Any]
    inputs: dict[str, Artifact]
    files: list[dict[str, Any]]
    metrics: dict[str, Any]
    versions: dict[str, str]
    commit: str | None
    seconds: float
    created: str
    notes: dict[str, Any]

    def to_bytes(self) -> bytes:
        """JSON with the SHA-256 of everything else in it."""
        data = json.loads(json.dumps(asdict(self), allow_nan=False))
        return json.dumps({**data, "sha256": sha256_of(canonical_json(data))}, indent=1, sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, data: bytes, where: str, storage: Storage) -> Record:
        """Parse and check; addresses follow the store, wherever it has been moved.

        Raises:
            ArtifactError: not JSON, a field is missing, or its own hash is wrong.
        """
        try:
            plain = json.loads(data)
            stated = plain.pop("sha256")
            if stated != sha256_of(canonical_json(plain)):
                raise ArtifactError(f"{where}: the record's own hash is wrong: the file was changed or damaged")
            known = {k: plain[k] for k in cls.__dataclass_fields__}
            return cls(
                **known
                | {
                    "artifact": _at(storage, plain["artifact"]),
                    "inputs": {role: _at(storage, a) for role, a in plain["inputs"].items()},
                }
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{where}: not a record: {error}") from error


def _at(storage: Storage, data: Mapping[str, str]) -> Artifact:
    artifact = Artifact.from_dict(data)
    return Artifact(artifact.kind, artifact.name, artifact.fingerprint, storage.uri(artifact.folder))


class Work:
    """One execution of a step: where its body puts files and leaves markers to resume from.

    Attributes:
        scratch: local folder that survives a crash and is removed when the artifact is complete.
        notes: recorded with the artifact; fill it in the body.
    """

    def __init__(self, step: Step, storage: Storage, scratch: Path) -> None:
        self.step = step
        self.storage = storage
        self.folder = step.folder
        self.uri = storage.uri(step.folder)
        self.scratch = scratch
        self.notes: dict[str, Any] = dict(step.notes)
        self.files: dict[str, dict[str, Any]] = {}
        scratch.mkdir(parents=True, exist_ok=True)

    def put(self, path: str, data: bytes, **extra: Any) -> dict[str, Any]:
        """Write a file of the artifact (path relative to its folder); returns its entry in the record."""
        self.storage.write(f"{self.folder}/{path}", data)
        return self.add_file(f"{self.folder}/{path}", size=len(data), sha256=sha256_of(data), **extra)

    def put_file(self, local: Path, path: str, **extra: Any) -> dict[str, Any]:
        """Copy a local file into the artifact."""
        self.storage.upload(local, f"{self.folder}/{path}")
        return self.add_file(f"{self.folder}/{path}", size=local.stat().st_size, sha256=sha256_of(local), **extra)

    def add_file(self, path: str, size: int | None = None, sha256: str | None = None, **extra: Any) -> dict[str, Any]:
        """Register a file that is in the store (path relative to the store), perhaps in another artifact's folder.

        Raises:
            ArtifactError: it is not there.
        """
        if size is None or sha256 is None:
            try:
                data: bytes | Path = self.storage.local_path(path) if self.storage.is_local else self.storage.read(path)
                size, sha256 = self.storage.size(path), sha256_of(data)
            except FileNotFoundError as error:
                raise ArtifactError(f"{self.storage.uri(path)}: missing") from error
        self.files[path] = {"path": path, "size": size, "sha256": sha256, **extra}
        return self.files[path]

    def done(self, marker: str) -> dict[str, Any] | None:
        """The payload of a marker whose files (``payload["files"]``, as ``add_file`` returns them) are still whole."""
        try:
            payload: dict[str, Any] = json.loads(self.storage.read(self._marker(marker)))
        except (FileNotFoundError, ValueError):
            return None
        files = payload.get("files", [])
        sizes = self.storage.sizes([f["path"] for f in files])
        return payload if all(sizes[f["path"]] == f["size"] for f in files) else None

    def mark(self, marker: str, payload: Mapping[str, Any]) -> None:
        """Leave a marker that a piece of the work is done."""
        self.storage.write(self._marker(marker), json.dumps(payload, sort_keys=True).encode())

    def _marker(self, marker: str) -> str:
        return f"{self.folder}/markers/{marker}.json"


class Store:
    """The artifacts of one store.

    Args:
        uri: the store's address (``tasks.storage.Storage``).
        root: local folder for the node cache, locks and scratch files.

    Raises:
        ConfigError: the store cannot be used.
    """

    def __init__(self, uri: str, root: Path) -> None:
        self.storage = Storage(uri)
        self.root = Path(root).absolute()
        self.storage.check()

    @property
    def uri(self) -> str:
        """The store's absolute address."""
        return self.storage.uri()

    @property
    def cache(self) -> Path:
        """The node cache: anything in it can be made again."""
        return self.root / "cache"

    def artifact(self, step: Step) -> Artifact:
        """The reference of what a step makes, there or not."""
        return Artifact(step.kind, step.name, step.fingerprint, self.storage.uri(step.folder))

    def find(self, step: Step) -> Artifact | None:
        """The whole artifact of a step, also one made under another name; None when it must be made."""
        for artifact in self._candidates(step):
            with contextlib.suppress(ArtifactError):
                if not self._size_problems(self.record(artifact)):
                    return artifact
        return None

    def _candidates(self, step: Step) -> Iterator[Artifact]:
        yield self.artifact(step)
        for folder in self.storage.folders(step.kind):
            name, _, fingerprint = folder.rpartition("-")
            if fingerprint == step.fingerprint and name != step.name:
                yield Artifact(step.kind, name, fingerprint, self.storage.uri(f"{step.kind}/{folder}"))

    def _size_problems(self, record: Record) -> list[str]:
        sizes = self.storage.sizes([f["path"] for f in record.files])
        problems = []
        for file in record.files:
            size = sizes[file["path"]]
            if size is None:
                problems.append(f"file {file['path']} is missing")
            elif size != file["size"]:
                problems.append(f"file {file['path']} has {size} bytes, {file['size']} are recorded")
        return problems

    def record(self, artifact: Artifact) -> Record:
        """The artifact's record.

        Raises:
            ArtifactError: missing or damaged.
        """
        path = f"{artifact.folder}/{RECORD}"
        try:
            return Record.from_bytes(self.storage.read(path), self.storage.uri(path), self.storage)
        except FileNotFoundError as error:
            raise ArtifactError(f"{self.storage.uri(path)}: no record, so there is no such artifact") from error

    def records(self, kind: str | None = None) -> list[Record]:
        """All readable records, oldest first; a damaged one costs a warning."""
        artifacts = []
        for each in KINDS if kind is None else (kind,):
            for folder in self.storage.folders(each):
                name, _, fingerprint = folder.rpartition("-")
                artifacts.append(Artifact(each, name, fingerprint, self.storage.uri(f"{each}/{folder}")))
        if len(artifacts) > 4 and not self.storage.is_local:
            with ThreadPoolExecutor(16) as pool:
                found = list(pool.map(self._record_or_none, artifacts))
        else:
            found = [self._record_or_none(a) for a in artifacts]
        return sorted((r for r in found if r), key=lambda r: (r.created, r.artifact.id))

    def _record_or_none(self, artifact: Artifact) -> Record | None:
        if not self.storage.exists(f"{artifact.folder}/{RECORD}"):
            return None
        try:
            return self.record(artifact)
        except ArtifactError as error:
            log.warning("%s", error)
            return None

    def resolve(self, reference: str, kind: str | None = None) -> Artifact:
        """The artifact that a person means: NAME-FINGERPRINT, a unique start of it or of the fingerprint, or NAME (newest).

        Raises:
            ConfigError: nothing or more than one thing fits, with the candidates.
        """
        records = self.records(kind)
        wanted = reference.strip("/").rsplit("/", 1)[-1]
        exact = [r for r in records if r.artifact.id == wanted]
        named = [r for r in records if r.artifact.name == wanted]
        started = [r for r in records if r.artifact.id.startswith(wanted) or r.artifact.fingerprint.startswith(wanted)]
        if "/" in reference:
            exact = [r for r in exact if reference.strip("/").rsplit("/", 2)[-2] == r.artifact.kind]
        what = kind or "artifact"
        if len({r.artifact.kind for r in named}) > 1 and not exact:
            kinds = ", ".join(sorted({r.artifact.kind for r in named}))
            raise ConfigError(f"{reference!r} names artifacts of several kinds ({kinds}): give NAME-FINGERPRINT")
        for found in (exact, named[-1:], started):
            if len(found) == 1:
                return found[0].artifact
        candidates = ", ".join(r.artifact.id for r in (started or records)[-8:]) or "none yet"
        problem = "is ambiguous" if started else "is not in the store"
        raise ConfigError(f"{what} {reference!r} {problem} ({self.uri}); candidates: {candidates}")

    def fetch(self, artifact: Artifact, *paths: str) -> Path:
        """A local folder with the artifact's files (all, or those named relative to its folder), sizes verified.

        The folder itself on local disk; else the node cache, filled with verified hashes.

        Raises:
            ArtifactError: a file is missing, cut short or has the wrong hash.
        """
        record = self.record(artifact)
        known = {f["path"]: f for f in record.files}
        wanted = [f"{artifact.folder}/{path}" for path in paths] if paths else list(known)
        for path in wanted:
            if path not in known:
                raise ArtifactError(f"{artifact.id} has no file {path!r}; it has: {', '.join(list(known)[:12])}")
        if self.storage.is_local:
            for problem in self._size_problems(record):
                if any(path in problem for path in wanted):
                    raise ArtifactError(f"{artifact.uri}: {problem}")
            return self.storage.local_path(artifact.folder)
        mirror = self.cache / "store" / sha256_of(self.uri.encode())[:12]
        for path in wanted:
            file, local = known[path], mirror / path
            if not local.is_file() or local.stat().st_size != file["size"]:
                self._fill(path, file["sha256"], local)
        return mirror / artifact.folder

    def _fill(self, path: str, sha256: str, local: Path) -> None:
        """Copy a file into the node cache; it gets its name only when its hash is right."""
        arriving = local.with_name(local.name + ".arriving")
        try:
            self.storage.download(path, arriving)
        except FileNotFoundError as error:
            raise ArtifactError(f"{self.storage.uri(path)}: missing") from error
        if sha256_of(arriving) != sha256:
            arriving.unlink()
            raise ArtifactError(f"{self.storage.uri(path)}: its content is not what was recorded (wrong hash)")
        arriving.replace(local)

    def verify(self, artifact: Artifact, deep: bool = False) -> list[str]:
        """Problems by path: record, sizes and, when deep, hashes; empty when all is well."""
        try:
            record = self.record(artifact)
        except ArtifactError as error:
            return [str(error)]
        problems = self._size_problems(record)
        if deep:
            for file in record.files:
                if any(file["path"] in problem for problem in problems):
                    continue
                local = self.storage.is_local
                data: bytes | Path = self.storage.local_path(file["path"]) if local else self.storage.read(file["path"])
                if sha256_of(data) != file["sha256"]:
                    problems.append(f"file {file['path']} has another hash than recorded")
        return problems

    @contextlib.contextmanager
    def lease(self, key: str) -> Iterator[None]:
        """Be the only one to work on ``key`` (``<kind>-<fingerprint>``), waiting for or taking over from others."""
        with contextlib.ExitStack() as held:
            held.enter_context(file_lock(self._lock(key), key))
            if not self.storage.is_local:
                held.enter_context(object_lease(self.storage, f".leases/{key}.json"))
            yield

    def leased(self, key: str) -> bool:
        """Whether someone works on ``key`` now."""
        return file_lock_held(self._lock(key)) or (not self.storage.is_local and object_lease_held(self.storage, f".leases/{key}.json"))

    def _lock(self, key: str) -> Path:
        # Beside a local store, so that runs with different roots meet at the same lock.
        return (self.storage.local_path(".locks") if self.storage.is_local else self.root / "locks") / f"{key}.lock"

    def execute(self, step: Step, body: Callable[[Work], dict[str, Any]]) -> Outcome:
        """Make a step's artifact unless it is there; the body returns its metrics.

        Raises:
            ConfigError: the store cannot be written.
            ArtifactError: a file that the body registered is not in the store.
        """
        started = time.monotonic()
        artifact = self.find(step)
        if artifact is None:
            self.storage.check(write=True)
            with self.lease(f"{step.kind}-{step.fingerprint}"):
                artifact = self.find(step)  # another run may have made it while this one waited
                if artifact is None:
                    self.storage.delete(f"{step.folder}/{RECORD}")  # of a damaged artifact
                    work = Work(step, self.storage, self.root / "scratch" / step.folder)
                    metrics = body(work)
                    record = self._commit(work, metrics, time.monotonic() - started)
                    return Outcome(record.artifact, "ran", record.seconds, record.metrics)
        return Outcome(artifact, "cached", time.monotonic() - started, self.record(artifact).metrics)

    def _commit(self, work: Work, metrics: dict[str, Any], seconds: float) -> Record:
        step = work.step
        record = Record(
            artifact=self.artifact(step),
            step=step.step,
            version=step.version,
            config=canonical(step.config),
            inputs=dict(step.inputs),
            files=[work.files[path] for path in sorted(work.files)],
            metrics=metrics,
            versions=library_versions(),
            commit=code_commit(),
            seconds=round(seconds, 3),
            created=datetime.now(UTC).isoformat(timespec="microseconds"),
            notes=work.notes,
        )
        if problems := self._size_problems(record):
            raise ArtifactError(f"{step.folder}: {'; '.join(problems[:3])}")
        self.storage.write(f"{step.folder}/{RECORD}", record.to_bytes())
        shutil.rmtree(work.scratch, ignore_errors=True)
        return record

    def explain(self, step: Step) -> str:
        """Why a step would run, for people: what is damaged, or what changed against the nearest artifact; "" when it would not."""
        from tasks.lineage import explain

        return explain(self, step)

    def lineage(self, artifact: Artifact) -> dict[str, list[Artifact]]:
        """``ancestors`` (what it was made from) and ``descendants`` (what was made from it), nearest first."""
        from tasks.lineage import lineage

        return lineage(self, artifact)

    def gc(self, dry_run: bool = True) -> list[str]:
        """Remove (or only list) what no record refers to and nobody works on; returns the paths."""
        from tasks.lineage import collect

        return collect(self, dry_run)


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
    """The commit of the code at hand, if it is a checkout."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        here = Path(__file__).resolve().parent.parent
        if (here / ".git").exists():
            done = subprocess.run(["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5)
            return done.stdout.strip() or None
    return None
