"""A leaderboard of evaluations under one protocol: rows, a table, a plot of quality against speed, samples side by side."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tokenloom.models.core.config import ConfigError
from tokenloom.tasks import modalities
from tokenloom.tasks.evaluation import pictures
from tokenloom.tasks.evaluation.judging import RECONSTRUCTIONS
from tokenloom.tasks.store.artifacts import Artifact, Record, Store
from tokenloom.tasks.store.lineage import differences
from tokenloom.tasks.store.storage import atomic

Row = dict[str, Any]
#: Columns in the order in which they are shown, where there are values: metric names or their beginnings.
COLUMNS = (
    "fd_", "kid_", "is_", "precision", "recall", "density", "coverage", "recognition", "memorisation_ratio",
    "nll_bits_per_image", "nll_bits_per_dim", "bound_bits_per_dim", "rfd_", "psnr",
    "ssim", "detail", "text", "codebook_use", "codebook_perplexity",
    "tokens_per_image", "bits_per_image", "encoded_per_second", "decoded_per_second", "images_per_second",
    "net_calls", "tokens_per_call", "parameters",
)  # fmt: skip
_HIDDEN = ("_deviation", "_ceiling")
_NLL = ("nll_bits_per_image", "nll_bits_per_dim")
#: Parts of a protocol that say how one method was sampled, or only of which kind the judged model is; they may differ.
_GENERATOR_ONLY = ("samples", "class_balance", "seed", "shard", "manifold", "recognition", "memorisation")
_SHOWN = 8  # samples of one class in the picture
_LINES = 32  # of samples in the picture, where many runs are compared
_COLUMNS = 16  # images of one tokenizer in the picture
_SAME = 1.05  # tokenizers whose bits an image are within this factor of each other compare directly


def columns() -> tuple[str, ...]:
    """All columns: a kind's own metrics, each with what it is compared with (``mase``, ``mase_seasonal_naive``), come first."""
    own = [known for modality in modalities.kinds().values() for known, _, _ in modality.meanings]
    return (*(column for known in own for column in (known, f"{known}_")), *COLUMNS)


def leaderboard(store: Store, references: Sequence[str]) -> list[Row]:
    """One row an evaluation, best quality first.

    Args:
        references: run names, evaluations, or the generators or tokenizers that were evaluated.

    Raises:
        ConfigError: an unknown reference, nothing evaluated, or evaluations whose protocols differ (saying in which field).
    """
    if not references:
        raise ConfigError("nothing to compare: name at least one run")
    records = [_evaluation(store, reference) for reference in dict.fromkeys(references)]
    records = list({r.artifact.id: r for r in records}.values())
    _one_protocol(records)
    tokenizers = {_fingerprint(r.inputs.get("tokenizer")) for r in records}
    rows = [_row(store, record, nll=len(tokenizers) == 1) for record in records]
    quality = _quality(rows)
    rows.sort(key=lambda row: (row.get(quality) is None, row.get(quality) or 0.0) if quality else 0)
    if not any(_samples(record) for record in records):
        rows = _by_budget(rows)
    return _aligned(rows)


def _by_budget(rows: list[Row]) -> list[Row]:
    """Tokenizers in groups of (nearly) equal bits an image, small ones first; the order within a group stays."""
    budgets: list[list[float]] = []
    for bits in sorted({row["bits_per_image"] for row in rows if row.get("bits_per_image")}):
        if budgets and bits <= budgets[-1][0] * _SAME:
            budgets[-1].append(bits)
        else:
            budgets.append([bits])
    named = {
        bits: f"{group[0]:.0f} bits" if group[-1] - group[0] < 1 else f"{group[0]:.0f}-{group[-1]:.0f} bits"
        for group in budgets
        for bits in group
    }
    place = {name: i for i, name in enumerate(dict.fromkeys(named.values()))}
    found = [{"run": row["run"], "budget": named.get(row.get("bits_per_image", 0), ""), **row} for row in rows]
    return sorted(found, key=lambda row: place.get(row["budget"], len(place)))


def budgets(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of a leaderboard of tokenizers by budget, in order; empty when generators were judged."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if "budget" in row:
            groups.setdefault(str(row["budget"]), []).append(row)
    return groups


def _evaluation(store: Store, reference: str) -> Record:
    """The evaluation that a reference means: itself, the newest of that name, or the newest of that generator or tokenizer."""
    try:
        return store.record(store.resolve(reference, "evaluation"))
    except ConfigError as error:
        try:
            artifact = store.resolve(reference)
        except ConfigError:
            raise error from None
        found = [r for r in store.records("evaluation") if _judges(r, artifact)]
        if not found:
            raise ConfigError(f"{artifact.kind} {artifact.id} has not been evaluated: run it first") from None
        return found[-1]


def _samples(record: Record) -> bool:
    """Whether an evaluation judges samples, not a tokenizer alone."""
    return "generator" in record.inputs or "density" in record.inputs


def _fingerprint(artifact: Artifact | None) -> str | None:
    return None if artifact is None else artifact.fingerprint


def _judges(record: Record, artifact: Artifact) -> bool:
    judged = record.inputs.get(artifact.kind)
    if artifact.kind == "tokenizer" and "generator" in record.inputs:
        return False if judged is None else judged.fingerprint == artifact.fingerprint
    if artifact.kind == "registration":
        return False
    return judged is not None and judged.fingerprint == artifact.fingerprint


def _one_protocol(records: Sequence[Record]) -> None:
    first = records[0]
    for other in records[1:]:
        mine, theirs = dict(first.notes["protocol"]), dict(other.notes["protocol"])
        if _samples(first) != _samples(other):
            for name in _GENERATOR_ONLY:  # a tokenizer alone has no samples
                mine.pop(name, None)
                theirs.pop(name, None)
        if found := list(differences(mine, theirs)):
            raise ConfigError(
                f"{first.artifact.id} and {other.artifact.id} were judged under different protocols: {'; '.join(found[:4])}. "
                "Evaluate both on the same data with the same `evaluate` section"
            )


def _row(store: Store, record: Record, nll: bool) -> Row:
    made = store.record(next(record.inputs[role] for role in ("generator", "density", "tokenizer") if role in record.inputs))
    tokenizer = record.inputs.get("tokenizer")
    row: Row = {
        "run": record.artifact.name,
        "method": made.config.get("recipe", "imported"),
        "tokenizer": None if tokenizer is None else store.record(tokenizer).config.get("recipe", "imported"),
        "guidance": _guidance(record.notes.get("sampler")),
    }
    for column in columns():
        for name in sorted(record.metrics):
            fits = name.startswith(column) if column.endswith("_") else name == column
            if fits and not name.endswith(_HIDDEN) and (nll or name not in _NLL):
                row[name] = record.metrics[name]
    return row | {"train_seconds": made.metrics.get("train_seconds"), "evaluation": record.artifact.id}


def _guidance(sampler: Mapping[str, Any] | None) -> str | None:
    """Guidance as a person writes it: schedule and weight."""
    if not sampler:
        return None
    schedule = sampler["guidance"]
    kind = str(schedule["type"]).rsplit(".", 1)[-1].lower()
    return "off" if not schedule["value"] else f"{schedule['value']:g}" if kind == "constant" else f"{kind} {schedule['value']:g}"


def _aligned(rows: list[Row]) -> list[Row]:
    """Every row with every column that any row has a value for, in one order."""
    names = list(dict.fromkeys(name for row in sorted(rows, key=len, reverse=True) for name in row))
    names = [n for n in names if any(row.get(n) is not None for row in rows)]
    return [{name: row.get(name) for name in names} for row in rows]


def _quality(rows: Sequence[Row]) -> str | None:
    """The column that ranks: a Fréchet distance of samples, or of reconstructions where there are no samples."""
    for prefix in ("fd_", "fid", "rfd_"):
        for row in rows:
            for name in row:
                if name.startswith(prefix) and all(r.get(name) is not None for r in rows):
                    return name
    return None


def write(store: Store, rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write a leaderboard into a folder.

    Of generators ``leaderboard.csv``, ``leaderboard.png`` (quality against speed) and ``samples.png`` (side by side); of tokenizers
    also ``leaderboard.md`` and ``.json``, with quality against bits an image, and ``reconstructions.png`` below the originals.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files = {"leaderboard.csv": text.getvalue().encode()}
    quality = _quality(rows)
    if groups := budgets(rows):
        files["leaderboard.md"] = markdown(groups).encode()
        files["leaderboard.json"] = json.dumps({"rows": list(rows)}, indent=1).encode()
    by_size = bool(groups) and all(row.get("bits_per_image") for row in rows)
    speed = "bits_per_image" if by_size else "images_per_second" if all(row.get("images_per_second") for row in rows) else "parameters"
    if quality is not None and all(row.get(speed) is not None for row in rows):
        points = [(str(row["run"]), float(row[speed]), float(row[quality])) for row in rows]
        labels = {
            "images_per_second": "samples a second of one worker", "parameters": "trainable parameters", "bits_per_image": "bits an image"
        }  # fmt: skip
        files["leaderboard.png"] = pictures.scatter(points, labels[speed], f"{quality} (lower is better)")
    if groups and (shown := _reconstructions(store, rows)):
        files["reconstructions.png"] = shown
    if not groups and (shown := _side_by_side(store, rows)):
        files["samples.png"] = shown
    for name, data in files.items():
        with atomic(folder / name) as file:
            file.write(data)
    return [folder / name for name in files]


def markdown(groups: Mapping[str, Sequence[Row]]) -> str:
    """The leaderboard of tokenizers as Markdown: one table, a line a tokenizer, a bold line a budget."""
    from tokenloom.tasks.evaluation.report import markdown_table, meaning

    first = next(iter(groups.values()))[0]
    names = [name for name in first if name not in ("budget", "tokenizer", "evaluation")]
    arrow = {"higher": " ↑", "lower": " ↓"}
    lines: list[list[Any]] = []
    for budget, rows in groups.items():
        lines.append([f"**{budget} an image**", *[None] * (len(names) - 1)])
        lines += [[row[name] for name in names] for row in rows]
    return markdown_table([name.replace("_", " ") + arrow.get(meaning(name)[0], "") for name in names], lines)


def _reconstructions(store: Store, rows: Sequence[Row]) -> bytes | None:
    """Held-out images, and below them what each tokenizer makes of them: PNG."""
    lines: list[tuple[str, Any]] = []
    for row in rows:
        artifact = store.resolve(row["evaluation"], "evaluation")
        if any(f["path"].endswith(f"/{RECONSTRUCTIONS}") for f in store.record(artifact).files):
            with np.load(store.fetch(artifact, RECONSTRUCTIONS) / RECONSTRUCTIONS, allow_pickle=False) as arrays:
                if not lines:  # one protocol, so the same images
                    lines.append(("original", arrays["original"][:_COLUMNS]))
                lines.append((str(row["run"]), arrays["decoded"][:_COLUMNS]))
    return pictures.labelled_rows(lines) if lines else None


def _side_by_side(store: Store, rows: Sequence[Row]) -> bytes | None:
    """Some samples of each run, the same classes in the same columns: PNG."""
    found = []
    for row in rows:
        artifact = store.resolve(row["evaluation"], "evaluation")
        if any(f["path"].endswith("/samples.npz") for f in store.record(artifact).files):
            with np.load(store.fetch(artifact, "samples.npz") / "samples.npz", allow_pickle=False) as arrays:
                found.append((str(row["run"]), arrays["images"], arrays["labels"]))
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


def show(rows: Sequence[Row]) -> str:
    """The leaderboard as text: one line a measure, one column a run, best run first."""
    from rich.console import Console
    from rich.table import Table

    from tokenloom.tasks.evaluation.report import meaning, number

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("")
    for row in rows:
        table.add_column(str(row["run"]), justify="right")
    table.add_column("better", style="dim")
    for name in rows[0]:
        if name != "run":
            table.add_row(name, *("" if row[name] is None else number(row[name]) for row in rows), meaning(name)[0])
    text = io.StringIO()
    Console(file=text, width=40 + 40 * len(rows), color_system=None).print(table)
    if len(rows) > 1 and not any(name in rows[0] for name in _NLL):
        text.write("NLL is left out: it compares only within one tokenizer.\n")
    return text.getvalue()
