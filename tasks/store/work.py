"""What the body of a step is given: a folder of the store to fill, and markers to go on from."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenloom.tasks.runtime.errors import ArtifactError
from tokenloom.tasks.store.records import StepSpec, sealed, sha256_of, unsealed
from tokenloom.tasks.store.storage import Storage

log = logging.getLogger(__name__)


class Work:
    """One execution of a step: where its body puts files and leaves markers to resume from.

    Attributes:
        scratch: local folder that survives a crash and is removed when the artifact is complete.
        notes: recorded with the artifact; fill it in the body.
    """

    def __init__(self, step: StepSpec, storage: Storage, scratch: Path) -> None:
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
            payload = unsealed(self.storage.read(self._marker(marker)))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            log.warning("%s is damaged: what it marks is made again", self.storage.uri(self._marker(marker)))
            return None
        files = payload.get("files", [])
        sizes = self.storage.sizes([f["path"] for f in files])
        return payload if all(sizes[f["path"]] == f["size"] for f in files) else None

    def marked(self) -> set[str]:
        """The markers that are there."""
        names = (path.rpartition("/")[2] for path, _ in self.storage.list(f"{self.folder}/markers"))
        return {name.removesuffix(".json") for name in names}

    def mark(self, marker: str, payload: Mapping[str, Any]) -> None:
        """Leave a marker that a piece of the work is done."""
        self.storage.write(self._marker(marker), sealed(payload))

    def _marker(self, marker: str) -> str:
        return f"{self.folder}/markers/{marker}.json"
