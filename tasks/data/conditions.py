"""Texts and columns as conditions of a generator: what its data must have, and what its batches carry."""

from __future__ import annotations

from dataclasses import asdict, replace

from tokenloom.configs.schema import RunConfig
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.requests import Text, TextFeatures
from tokenloom.tasks import modalities
from tokenloom.tasks.data.captions import examples, of_shard
from tokenloom.tasks.data.loader import Rows, read_shard
from tokenloom.tasks.serving.request import ConditionSpec
from tokenloom.tasks.store.artifacts import Store


def check_captions(config: RunConfig, condition_spec: ConditionSpec) -> None:
    """Refuse, before anything is made, a generator of captions (``condition_spec`` has its conditions) on data without any.

    Raises:
        ConfigError: naming what to set.
    """
    if not condition_spec.texted:
        return
    check_encoder(condition_spec)
    where = f"generator.set.condition: it takes captions, and data.captions is {config.data.captions!r}"
    if config.data.captions == "none":
        raise ConfigError(f"{where}; set data.captions: names")
    source = modalities.kind(config.data.kind).open_source(config.data)
    if config.data.captions == "source" and not source.captioned:
        raise ConfigError(f"{where}, but {config.data.source} has none; set data.captions: names")
    if config.data.captions != "source" and Text.name in condition_spec.names and condition_spec.length is not None:
        for name in source.classes:
            if (size := len((source.of_class(name, config.data.captions) or "").encode())) > condition_spec.length:
                raise ConfigError(f"generator.set.condition: length={condition_spec.length}, but the caption of {name!r} has {size} bytes")


def check_columns(config: RunConfig, condition_spec: ConditionSpec) -> None:
    """Refuse, before anything is made, a generator of columns that the data does not have, or that have another shape.

    Raises:
        ConfigError: naming what to set.
    """
    for name, shape in condition_spec.columns.items():
        if name not in (config.data.columns or {}):
            there = ", ".join(config.data.columns or {}) or "none"
            raise ConfigError(f"generator.set.condition: it takes the column {name!r}, and data.columns has {there}; add it there")
        signal = modalities.kind(config.data.kind).spec(config.data)
        if shape != (made := (signal.channels, *signal.shape)):
            raise ConfigError(f"generator.set.condition: the column {name!r} of shape {shape}, and the data's columns have {made}")


def with_conditions(rows: Rows, condition_spec: ConditionSpec) -> Rows:
    """The rows with the conditions that this generator takes.

    Raises:
        ConfigError: features of texts, and nothing says which encoder makes them.
    """
    check_encoder(condition_spec)
    encoder = None if condition_spec.encoder is None else asdict(condition_spec.encoder)
    length = condition_spec.length if Text.name in condition_spec.names else None
    return replace(rows, conditions=condition_spec.names, length=length, encoder=encoder)


def check_encoder(condition_spec: ConditionSpec) -> None:
    """Refuse features of texts without a text encoder that can make them.

    Raises:
        ConfigError: no encoder is named, its package is missing, or it is no folder that every worker would find.
    """
    if TextFeatures.name in condition_spec.names and condition_spec.encoder is None:
        raise ConfigError(
            "generator: it takes features of texts, and no encoder is named that makes them; "
            "set condition: {encoded: {encoder: FOLDER, features: WIDTH}}"
        )
    if condition_spec.encoder is not None:
        condition_spec.encoder.check()


def example_texts(rows: Rows, store: Store) -> list[str]:
    """Some captions of the first training shard that has any, as examples of requests in the model card and the served model.

    Raises:
        ConfigError: no training image has a caption.
    """
    for shard in rows.shards:
        if found := examples(of_shard(read_shard(store.storage, shard))):
            return found
    raise ConfigError("generator: it takes captions, and no training image has one; set data.captions: names, or add texts to the data")
