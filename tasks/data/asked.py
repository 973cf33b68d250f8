"""Generators that are asked in words: what their data must have, and what their batches carry."""

from __future__ import annotations

from dataclasses import asdict, replace

from tokenloom.configs.schema import RunConfig
from tokenloom.models.core.build import ModelSpec
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.requests import Text, TextFeatures
from tokenloom.tasks import modalities
from tokenloom.tasks.data.captions import examples, of_shard
from tokenloom.tasks.data.loader import Rows, read_shard
from tokenloom.tasks.serving.asking import Asking
from tokenloom.tasks.store.artifacts import Store


def check_captions(config: RunConfig) -> None:
    """Refuse, before anything is made, a generator of captions on data without any.

    Raises:
        ConfigError: naming what to set.
    """
    method = config.generator
    if method is None:
        return
    asking = Asking.of(ModelSpec("generator", method.recipe, dict(method.args), dict(method.set)))
    if not asking.texted:
        return
    encoder_known(asking)
    where = f"generator.set.condition: it reads captions, and data.captions is {config.data.captions!r}"
    if config.data.captions == "none":
        raise ConfigError(f"{where}; set data.captions: names")
    source = modalities.kind(config.data.kind).open_source(config.data)
    if config.data.captions == "source" and not source.captioned:
        raise ConfigError(f"{where}, but {config.data.source} has none; set data.captions: names")
    if config.data.captions != "source" and Text.name in asking.names and asking.length is not None:
        for name in source.classes:
            if (size := len((source.of_class(name, config.data.captions) or "").encode())) > asking.length:
                raise ConfigError(f"generator.set.condition: length={asking.length}, but the caption of {name!r} has {size} bytes")


def reading(rows: Rows, asking: Asking) -> Rows:
    """The rows with what this generator is given as its condition.

    Raises:
        ConfigError: features of texts, and nothing says which encoder makes them.
    """
    encoder_known(asking)
    encoder = None if asking.encoder is None else asdict(asking.encoder)
    return replace(rows, conditions=asking.names, length=asking.length if Text.name in asking.names else None, encoder=encoder)


def encoder_known(asking: Asking) -> None:
    """Refuse features of texts that nothing can make.

    Raises:
        ConfigError: no encoder is named, its package is missing, or it is no folder that every worker would find.
    """
    if TextFeatures.name in asking.names and asking.encoder is None:
        raise ConfigError(
            "generator: it reads features of texts, and nothing says which encoder makes them; "
            "set condition: {encoded: {encoder: FOLDER, features: WIDTH}}"
        )
    if asking.encoder is not None:
        asking.encoder.check()


def seen_texts(rows: Rows, store: Store) -> list[str]:
    """Some captions of the first training shard that has any, for people to see what the model may be asked.

    Raises:
        ConfigError: no training image has a caption.
    """
    for shard in rows.shards:
        if found := examples(of_shard(read_shard(store.storage, shard))):
            return found
    raise ConfigError("generator: it reads captions, and no training image has one; set data.captions: names, or add texts to the data")
