"""The store of artifacts: what a step makes, once, under a fingerprint of everything that shapes it.

An artifact is a folder ``<kind>/<name>-<fingerprint>/`` of the store.  ``record.json`` is written last and
completes it: no record, no artifact.  ``Store.execute`` runs a step unless its artifact is there and whole.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tokenloom.models.core.config import ConfigError, canonical
from tokenloom.tasks.runtime.errors import ArtifactError, OldRecordError
from tokenloom.tasks.store.leases import file_lock, file_lock_held, object_lease, object_lease_held
from tokenloom.tasks.store.manifests import NAME as MANIFEST
from tokenloom.tasks.store.records import (
    KINDS,
    RECORD,
    Artifact,
    Outcome,
    Record,
    StepSpec,
    canonical_json,
    code_commit,
    library_versions,
    sha256_of,
)
from tokenloom.tasks.store.storage import Storage
from tokenloom.tasks.store.verification import damaged, verify_local
from tokenloom.tasks.store.work import Work

log = logging.getLogger(__name__)

__all__ = ["KINDS", "RECORD", "Artifact", "Outcome", "Record", "StepSpec", "Store", "Work", "canonical_json", "sha256_of"]


class Store:
    """The artifacts of one store.

    Args:
        uri: the store's address (``tokenloom.tasks.store.storage.Storage``).
        root: local folder for the node cache, locks and scratch files.

    Raises:
        ConfigError: the store cannot be used.
    """

    def __init__(self, uri: str, root: Path) -> None:
        self.storage = Storage(uri)
        self.root = Path(root).absolute()
        self._warned_of_old = False
        self.storage.check()

    @property
    def uri(self) -> str:
        """The store's absolute address."""
        return self.storage.uri()

    @property
    def cache(self) -> Path:
        """The node cache: anything in it can be made again."""
        return self.root / "cache"

    def artifact(self, step: StepSpec) -> Artifact:
        """The reference of what a step makes, there or not."""
        return Artifact(step.kind, step.name, step.fingerprint, self.storage.uri(step.folder))

    def find(self, step: StepSpec) -> Artifact | None:
        """The whole artifact of a step, also one made under another name; None when it must be made."""
        for artifact in self._candidates(step):
            try:
                if not self._size_problems(self.record(artifact)):
                    return artifact
            except ArtifactError as error:
                if not isinstance(error.__cause__, FileNotFoundError):
                    log.warning("%s", error)
        return None

    def _candidates(self, step: StepSpec) -> Iterator[Artifact]:
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
        """All readable records, oldest first; a damaged one costs a warning, all those of an older version one together.

        Raises:
            ConfigError: a newer version wrote one.
        """
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
        old = [each for each in found if isinstance(each, OldRecordError)]
        if old and not self._warned_of_old:
            self._warned_of_old = True
            log.warning(
                "%s: %d artifacts of an older version, whose fingerprints were others, are not used and left as they are; "
                "what a run needs of them is made again (first: %s)",
                self.uri,
                len(old),
                str(old[0]).partition(": ")[0],
            )
        return sorted((r for r in found if isinstance(r, Record)), key=lambda r: (r.created, r.artifact.id))

    def unfinished(self, *kinds: str) -> list[Artifact]:
        """What was begun of these kinds and is not complete: folders without a record."""
        found = []
        for kind in kinds:
            for folder in self.storage.folders(kind):
                name, _, fingerprint = folder.rpartition("-")
                if not self.storage.exists(f"{kind}/{folder}/{RECORD}"):
                    found.append(Artifact(kind, name, fingerprint, self.storage.uri(f"{kind}/{folder}")))
        return found

    def _record_or_none(self, artifact: Artifact) -> Record | OldRecordError | None:
        if not self.storage.exists(f"{artifact.folder}/{RECORD}"):
            return None
        try:
            return self.record(artifact)
        except OldRecordError as error:
            return error
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
        published = kind in ("tokenizer", "generator", "density") and not started
        hint = "; a published model is imported first: tokenloom import NAME --weights FILE" if published else ""
        raise ConfigError(f"{what} {reference!r} {problem} ({self.uri}); candidates: {candidates}{hint}")

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
            for path in wanted:
                verify_local(self.storage, path, known[path]["sha256"])
            return self.storage.local_path(artifact.folder)
        mirror = self.cache / "store" / sha256_of(self.uri.encode())[:12]
        for path in wanted:
            file, local = known[path], mirror / path
            if not local.is_file() or local.stat().st_size != file["size"]:
                self._fill(path, file["sha256"], local)
        return mirror / artifact.folder

    def _fill(self, path: str, sha256: str, local: Path) -> None:
        """Copy a file into the node cache; it gets its name only when its hash is right."""
        arriving = local.with_name(f"{local.name}.arriving-{os.getpid()}")
        for last in (False, True):
            try:
                self.storage.download(path, arriving)
            except FileNotFoundError as error:
                raise ArtifactError(f"{self.storage.uri(path)}: missing") from error
            if sha256_of(arriving) == sha256:
                arriving.replace(local)
                return
            arriving.unlink()  # the way here may have been at fault: once more
            if last:
                raise damaged(self.storage, path)

    def verify(self, artifact: Artifact, deep: bool = False) -> list[str]:
        """Problems by path: record, sizes and, when deep, hashes; empty when all is well."""
        try:
            record = self.record(artifact)
            problems = self._size_problems(record)
        except ArtifactError as error:
            return [str(error)]
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

    def execute(self, step: StepSpec, body: Callable[[Work], dict[str, Any]], again: bool = False) -> Outcome:
        """Make a step's artifact unless it is there; the body returns its metrics.

        Args:
            again: make it even so; the old record stands until the new one takes its place.

        Raises:
            ConfigError: the store cannot be written.
            ArtifactError: a file that the body registered is not in the store.
        """
        started = time.monotonic()
        artifact = None if again else self.find(step)
        if artifact is None:
            self.storage.check(write=True)
            with self.lease(f"{step.kind}-{step.fingerprint}"):
                artifact = None if again else self.find(step)  # another run may have made it while this one waited
                if artifact is None:
                    if not again:
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
        written, manifest = record.divided()
        if manifest is not None:
            self.storage.write(f"{step.folder}/{MANIFEST}", manifest)
        self.storage.write(f"{step.folder}/{RECORD}", written.to_bytes())
        shutil.rmtree(work.scratch, ignore_errors=True)
        return record
