"""What the trainings of a run will cost, for ``plan``: parameters, operations, memory, hours, and what would not fit."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from tokenloom.configs.schema import RunConfig
from tokenloom.models.core import registry
from tokenloom.models.core.build import ModelSpec
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.settings import ExecutionSettings, TrainSettings
from tokenloom.tasks import modalities
from tokenloom.tasks.costs import took
from tokenloom.tasks.costs.cost import cost_of
from tokenloom.tasks.steps import ingest, train_stage, train_tokenizer
from tokenloom.tasks.steps.base import Context, Planned
from tokenloom.tasks.store.artifacts import Store
from tokenloom.tasks.store.records import Record
from tokenloom.tasks.training.speed import ACCELERATORS, processor

__all__ = ["accelerator_named", "cells", "costs", "totals"]


def accelerator_named(name: str) -> Any:
    """The accelerator of this name, or a core of this machine (``cpu``).

    Raises:
        ConfigError: it is not in the table.
    """
    if name.lower() == "cpu":
        return processor()
    if name not in ACCELERATORS:
        raise ConfigError(f"--accelerator {name}: no peak rates are known; use one of {', '.join(ACCELERATORS)}, cpu")
    return ACCELERATORS[name]


def costs(
    config: RunConfig,
    store: Store,
    planned: dict[str, Planned],
    execution: ExecutionSettings,
    name: str = "H100",
    price: float | None = None,
    items: int | None = None,
) -> list[dict[str, Any]]:
    """One row for each model that the run is going to train, in order; a model that is there costs nothing more.

    Args:
        config: the run.
        store: what it works on.
        planned: its steps, by the role of what each makes.
        execution: workers, micro-batch, sharding.
        name: of the accelerator.
        price: of one accelerator's hour, in any currency.
        items: training items, where the data is not there yet.

    Raises:
        ConfigError: an unknown accelerator, or a price or number of items that is none.
    """
    accelerator, found = accelerator_named(name), list[dict[str, Any]]()
    if price is not None and not 0 <= price < math.inf:
        raise ConfigError(f"--price {price}: give the price of an hour, 0 or more")
    if items is not None and items < 1:
        raise ConfigError(f"--items {items}: give the number of training items, at least 1")
    if "dataset" not in planned:
        return found
    trained, past = _trained(config, store, planned), list[Record]()
    if trained:
        past = [record for record in store.records() if took.TOOK in record.notes]
    for one in trained:
        settings = one.settings
        known = _items(planned["dataset"], store) or items or _published(one.spec, settings)
        cost = cost_of(one.spec, one.section, settings, execution, known, one.others, one.views)
        rate = took.rate_of(past, accelerator, one.spec.recipe, settings.precision)
        found.append(cost.on(accelerator, settings, execution.workers, price, rate))
    return found


def totals(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The whole run: memory is the largest, all else a sum; None where a part is not known."""
    whole = {key: _sum([row[key] for row in rows]) for key in ("parameters", "flops", "hours", "price", "store_bytes")}
    return whole | {"memory_bytes": max((row["memory_bytes"] for row in rows), default=0), "trainings": rows}


def _sum(values: list[Any]) -> Any:
    return None if None in values else sum(values)


def cells(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """The same for people, a row a training: names of the columns, and the cells; a column that is empty is left out."""
    columns, found = ["name", "parameters", "FLOP", "memory a worker", "time", "price", "store", "remarks"], []
    for row in rows:
        where = f"{row['accelerators']} {row['accelerator']} at {row['share_of_peak']:.0%} of the peak ({row['share_from']})"
        length = "not known" if row["hours"] is None else f"{took.length(row['hours'] * 3600)} on {where}"
        remarks = [row["warning"], None if row["counted"] == "traced" else f"counted {row['counted']}"]
        remarks.append("epochs of data that is not there yet: give --items N" if row["steps"] is None else None)
        money = None if row["price"] is None else f"{row['price']:,.2f}"
        flops = "not known" if row["flops"] is None else f"{row['flops']:.3g}"
        said = "; ".join(remark for remark in remarks if remark)
        found.append(
            [
                row["section"],
                f"{row['parameters']:,}",
                flops,
                took.size_of(row["memory_bytes"]),
                length,
                money,
                took.size_of(row["store_bytes"]),
                said,
            ]
        )
    filled = [at for at in range(len(columns)) if any(row[at] for row in found)]
    return [columns[at] for at in filled], [[row[at] for at in filled] for row in found]


@dataclass(frozen=True)
class _Training:
    """A model that has still to be trained: its section, spec and settings, the trained models that it needs, views to tokenize first."""

    section: str
    spec: ModelSpec
    settings: TrainSettings
    others: dict[str, ModelSpec] = field(default_factory=dict)
    views: int = 0


def _trained(config: RunConfig, store: Store, planned: dict[str, Planned]) -> list[_Training]:
    """Every model that has still to be trained, in order."""
    context = Context(config, store)
    classes = ingest.classes(context, planned)
    wanted = {role for role, one in planned.items() if one.status != "cached"}
    if config.density is not None:
        signal = modalities.kind(config.data.kind).spec(config.data).to_dict()
        method, given = config.density, {"signal": signal, "classes": classes}
        spec = ModelSpec("density", method.recipe or "", dict(method.args), dict(method.set), given)
        return [_Training("density", spec, method.train)] if method.train is not None and "density" in wanted else []
    found: list[_Training] = []
    spec, layout = train_tokenizer.checked(context, planned)
    section, method_ = config.tokenizer, config.generator
    base = section.base if section is not None else None
    if base is not None and base.train is not None and "base" in wanted:
        found.append(_Training("tokenizer.base", ModelSpec.from_dict(spec.given["tokenizer"]), base.train))
    if section is not None and section.train is not None and "tokenizer" in wanted:
        found.append(_Training("tokenizer", spec, section.train))
    if method_ is None:
        return found
    given = {"layout": layout, "classes": classes, "tokenizer": spec.to_dict()}
    made = ModelSpec("generator", method_.recipe or "", dict(method_.args), dict(method_.set), given)
    if method_.train is not None and method_.use is None and "generator" in wanted:
        views = len(modalities.kind(config.data.kind).parse_views(config.extract.views)) if "tokens" in wanted else 0
        found.append(_Training("generator", made, method_.train, views=views))
    for number, stage in enumerate(config.stages):
        step = train_stage.unmade(number, context)
        before, noted = made, step.notes
        made = ModelSpec("generator", noted["recipe"], noted["args"], noted["set"], given, step.config["config"])
        if f"stage_{stage.name}" in wanted:
            others = {"reference": before} | {role: _spec_of(store, reference) for role, reference in stage.roles.items()}
            found.append(_Training(f"stages.{stage.name}", made, stage.train, others))
    return found


def _spec_of(store: Store, reference: str) -> ModelSpec:
    return ModelSpec.from_dict(store.record(store.resolve(reference)).notes["spec"])


def _items(dataset: Planned, store: Store) -> int | None:
    """Training items of a dataset that is there."""
    if dataset.artifact is None:
        return None
    return sum(shard["rows"] for shard in store.record(dataset.artifact).notes["shards"] if shard["split"] == "train")


def _published(spec: ModelSpec, settings: TrainSettings) -> int | None:
    """Training items of the published training, where the run says ``as: paper`` and the data is not there yet."""
    return registry.get(spec.recipe).training(spec.args).images if settings.source == "paper" else None
