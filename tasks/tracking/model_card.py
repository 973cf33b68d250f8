"""The model card: what a registered model is, what it was made from, how good it is, and where it ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenloom.models.core import registry
from tokenloom.models.core.config import ConfigError
from tokenloom.tasks import modalities
from tokenloom.tasks.evaluation.report import meaning, number
from tokenloom.tasks.modalities.base import Card
from tokenloom.tasks.store.artifacts import Record


def model_card(name: str, *, models: Mapping[str, Record], dataset: Record, evaluation: Record, fingerprint: str) -> str:
    """The card as Markdown, without anything that differs between two runs of the same recipe on the same numbers.

    ``models`` are the registered ones by role, the one that is sampled first.
    """
    main = next(iter(models.values()))
    texts = list(main.notes.get("texts", ()))
    card = modalities.of(dataset.notes).card(dataset, evaluation, texts)
    made = {**models, "dataset": dataset, "evaluation": evaluation}
    parts = [
        f"# {name}",
        "",
        card.makes,
        "",
        *([f"It is conditioned on texts, e.g. {', '.join(map(repr, texts[:5]))}.", ""] if texts else []),
        *_ingredients(models, dataset, card),
        *_numbers(evaluation, card),
        *_use(name, card),
        "## Limits",
        "",
        card.limits,
        "",
        "## Made from",
        "",
        *(f"- {role}: `{record.artifact.kind}/{record.artifact.id}`" for role, record in made.items()),
        f"- fingerprint: `{fingerprint}`",
        f"- code: {main.commit or 'unknown'}; torch {main.versions.get('torch', '?')}",
        "",
    ]
    return "\n".join(parts)


def _ingredients(models: Mapping[str, Record], dataset: Record, card: Card) -> list[str]:
    data, lines = dataset.config["data"], []
    for at, (role, record) in enumerate(models.items()):
        size = "" if at else f", {number(record.notes.get('parameters', 0))} parameters"
        lines.append(f"- {role.capitalize()}: {_recipe(record)}{size}")
    lines.append(f"- Data: `{data['source']}`, {_splits(dataset)} {card.items}")
    if licence := dataset.notes.get("licence"):
        lines.append(f"- Licence of the data: {licence}")
    return [*lines, ""]


def _numbers(evaluation: Record, card: Card) -> list[str]:
    """The table of numbers, and the protocol that they were made under."""
    rows = [
        f"| {key} | {number(evaluation.metrics[key])} | {meaning(key)[0]} |"
        for prefix in card.shown
        for key in sorted(evaluation.metrics)
        if (key.startswith(prefix) if prefix.endswith("_") else key == prefix) and not key.endswith("_deviation")
    ]
    return [
        *("## Numbers", "", "| metric | value | better |", "|---|---|---|", *rows, ""),
        *(line for remark in card.remarks for line in (remark, "")),
        f"{card.protocol} Sampling: {_sampling(evaluation)}.",
        "",
    ]


def _use(name: str, card: Card) -> list[str]:
    return [
        *("## Sample it", "", "```"),
        *(command.format(name=name) for command in card.commands),
        f"mlflow models serve -m models:/{name}@challenger --env-manager local",
        *("```", ""),
        card.interface,
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
    return " + ".join(counts)


def _sampling(evaluation: Record) -> str:
    sampler: dict[str, Any] = evaluation.notes.get("sampler", {})
    if not sampler:
        return "the recipe's own"
    guidance, temperature = sampler["guidance"], sampler["temperature"]
    kind = str(guidance["type"]).rsplit(".", 1)[-1].lower()
    kept = f"top-k {sampler['top_k']}, top-p {sampler['top_p']:g}"
    return f"guidance {guidance['value']:g} ({kind}), temperature {temperature['value']:g}, {kept}"
