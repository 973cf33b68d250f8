"""Pictures of a comparison: samples of each run, or what each tokenizer makes of the same held-out images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tokenloom.tasks.modalities.image import pictures
from tokenloom.tasks.modalities.image.judging.measures import RECONSTRUCTIONS
from tokenloom.tasks.store.artifacts import Artifact, Store

_SHOWN = 8  # samples of one class in the picture
_LINES = 32  # of samples in the picture, where many runs are compared
_COLUMNS = 16  # images of one tokenizer in the picture


def side_by_side(store: Store, judged: Sequence[tuple[str, Artifact]]) -> dict[str, bytes]:
    """``samples.png`` where samples were judged, else ``reconstructions.png`` below the originals; PNG by file name."""
    if drawn := _samples(store, judged):
        return {"samples.png": drawn}
    kept = _reconstructions(store, judged)
    return {} if kept is None else {"reconstructions.png": kept}


def _reconstructions(store: Store, judged: Sequence[tuple[str, Artifact]]) -> bytes | None:
    """Held-out images, and below them what each tokenizer makes of them: PNG."""
    lines: list[tuple[str, Any]] = []
    for run, artifact in judged:
        if any(f["path"].endswith(f"/{RECONSTRUCTIONS}") for f in store.record(artifact).files):
            with np.load(store.fetch(artifact, RECONSTRUCTIONS) / RECONSTRUCTIONS, allow_pickle=False) as arrays:
                if not lines:  # one protocol, so the same images
                    lines.append(("original", arrays["original"][:_COLUMNS]))
                lines.append((run, arrays["decoded"][:_COLUMNS]))
    return pictures.labelled_rows(lines) if lines else None


def _samples(store: Store, judged: Sequence[tuple[str, Artifact]]) -> bytes | None:
    """Some samples of each run, the same classes in the same columns: PNG."""
    found = []
    for run, artifact in judged:
        if any(f["path"].endswith("/samples.npz") for f in store.record(artifact).files):
            with np.load(store.fetch(artifact, "samples.npz") / "samples.npz", allow_pickle=False) as arrays:
                found.append((run, arrays["images"], arrays["labels"]))
    if not found:
        return None
    classes = np.unique(found[0][2])[:16]
    lines: list[tuple[str, Any]] = []
    lines_each = max(1, min(_SHOWN // 2, _LINES // len(found)))
    for name, images, labels in found:
        for i in range(lines_each):
            chosen = [images[labels == k][i] for k in classes if (labels == k).sum() > i]
            if chosen:
                lines.append((name if i == 0 else "", np.stack(chosen)))
    return pictures.labelled_rows(lines)
