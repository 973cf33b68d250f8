"""A leaderboard of evaluations under one protocol: rows, a table, a plot of quality against cost, samples side by side."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenloom.models.core.config import ConfigError
from tokenloom.tasks import modalities
from tokenloom.tasks.evaluation import plots
from tokenloom.tasks.evaluation.gate import lower_is_better
from tokenloom.tasks.evaluation.report import markdown_table, meaning
from tokenloom.tasks.modalities.base import Comparison
from tokenloom.tasks.store.artifacts import Artifact, Record, Store
from tokenloom.tasks.store.lineage import differences
from tokenloom.tasks.store.storage import atomic

Row = dict[str, Any]
_HIDDEN = ("_deviation", "_ceiling")
_SAME = 1.05  # tokenizers whose bits an image are within this factor of each other compare directly


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
    shown = _comparison(store, records)
    _one_protocol(records, shown)
    tokenizers = {_fingerprint(r.inputs.get("tokenizer")) for r in records}
    rows = [_row(store, record, shown, within_tokenizer=len(tokenizers) == 1) for record in records]
    quality = _quality(rows, shown)
    sign = 1 if quality is None or lower_is_better(quality) else -1
    rows.sort(key=lambda row: (row.get(quality) is None, sign * (row.get(quality) or 0.0)) if quality else 0)
    if shown.budget and not any(_samples(record) for record in records):
        rows = _by_budget(rows, shown.budget)
    return _aligned(rows)


def _comparison(store: Store, records: Sequence[Record]) -> Comparison:
    """How the kind of signal that these evaluations judge is compared; raises ``ConfigError`` for two kinds."""
    kinds = {record.artifact.id: modalities.of(store.record(record.inputs["dataset"]).notes) for record in records}
    if len({modality.kind for modality in kinds.values()}) > 1:
        raise ConfigError(f"{' and '.join(f'{name} ({m.kind})' for name, m in kinds.items())}: name runs of one kind of signal")
    return next(iter(kinds.values())).comparison


def _by_budget(rows: list[Row], budget: str) -> list[Row]:
    """Tokenizers in groups of (nearly) equal ``budget``, small ones first; the order within a group stays."""
    budgets: list[list[float]] = []
    for bits in sorted({row[budget] for row in rows if row.get(budget)}):
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
    found = [{"run": row["run"], "budget": named.get(row.get(budget, 0), ""), **row} for row in rows]
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


def _one_protocol(records: Sequence[Record], shown: Comparison) -> None:
    first = records[0]
    for other in records[1:]:
        mine, theirs = dict(first.notes["protocol"]), dict(other.notes["protocol"])
        if _samples(first) != _samples(other):
            for name in shown.of_samples:  # a tokenizer alone has no samples
                mine.pop(name, None)
                theirs.pop(name, None)
        if found := list(differences(mine, theirs)):
            raise ConfigError(
                f"{first.artifact.id} and {other.artifact.id} were judged under different protocols: {'; '.join(found[:4])}. "
                "Evaluate both on the same data with the same `evaluate` section"
            )


def _row(store: Store, record: Record, shown: Comparison, within_tokenizer: bool) -> Row:
    made = store.record(next(record.inputs[role] for role in ("generator", "density", "tokenizer") if role in record.inputs))
    tokenizer = record.inputs.get("tokenizer")
    row: Row = {
        "run": record.artifact.name,
        "method": made.config.get("recipe", "imported"),
        "tokenizer": None if tokenizer is None else store.record(tokenizer).config.get("recipe", "imported"),
        "guidance": _guidance(record.notes.get("sampler")),
    }
    for column in shown.columns:
        for name in sorted(record.metrics):
            fits = name.startswith(column) if column.endswith("_") else name == column
            if fits and not name.endswith(_HIDDEN) and (within_tokenizer or name not in shown.within_tokenizer):
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


def _quality(rows: Sequence[Row], shown: Comparison) -> str | None:
    """The column that ranks: the first of the kind's headlines that every run has."""
    for headline in shown.headline:
        for row in rows:
            for name in row:
                fits = name.startswith(headline) if headline.endswith("_") else name == headline
                if fits and all(r.get(name) is not None for r in rows):
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
    judged = [(str(row["run"]), store.resolve(row["evaluation"], "evaluation")) for row in rows]
    modality = modalities.of(store.record(store.record(judged[0][1]).inputs["dataset"]).notes)
    shown = modality.comparison
    quality = _quality(rows, shown)
    if groups := budgets(rows):
        files["leaderboard.md"] = markdown(groups).encode()
        files["leaderboard.json"] = json.dumps({"rows": list(rows)}, indent=1).encode()
    by_size = bool(groups) and all(row.get(shown.budget) for row in rows)
    cost = shown.budget if by_size else shown.speed if all(row.get(shown.speed) for row in rows) else "parameters"
    if quality is not None and all(row.get(cost) is not None for row in rows):
        points = [(str(row["run"]), float(row[cost]), float(row[quality])) for row in rows]
        better = "lower" if lower_is_better(quality) else "higher"
        files["leaderboard.png"] = plots.scatter(points, meaning(cost)[1].partition(",")[0], f"{quality} ({better} is better)")
    files |= modality.side_by_side(store, judged)
    for name, data in files.items():
        with atomic(folder / name) as file:
            file.write(data)
    return [folder / name for name in files]


def markdown(groups: Mapping[str, Sequence[Row]]) -> str:
    """The leaderboard of tokenizers as Markdown: one table, a line a tokenizer, a bold line a budget."""
    first = next(iter(groups.values()))[0]
    names = [name for name in first if name not in ("budget", "tokenizer", "evaluation")]
    arrow = {"higher": " ↑", "lower": " ↓"}
    lines: list[list[Any]] = []
    for budget, rows in groups.items():
        lines.append([f"**{budget} an image**", *[None] * (len(names) - 1)])
        lines += [[row[name] for name in names] for row in rows]
    return markdown_table([name.replace("_", " ") + arrow.get(meaning(name)[0], "") for name in names], lines)
