"""What a dataset has to have for the rest of its run, looked at when ingest ends: before anything is trained."""

from __future__ import annotations

from tokenloom.configs.schema import RunConfig
from tokenloom.models.core.build import ModelSpec
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.requests import Text
from tokenloom.tasks import modalities
from tokenloom.tasks.serving.request import ConditionSpec
from tokenloom.tasks.store.artifacts import Record, Store


def check_data(config: RunConfig, record: Record, store: Store) -> None:
    """Refuse a dataset that the run could be trained on and not be judged by, or that its generator cannot read.

    Raises:
        ConfigError: naming the field, the item, and what helps.
    """
    _check_held_out(config, record)
    if config.generator is None:
        return
    classes, samples = len(record.notes["classes"]), config.evaluate.samples
    condition_spec = _condition_spec(config, store)
    if condition_spec.labelled and samples < classes:
        raise ConfigError(
            f"evaluate.samples={samples}: fewer than the {classes} classes of {config.data.source}, so that some would never be sampled; "
            f"give at least {classes}"
        )
    _check_captions(condition_spec, record)


def _check_held_out(config: RunConfig, record: Record) -> None:
    modality, metrics = modalities.of(record.notes), record.metrics
    held_out, least = metrics["validation"] + metrics["test"], modality.least_held_out(config.evaluate)
    if held_out < least:
        why = record.notes.get("found", {}).get("rejected")
        counsel = f"rejected were {why}; mend or replace those" if why else "raise data.validation, or add data"
        raise ConfigError(
            f"data.validation={config.data.validation}: {held_out} held-out {modality.noun} of {metrics['train'] + held_out} are too few "
            f"to judge by, {least} are needed (evaluate.neighbours={config.evaluate.neighbours}); {counsel}"
        )


def _check_captions(condition_spec: ConditionSpec, record: Record) -> None:
    size, key = record.notes.get("found", {}).get("longest", (0, ""))
    if Text.name in condition_spec.names and condition_spec.length is not None and size > condition_spec.length:
        raise ConfigError(
            f"{key}: its caption has {size} bytes, and the generator reads {condition_spec.length}: shorten it, or raise length in "
            "generator.set.condition"
        )


def _condition_spec(config: RunConfig, store: Store) -> ConditionSpec:
    """The conditions of the run's generator, one that it trains or one that it uses."""
    method = config.generator
    assert method is not None, "checked by the caller"
    if method.use is not None:
        return ConditionSpec.of(ModelSpec.from_dict(store.record(store.resolve(method.use, "generator")).notes["spec"]))
    return ConditionSpec.of(ModelSpec("generator", method.recipe or "", dict(method.args), dict(method.set)))
