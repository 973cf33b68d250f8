"""What the trainings of a run will cost, for ``plan``: parameters, operations, memory, hours, and what would not fit."""

from __future__ import annotations

import math
from typing import Any

from tokenloom.configs.schema import RunConfig
from tokenloom.models.core import registry
from tokenloom.models.core.build import ModelSpec
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.settings import ExecutionSettings, TrainSettings
from tokenloom.tasks import modalities
from tokenloom.tasks.steps import ingest, train_tokenizer
from tokenloom.tasks.steps.base import Context, Planned
from tokenloom.tasks.store.artifacts import Store
from tokenloom.tasks.training.cost import cost_of
from tokenloom.tasks.training.speed import ACCELERATORS

__all__ = ["accelerator_named", "cells", "costs", "totals"]


def accelerator_named(name: str) -> Any:
    """The accelerator of this name.

    Raises:
        ConfigError: it is not in the table.
    """
    if name not in ACCELERATORS:
        raise ConfigError(f"--accelerator {name}: no peak rates are known; use one of {', '.join(ACCELERATORS)}")
    return ACCELERATORS[name]


def costs(
    config: RunConfig,
    store: Store,
    planned: dict[str, Planned],
    execution: ExecutionSettings,
    name: str = "H100",
    price: float | None = None,
) -> list[dict[str, Any]]:
    """One row for each model that the run is going to train, in order; a model that is there costs nothing more.

    Args:
        config: the run.
        store: what it works on.
        planned: its steps, by the role of what each makes.
        execution: workers, micro-batch, sharding.
        name: of the accelerator.
        price: of one accelerator's hour, in any currency.
    """
    accelerator, found = accelerator_named(name), list[dict[str, Any]]()
    if price is not None and not 0 <= price < math.inf:
        raise ConfigError(f"--price {price}: give the price of an hour, 0 or more")
    if "dataset" not in planned:
        return found
    for section, spec, settings in _trained(config, store, planned):
        items = _items(planned["dataset"], store) or _published(section, spec, settings)
        cost = cost_of(spec, section, settings, execution, items)
        found.append(cost.on(accelerator, settings, execution.workers, price))
    return found


def totals(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The whole run: parameters, operations, hours and price are sums, memory the largest; None where a part is not known."""
    whole = {key: _sum([row[key] for row in rows]) for key in ("parameters", "flops", "hours", "price")}
    return whole | {"memory_bytes": max((row["memory_bytes"] for row in rows), default=0), "trainings": rows}


def _sum(values: list[Any]) -> Any:
    return None if None in values else sum(values)


def cells(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """The same for people, a row a training: names of the columns, and the cells; a column that is empty is left out."""
    columns, found = ["name", "parameters", "FLOP", "memory a worker", "time", "price", "remarks"], []
    for row in rows:
        where = f"{row['accelerators']} {row['accelerator']} at {row['share_of_peak']:.0%} of the peak"
        length = "not known" if row["hours"] is None else f"{_time(row['hours'])} on {where}"
        remarks = [row["warning"], None if row["counted"] == "traced" else f"counted {row['counted']}"]
        remarks.append("epochs of data that is not there yet" if row["steps"] is None else None)
        money = None if row["price"] is None else f"{row['price']:,.2f}"
        flops = "not known" if row["flops"] is None else f"{row['flops']:.3g}"
        said = "; ".join(remark for remark in remarks if remark)
        found.append([row["section"], f"{row['parameters']:,}", flops, _memory(row["memory_bytes"]), length, money, said])
    filled = [at for at in range(len(columns)) if any(row[at] for row in found)]
    return [columns[at] for at in filled], [[row[at] for at in filled] for row in found]


def _time(hours: float) -> str:
    return f"{hours:,.1f} h" if hours >= 1 else f"{hours * 60:.1f} min" if hours * 60 >= 1 else f"{hours * 3600:.1f} s"


def _memory(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"


def _trained(config: RunConfig, store: Store, planned: dict[str, Planned]) -> list[tuple[str, ModelSpec, TrainSettings]]:
    """Section, spec and settings of every model that has still to be trained (stages and bases apart)."""
    classes = ingest.classes(Context(config, store), planned)
    if config.density is not None:
        signal = modalities.kind(config.data.kind).spec(config.data).to_dict()
        method, given = config.density, {"signal": signal, "classes": classes}
        spec = ModelSpec("density", method.recipe, dict(method.args), dict(method.set), given)
        return [("density", spec, method.train)] if method.train is not None and planned["density"].status != "cached" else []
    found: list[tuple[str, ModelSpec, TrainSettings]] = []
    spec, layout = train_tokenizer.checked(Context(config, store), planned)
    section, method_ = config.tokenizer, config.generator
    if section is not None and section.train is not None and planned["tokenizer"].status != "cached":
        found.append(("tokenizer", spec, section.train))
    if method_ is not None and method_.train is not None and method_.use is None and planned["generator"].status != "cached":
        given = {"layout": layout, "classes": classes, "tokenizer": spec.to_dict()}
        found.append(
            ("generator", ModelSpec("generator", method_.recipe or "", dict(method_.args), dict(method_.set), given), method_.train)
        )
    return found


def _items(dataset: Planned, store: Store) -> int | None:
    """Training items of a dataset that is there."""
    if dataset.artifact is None:
        return None
    return sum(shard["rows"] for shard in store.record(dataset.artifact).notes["shards"] if shard["split"] == "train")


def _published(section: str, spec: ModelSpec, settings: TrainSettings) -> int | None:
    """Training items of the published training, where the run says ``as: paper`` and the data is not there yet."""
    return registry.get(spec.recipe).training(spec.args).images if settings.source == "paper" else None
