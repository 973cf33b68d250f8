"""The model card: what a registered model is, what it was made from, how good it is, and where it ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenloom.models.core import registry
from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.evaluation.report import meaning, number
from tokenloom.tasks.store.artifacts import Record

_SHOWN = (
    "fd_", "kid_", "is_", "precision", "recall", "density", "coverage", "recognition", "memorisation_ratio", "copies",
    "nll_bits_per_image", "nll_bits_per_dim", "bound_bits_per_dim",
    "rfd_", "psnr", "ssim", "codebook_use", "images_per_second", "parameters",
)  # fmt: skip


def model_card(name: str, *, models: Mapping[str, Record], dataset: Record, evaluation: Record, fingerprint: str) -> str:
    """The card as Markdown, without anything that differs between two runs of the same recipe on the same numbers.

    ``models`` are the registered ones by role, the one that is sampled first.
    """
    main = next(iter(models.values()))
    classes, texts = list(evaluation.notes["classes"]), list(main.notes.get("texts", ()))
    size, channels = dataset.notes["size"], dataset.notes["channels"]
    made = {**models, "dataset": dataset, "evaluation": evaluation}
    parts = [
        f"# {name}",
        "",
        f"Draws {size}x{size} {'grey' if channels == 1 else 'RGB'} images of {len(classes)} classes "
        f"({', '.join(classes[:12])}{', …' if len(classes) > 12 else ''}).",
        "",
        *([f"It is conditioned on texts, e.g. {', '.join(map(repr, texts[:5]))}.", ""] if texts else []),
        *_ingredients(models, dataset),
        *_numbers(evaluation),
        *_use(name, "text" if texts else "class_id"),
        "## Limits",
        "",
        f"It knows these {len(classes)} classes at {size}x{size} pixels and nothing else. Samples are drawn, not checked: "
        "some are of no class. It was judged on data of the same source only.",
        "",
        "## Made from",
        "",
        *(f"- {role}: `{record.artifact.kind}/{record.artifact.id}`" for role, record in made.items()),
        f"- fingerprint: `{fingerprint}`",
        f"- code: {main.commit or 'unknown'}; torch {main.versions.get('torch', '?')}",
        "",
    ]
    return "\n".join(parts)


def _ingredients(models: Mapping[str, Record], dataset: Record) -> list[str]:
    data, lines = dataset.config["data"], []
    for at, (role, record) in enumerate(models.items()):
        size = "" if at else f", {number(record.notes.get('parameters', 0))} parameters"
        lines.append(f"- {role.capitalize()}: {_recipe(record)}{size}")
    return [*lines, f"- Data: `{data['source']}`, {_splits(dataset)}, fitted by `{data['fit']}`", ""]


def _numbers(evaluation: Record) -> list[str]:
    """The table of numbers, and the protocol that they were made under."""
    protocol, ceiling = evaluation.notes["protocol"], evaluation.metrics.get("recognition_ceiling")
    rows = [
        f"| {key} | {number(evaluation.metrics[key])} | {meaning(key)[0]} |"
        for prefix in _SHOWN
        for key in sorted(evaluation.metrics)
        if (key.startswith(prefix) if prefix.endswith("_") else key == prefix) and not key.endswith("_deviation")
    ]
    return [
        *("## Numbers", "", "| metric | value | better |", "|---|---|---|", *rows, ""),
        *([f"The recognising machine itself is right on {ceiling:.1%} of held-out real images.", ""] if ceiling is not None else []),
        f"Protocol: {protocol.get('samples', 0)} samples, classes even, seed {protocol.get('seed', 0)}, against "
        f"{protocol['reference']['images']} held-out images (hash {protocol['reference']['sha256']}); features: "
        f"{protocol['features']['network']} {protocol['features']['sha256']}, trained on this data, so its distances are not FID. "
        f"Sampling: {_sampling(evaluation)}.",
        "",
    ]


def _use(name: str, column: str) -> list[str]:
    return [
        *("## Sample it", "", "```"),
        f"tokenloom sample models:/{name}@challenger --n 100 --out samples.png",
        f"mlflow models serve -m models:/{name}@challenger --env-manager local",
        *("```", ""),
        f"Input: column `{column}`; parameters `seed`, `guidance`, `temperature`, `steps` (0: its own); output: column `png_base64`.",
        "",
    ]


def _recipe(record: Record) -> str:
    """The recipe, and where the method comes from, if the zoo knows it."""
    name = record.config.get("recipe", "imported")
    try:
        paper = registry.get(name).paper
    except ConfigError:
        return f"`{name}`"
    return f"`{name}` (arXiv {paper})" if paper[:4].isdigit() else f"`{name}` ({paper})"


def _splits(dataset: Record) -> str:
    counts = [f"{dataset.metrics[s]} {s}" for s in ("train", "validation", "test") if dataset.metrics.get(s)]
    return " + ".join(counts) + " images"


def _sampling(evaluation: Record) -> str:
    sampler: dict[str, Any] = evaluation.notes.get("sampler", {})
    if not sampler:
        return "the recipe's own"
    guidance, temperature = sampler["guidance"], sampler["temperature"]
    kind = str(guidance["type"]).rsplit(".", 1)[-1].lower()
    kept = f"top-k {sampler['top_k']}, top-p {sampler['top_p']:g}"
    return f"guidance {guidance['value']:g} ({kind}), temperature {temperature['value']:g}, {kept}"
