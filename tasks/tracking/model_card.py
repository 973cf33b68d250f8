"""The model card: what a registered model is, what it was made from, how good it is, and where it ends."""

from __future__ import annotations

from typing import Any

from tokenloom.models.core import registry
from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.evaluation.report import meaning, number
from tokenloom.tasks.store.artifacts import Record

_SHOWN = (
    "fd_", "kid_", "is_", "precision", "recall", "density", "coverage", "recognition", "memorisation_ratio", "copies",
    "nll_bits_per_image", "nll_bits_per_dim", "rfd_", "psnr", "ssim", "codebook_use", "images_per_second", "parameters",
)  # fmt: skip


def model_card(name: str, *, generator: Record, tokenizer: Record, dataset: Record, evaluation: Record, fingerprint: str) -> str:
    """The card as Markdown, without anything that differs between two runs of the same recipe on the same numbers."""
    data, protocol, classes = dataset.config["data"], evaluation.notes["protocol"], list(evaluation.notes["classes"])
    numbers = [
        f"| {key} | {number(evaluation.metrics[key])} | {meaning(key)[0]} |"
        for prefix in _SHOWN
        for key in sorted(evaluation.metrics)
        if (key.startswith(prefix) if prefix.endswith("_") else key == prefix) and not key.endswith("_deviation")
    ]
    texts = list(generator.notes.get("texts", ()))
    ceiling = evaluation.metrics.get("recognition_ceiling")
    size, channels = dataset.notes["size"], dataset.notes["channels"]
    made = {"generator": generator, "tokenizer": tokenizer, "dataset": dataset, "evaluation": evaluation}
    return "\n".join(
        [
            f"# {name}",
            "",
            f"Draws {size}x{size} {'grey' if channels == 1 else 'RGB'} images of {len(classes)} classes "
            f"({', '.join(classes[:12])}{', …' if len(classes) > 12 else ''}).",
            "",
            *([f"It is conditioned on texts, e.g. {', '.join(map(repr, texts[:5]))}.", ""] if texts else []),
            f"- Generator: {_recipe(generator)}, {number(generator.notes.get('parameters', 0))} parameters",
            f"- Tokenizer: {_recipe(tokenizer)}",
            f"- Data: `{data['source']}`, {_splits(dataset)}, fitted by `{data['fit']}`",
            "",
            "## Numbers",
            "",
            "| metric | value | better |",
            "|---|---|---|",
            *numbers,
            "",
            *([f"The recognising machine itself is right on {ceiling:.1%} of held-out real images.", ""] if ceiling is not None else []),
            f"Protocol: {protocol.get('samples', 0)} samples, classes even, seed {protocol.get('seed', 0)}, against "
            f"{protocol['reference']['images']} held-out images (hash {protocol['reference']['sha256']}); features: "
            f"{protocol['features']['network']} {protocol['features']['sha256']}, trained on this data, so its distances are not FID. "
            f"Sampling: {_sampling(evaluation)}.",
            "",
            "## Sample it",
            "",
            "```",
            f"tokenloom sample models:/{name}@challenger --n 100 --out samples.png",
            f"mlflow models serve -m models:/{name}@challenger --env-manager local",
            "```",
            "",
            f"Input: column `{'text' if texts else 'class_id'}`; parameters `seed`, `guidance`, `temperature`, `steps` (0: its own); "
            "output: column `png_base64`.",
            "",
            "## Limits",
            "",
            f"It knows these {len(classes)} classes at {size}x{size} pixels and nothing else. Samples are drawn, not checked: "
            "some are of no class. It was judged on data of the same source only.",
            "",
            "## Made from",
            "",
            *(f"- {role}: `{record.artifact.kind}/{record.artifact.id}`" for role, record in made.items()),
            f"- fingerprint: `{fingerprint}`",
            f"- code: {generator.commit or 'unknown'}; torch {generator.versions.get('torch', '?')}",
            "",
        ]
    )


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
