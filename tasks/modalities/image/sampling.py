"""Images for people: a grid, or arrays, of what a model draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tokenloom.configs.schema import DataConfig
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.requests import Values
from tokenloom.tasks.modalities.base import SampleRequest
from tokenloom.tasks.modalities.image import pictures
from tokenloom.tasks.modalities.image.fit import fit
from tokenloom.tasks.modalities.image.held_out import HeldOut
from tokenloom.tasks.modalities.image.judging.features import to_float
from tokenloom.tasks.modalities.image.prompting.layouts import draw_prompts
from tokenloom.tasks.modalities.image.served.draw import SHARD, to_uint8, traced_images
from tokenloom.tasks.modalities.image.served.painting import Painting, check
from tokenloom.tasks.runtime.progress import Report
from tokenloom.tasks.serving.predict import Pair, spread
from tokenloom.tasks.serving.request import Request, check_labels
from tokenloom.tasks.store.artifacts import Artifact, Store
from tokenloom.tasks.store.storage import atomic

HELD_OUT_LIMIT = 10_000  # held-out images that may lend their columns


@dataclass(frozen=True)
class _Wanted:
    """The samples that are asked for: their request, the label (N,) of each for the grid, and the texts that labels number."""

    request: Request
    labels: NDArray[np.int64]
    words: list[str] | None


def sample(pair: Pair, title: str, given: SampleRequest, store: Store, report: Report) -> dict[str, Any]:
    """Draw samples spread evenly over the classes (all, if not given) or texts (captions that it has seen), and write them.

    Columns of the data (a control image) are files, used in turn; without any, held-out images lend theirs, those of the class that is
    drawn.

    Of a file of prompts ``out`` is a folder in the layout of its benchmark (``prompting.layouts``).  Else it ends in ``.png`` (a grid, one
    row a class or text; of columns each above its sample) or ``.npz`` (``images`` uint8 (N, H, W, C) and ``labels`` int64 (N,), of texts
    their numbers, which ``texts`` tells, and ``column_NAME`` as images).

    Raises:
        ConfigError: a class that it does not have, texts for a model of classes or the other way round, a column that is missing or
            that it does not take, another ending of ``out``.
    """
    out = given.out
    if given.prompts is not None:
        return draw_prompts(pair, title, given, report)
    if out.suffix not in (".png", ".npz"):
        raise ConfigError(f"--out {str(out)!r}: write FILE.png (a grid) or FILE.npz (arrays)")
    if given.history is not None or given.horizon is not None:
        raise ConfigError(f"{'--history' if given.history is not None else '--horizon'}: {title} draws images, which go on from nothing")
    wanted, painting = _wanted(pair, title, given, store), _painting(pair, title, given)
    parts, traces = [], []
    for start in range(0, given.total, SHARD):
        report("sample", start, given.total, {})
        condition = pair.condition_spec.conditions(wanted.request.part(start, start + SHARD))
        images, trace = traced_images(pair.generator, pair.tokenizer, condition, pair.sampler, given.seed, start, painting, given.prefix)
        parts.append(images)
        traces.append(trace)
    report("sample", given.total, given.total, {})
    _write(out, np.concatenate(parts), wanted)
    drawn = {"texts": wanted.words} if wanted.words else {"classes": list(dict.fromkeys(wanted.labels.tolist()))}
    decoding = {name: float(np.mean([trace[name] for trace in traces])) for name in traces[0]}
    return {"model": title, "out": str(out), "samples": given.total, **drawn, "seed": given.seed, **decoding}


def _wanted(pair: Pair, title: str, given: SampleRequest, store: Store) -> _Wanted:
    condition_spec = pair.condition_spec
    kinds = _kinds(pair, given.classes, given.texts, title)
    which = spread(given.total, len(kinds))
    if condition_spec.texted:
        words = [str(kind) for kind in kinds]
        classes = spread(given.total, len(pair.classes)) if condition_spec.labelled else None
        request, labels = Request(classes, [words[i] for i in which.tolist()]), which
    else:
        words, labels = None, np.asarray(kinds, np.int64)[which]
        request = Request(labels if condition_spec.labelled else None)
    columns = _columns(pair, title, given, labels, np.arange(given.total) // len(kinds), store)
    return _Wanted(replace(request, columns=columns), labels, words)


def _columns(
    pair: Pair, title: str, given: SampleRequest, labels: NDArray[np.int64], turn: NDArray[np.int64], store: Store
) -> dict[str, Values]:
    """The columns of the data that a model takes, from files, each of which is used in its ``turn``, or from held-out images."""
    condition_spec = pair.condition_spec
    taken = ", ".join(condition_spec.columns) or "no columns of the data"
    for name in given.columns:
        if name not in condition_spec.columns:
            raise ConfigError(f"--column {name}=…: {title} takes {taken}")
    if not condition_spec.columns:
        return {}
    found = {name: _fitted(pair, name, files) for name, files in given.columns.items()}
    if absent := [name for name in condition_spec.columns if name not in found]:
        if found or "dataset" not in pair.known:
            why = "give all of them, or none" if found else "there is no data beside it"
            raise ConfigError(f"--column: {title} takes {taken}, and {why}: --column {absent[0]}=FILE.png")
        held_out = HeldOut.of(condition_spec, store, Artifact.from_dict(pair.known["dataset"]), HELD_OUT_LIMIT)
        item_N = held_out.in_turn(labels) if condition_spec.labelled else np.flatnonzero(held_out.usable_M)
        return dict(held_out.request(np.resize(item_N, len(labels)), labels).columns)
    index = {name: torch.from_numpy(turn % values.rows) for name, values in found.items()}
    return {name: Values(values.value[index[name]]) for name, values in found.items()}


def _painting(pair: Pair, title: str, given: SampleRequest) -> Painting | None:
    """The image of which a part is drawn, and its mask, both made to fit as the data was."""
    if given.inpaint is None:
        return None
    check(pair.generator, title)
    channels, rows, columns = pair.shape
    found = []
    for option, path, kept in (("--inpaint", given.inpaint[0], channels), ("--mask", given.inpaint[1], 1)):
        config = DataConfig(source="files", size=(rows, columns), channels=kept, fit=pair.known.get("fit", "crop"))
        try:
            found.append(to_float(fit(path.read_bytes(), config)[None].copy())[0])
        except (OSError, ValueError) as error:
            raise ConfigError(f"{option} {path}: {error}") from error
    return Painting(found[0], found[1][0] > 0)


def _fitted(pair: Pair, name: str, files: Sequence[Path]) -> Values:
    """Images of files as values of a column, made to fit as the data was."""
    channels, rows, columns = pair.condition_spec.columns[name]
    config = DataConfig(source="files", size=(rows, columns), channels=channels, fit=pair.known.get("fit", "crop"))
    images = []
    for path in files:
        try:
            images.append(fit(path.read_bytes(), config))
        except (OSError, ValueError) as error:
            raise ConfigError(f"--column {name}={path}: {error}") from error
    return Values(to_float(np.stack(images)))


def _write(out: Path, images: NDArray[np.uint8], wanted: _Wanted) -> None:
    """Samples as arrays (``.npz``) or as a picture: a grid of one row a class or text, or rows with their columns above."""
    out.parent.mkdir(parents=True, exist_ok=True)
    labels, words = wanted.labels, wanted.words
    columns = {name: to_uint8(values.value) for name, values in wanted.request.columns.items()}
    with atomic(out) as file:
        if out.suffix == ".npz":
            arrays: dict[str, Any] = {"images": images, "labels": labels, **({"texts": np.array(words)} if words else {})}
            arrays |= {f"column_{name}": value for name, value in columns.items()}
            np.savez_compressed(file, **arrays)
        elif columns:
            file.write(pictures.beside({**columns, "sample": images}))
        elif words:
            file.write(pictures.class_grid(images, labels, words, per_class=len(images), most=len(words)))
        else:
            file.write(pictures.png(grid_by_class(images, labels)))


def _kinds(pair: Pair, classes: Sequence[int] | None, texts: Sequence[str] | None, title: str) -> list[Any]:
    """The different classes or texts to draw."""
    if not pair.condition_spec.texted:
        if texts:
            raise ConfigError(f"--text {texts[0]!r}: {title} is conditioned on {_takes(pair)}")
        if classes is not None and not pair.condition_spec.labelled:
            raise ConfigError(f"--classes: {title} is conditioned on {_takes(pair)}")
        chosen = range(max(1, len(pair.classes))) if classes is None else dict.fromkeys(int(k) for k in classes)
        check_labels(np.asarray(list(chosen), np.int64), pair.classes)
        return list(chosen)
    if classes is not None:
        raise ConfigError(f"--classes: {title} is conditioned on texts; give --text")
    words = list(dict.fromkeys(texts or pair.condition_spec.texts))
    if not words:
        raise ConfigError(f"--text: {title} is conditioned on texts; give at least one")
    return words


def _takes(pair: Pair) -> str:
    """What a model without texts takes, and how to give it."""
    named = ["classes; give --classes"] if pair.condition_spec.labelled else []
    return ", ".join([*named, *(f"the column {name}; give --column {name}=FILE.png" for name in pair.condition_spec.columns)])


def grid_by_class(image_NHWC: NDArray[np.uint8], label_N: NDArray[np.int64]) -> NDArray[np.uint8]:
    """One row a class in the order of the classes; a class with fewer images than another ends in white."""
    kinds, counts = np.unique(label_N, return_counts=True)
    sheet = np.full((len(kinds), counts.max(), *image_NHWC.shape[1:]), 255, np.uint8)
    for row, kind in enumerate(kinds):
        sheet[row, : counts[row]] = image_NHWC[label_N == kind]
    return pictures.grid(sheet.reshape(-1, *image_NHWC.shape[1:]), int(counts.max()))
