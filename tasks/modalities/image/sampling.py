"""Images for people: a grid, or arrays, of what a model draws."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.modalities.base import SampleRequest
from tokenloom.tasks.modalities.image import pictures
from tokenloom.tasks.modalities.image.served.draw import SHARD, traced_images
from tokenloom.tasks.runtime.progress import Report
from tokenloom.tasks.serving.predict import Pair, spread
from tokenloom.tasks.serving.request import Request
from tokenloom.tasks.store.storage import atomic


def sample(pair: Pair, title: str, given: SampleRequest, report: Report) -> dict[str, Any]:
    """Draw samples spread evenly over the classes (all, if not given) or texts (captions that it has seen), and write them.

    ``out`` ends in ``.png`` (a grid, one row a class or text) or ``.npz`` (``images`` uint8 (N, H, W, C) and ``labels`` int64 (N,), of
    texts their numbers, which ``texts`` tells).

    Raises:
        ConfigError: a class that it does not have, texts for a model of classes or the other way round, another ending of ``out``.
    """
    out = given.out
    if out.suffix not in (".png", ".npz"):
        raise ConfigError(f"--out {str(out)!r}: write FILE.png (a grid) or FILE.npz (arrays)")
    if given.history is not None or given.horizon is not None:
        raise ConfigError(f"{'--history' if given.history is not None else '--horizon'}: {title} draws images, which go on from nothing")
    kinds = _kinds(pair, given.classes, given.texts, title)
    which = spread(given.total, len(kinds))
    words = [str(kind) for kind in kinds] if pair.condition_spec.column == "text" else None
    labels = which if words else np.asarray(kinds, np.int64)[which]
    request: Request = [words[i] for i in which.tolist()] if words else labels
    parts, traces = [], []
    for start in range(0, given.total, SHARD):
        report("sample", start, given.total, {})
        condition = pair.condition_spec.conditions(request[start : start + SHARD])
        images, trace = traced_images(pair.generator, pair.tokenizer, condition, pair.sampler, given.seed, start)
        parts.append(images)
        traces.append(trace)
    report("sample", given.total, given.total, {})
    _write(out, np.concatenate(parts), labels, words)
    drawn = {"texts": words} if words else {"classes": [int(k) for k in kinds]}
    decoding = {name: float(np.mean([trace[name] for trace in traces])) for name in traces[0]}
    return {"model": title, "out": str(out), "samples": given.total, **drawn, "seed": given.seed, **decoding}


def _write(out: Path, images: NDArray[np.uint8], labels: NDArray[np.int64], words: list[str] | None) -> None:
    """Samples as arrays (``.npz``) or as a grid, one row a class or text."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic(out) as file:
        if out.suffix == ".npz":
            arrays: dict[str, Any] = {"images": images, "labels": labels, **({"texts": np.array(words)} if words else {})}
            np.savez_compressed(file, **arrays)
        elif words:
            file.write(pictures.class_grid(images, labels, words, per_class=len(images), most=len(words)))
        else:
            file.write(pictures.png(grid_by_class(images, labels)))


def _kinds(pair: Pair, classes: Sequence[int] | None, texts: Sequence[str] | None, title: str) -> list[Any]:
    """The different classes or texts to draw."""
    if pair.condition_spec.column == "class_id":
        if texts:
            raise ConfigError(f"--text {texts[0]!r}: {title} is conditioned on classes; give --classes")
        chosen = range(max(1, len(pair.classes))) if classes is None else dict.fromkeys(int(k) for k in classes)
        pair.condition_spec.check(np.asarray(list(chosen), np.int64))
        return list(chosen)
    if classes is not None:
        raise ConfigError(f"--classes: {title} is conditioned on texts; give --text")
    words = list(dict.fromkeys(texts or pair.condition_spec.texts))
    if not words:
        raise ConfigError(f"--text: {title} is conditioned on texts; give at least one")
    pair.condition_spec.check(words)
    return words


def grid_by_class(image_NHWC: NDArray[np.uint8], label_N: NDArray[np.int64]) -> NDArray[np.uint8]:
    """One row a class in the order of the classes; a class with fewer images than another ends in white."""
    kinds, counts = np.unique(label_N, return_counts=True)
    sheet = np.full((len(kinds), counts.max(), *image_NHWC.shape[1:]), 255, np.uint8)
    for row, kind in enumerate(kinds):
        sheet[row, : counts[row]] = image_NHWC[label_N == kind]
    return pictures.grid(sheet.reshape(-1, *image_NHWC.shape[1:]), int(counts.max()))
