"""Checkpoints of a training run: safetensors and JSON under the artifact's folder, newest valid one first.

``<folder>/checkpoints/step-0000200/{state.safetensors, state.json}``: the JSON is written last and holds the hash of the
tensors, so a checkpoint that was being written when the process died is never used.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tokenloom.models.core.build import load_model
from tokenloom.models.core.protocols import Method
from tokenloom.models.parts.nets.classifier import load_classifier
from tokenloom.tasks.runtime.errors import StepError
from tokenloom.tasks.store.artifacts import Outcome, StepSpec, Store
from tokenloom.tasks.store.records import RECORD, Record, sealed, unsealed
from tokenloom.tasks.store.storage import Storage
from tokenloom.tasks.store.verification import damaged, verify_local

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Saved:
    """What ``state.json`` says: steps done, whose state it is, the tensors' hash, and the validation loss at that step."""

    step: int
    fingerprint: str
    sha256: str
    size: int
    world: int
    validation: float | None = None
    created: float = 0.0


class Checkpoints:
    """The checkpoints of one artifact.

    Args:
        storage: the store.
        folder: the artifact's folder in it.
        fingerprint: of the artifact; a checkpoint of another recipe is not used.
        scratch: local folder for files on their way.
        keep: while it trains the newest ``keep`` stay, besides the best one and each ``keep_every``-th step (0: none).
    """

    def __init__(self, storage: Storage, folder: str, fingerprint: str, scratch: Path, keep: int = 2, keep_every: int = 0) -> None:
        self._storage, self._fingerprint = storage, fingerprint
        self._folder, self._scratch = f"{folder}/checkpoints", scratch
        self._keep, self._keep_every = keep, keep_every

    def path(self, step: int) -> str:
        """Folder of one checkpoint in the store."""
        return f"{self._folder}/step-{step:07d}"

    def save(self, step: int, state: Mapping[str, Tensor], world: int, validation: float | None = None) -> Saved:
        """Write the state after ``step`` steps, then drop what the policy does not keep."""
        self._scratch.mkdir(parents=True, exist_ok=True)
        local = self._scratch / f"state-{os.getpid()}.safetensors"
        try:
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, str(local))
            digest, size = _sha256(local), local.stat().st_size
            self._storage.upload(local, f"{self.path(step)}/state.safetensors")
        except (OSError, SafetensorError) as error:  # a full disk is either, by who writes
            raise StepError(f"checkpoint {self._storage.uri(self.path(step))} could not be written: {error}") from error
        finally:
            local.unlink(missing_ok=True)
        saved = Saved(step, self._fingerprint, digest, size, world, validation, time.time())
        self._storage.write(f"{self.path(step)}/state.json", sealed(asdict(saved)))
        self._prune()
        return saved

    def saved(self) -> list[Saved]:
        """All complete checkpoints of this recipe, oldest first (tensors not yet verified)."""
        found = []
        for path, _ in self._storage.list(self._folder):
            if path.endswith("/state.json"):
                saved = self._read(path)
                if saved is not None and self.path(saved.step) == path.rpartition("/")[0]:
                    found.append(saved)
        return sorted(found, key=lambda s: s.step)

    def newest(self) -> int:
        """Step of the newest checkpoint whose tensors have their recorded hash; 0 when there is none."""
        for saved in reversed(self.saved()):
            path = f"{self.path(saved.step)}/state.safetensors"
            if self._storage.size(path) == saved.size:
                local, temporary = self._local(path)
                try:
                    if _sha256(local) == saved.sha256:
                        return saved.step
                    log.warning("checkpoint %s is damaged: an earlier one is used", self._storage.uri(path))
                finally:
                    if temporary:
                        local.unlink(missing_ok=True)
        return 0

    def load(self, step: int) -> dict[str, Tensor]:
        """The tensors of one checkpoint."""
        local, temporary = self._local(f"{self.path(step)}/state.safetensors")
        state = load_file(str(local))
        if temporary:
            state = {name: tensor.clone() for name, tensor in state.items()}
            local.unlink(missing_ok=True)
        return state

    def best(self) -> Saved | None:
        """The checkpoint with the lowest validation loss, None when none was validated."""
        validated = [s for s in self.saved() if s.validation is not None]
        return min(validated, key=lambda s: (s.validation, s.step)) if validated else None

    def keep_last(self) -> None:
        """Of a finished training, whose weights are saved: drop all but the last checkpoint and each ``keep_every``-th."""
        all_saved = self.saved()
        self._drop(all_saved, {s.step for s in all_saved[-1:]})

    def _prune(self) -> None:
        all_saved = self.saved()
        best = self.best()
        self._drop(all_saved, {s.step for s in all_saved[-self._keep :]} | ({best.step} if best else set()))

    def _drop(self, all_saved: list[Saved], kept: set[int]) -> None:
        for saved in all_saved:
            if saved.step not in kept and not (self._keep_every and saved.step % self._keep_every == 0):
                # The marker goes first: what is half deleted is no checkpoint.
                self._storage.delete(f"{self.path(saved.step)}/state.json")
                self._storage.delete(self.path(saved.step))

    def _read(self, path: str) -> Saved | None:
        try:
            saved = Saved(**unsealed(self._storage.read(path)))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            log.warning("checkpoint %s is damaged: it is not used", self._storage.uri(path))
            return None
        return saved if saved.fingerprint == self._fingerprint else None

    def _local(self, path: str) -> tuple[Path, bool]:
        if self._storage.is_local:
            return self._storage.local_path(path), False
        local = self._scratch / f"{path.replace('/', '-')}-{os.getpid()}"
        self._storage.download(path, local)
        return local, True


def keep_last(step: StepSpec, store: Store, outcome: Outcome) -> Outcome:
    """Of a training that has just ended, drop all checkpoints but the last one and each ``keep_every``-th; its outcome.

    It is done when the record is there: until then a training that is killed finds its best checkpoint again, and tells the same numbers.
    """
    train = step.notes["train"]
    if outcome.status != "cached" and train is not None:
        scratch = store.root / "scratch" / f"{step.fingerprint}-kept"
        Checkpoints(store.storage, step.folder, step.fingerprint, scratch, keep_every=train.get("keep_every", 0)).keep_last()
    return outcome


def fetch_adopted(storage: Storage, folders: Mapping[str, str], root: Path) -> dict[str, nn.Module]:
    """What a model adopts: role to the trained module of an artifact's folder, whose first part is the kind, in eval mode.

    Raises:
        StepError: a file is missing.
    """
    return {
        role: (_fetch_features if folder.startswith("features/") else fetch_model)(storage, folder, root)
        for role, folder in folders.items()
    }


def fetch_model(storage: Storage, folder: str, root: Path) -> Method:
    """The saved model of an artifact's folder, in eval mode; a remote one comes through the node cache.

    Raises:
        StepError: a file is missing.
    """
    return load_model(_mirrored(storage, folder, root, ("model.json", "weights.safetensors")))[0]


def _fetch_features(storage: Storage, folder: str, root: Path) -> nn.Module:
    return load_classifier(_mirrored(storage, folder, root, ("classifier.json", "classifier.safetensors")))


def _mirrored(storage: Storage, folder: str, root: Path, names: tuple[str, ...]) -> Path:
    """A local folder with these files of an artifact's folder, which have the hashes of its record."""
    mirror = root / "cache" / "models" / hashlib.sha256(storage.uri(folder).encode()).hexdigest()[:16]
    local = storage.local_path(folder) if storage.is_local else mirror
    known = _hashes(storage, folder)
    for name in names:
        path = f"{folder}/{name}"
        if (size := storage.size(path)) is None:
            raise StepError(f"{storage.uri(folder)}: no saved model, {name} is missing")
        if storage.is_local:
            if path in known:
                verify_local(storage, path, known[path])
        # A folder's name holds its fingerprint, so a whole copy of the right size stays right.
        elif not (local / name).is_file() or (local / name).stat().st_size != size:
            arriving = local / f"{name}.arriving-{os.getpid()}"
            storage.download(path, arriving)
            if _sha256(arriving) != known.get(path, _sha256(arriving)):
                arriving.unlink()
                raise damaged(storage, path)
            arriving.replace(local / name)
    return local


def _hashes(storage: Storage, folder: str) -> dict[str, str]:
    """The recorded hash of each file of an artifact; nothing while it is being made."""
    where = f"{folder}/{RECORD}"
    try:
        return {file["path"]: file["sha256"] for file in Record.from_bytes(storage.read(where), where, storage).files}
    except FileNotFoundError:
        return {}


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
