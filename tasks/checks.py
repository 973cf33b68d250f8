"""What can be known to be impossible before any work starts: the models of a run are built without memory."""

from __future__ import annotations

from typing import Any

import torch

from configs.schema import RunConfig
from models.build import ModelSpec
from models.config import ConfigError
from models.protocols import Method


def check_models(config: RunConfig, classes: int, tokenizer: dict[str, Any] | None = None) -> None:
    """Build the tokenizer and the generator (if it has one) of a run on the meta device.

    Args:
        config: the run.
        classes: number of classes in the data.
        tokenizer: spec of the tokenizer in use (``ModelSpec.to_dict()``); None when the run trains its own.

    Raises:
        ConfigError: unknown recipe or argument, or a value that does not fit; the message starts with the section.
    """
    data = {"size": config.data.size, "channels": config.data.channels}
    if tokenizer is None:
        section = config.tokenizer
        spec = ModelSpec("tokenizer", section.recipe or "", dict(section.args), dict(section.set), data)
    else:
        spec = ModelSpec.from_dict(tokenizer)
        for name, value in data.items():
            if spec.given[name] != value:
                raise ConfigError(
                    f"tokenizer.use={config.tokenizer.use!r}: made for {name} {spec.given[name]}, data.{name} is {value}; "
                    f"set data.{name}={spec.given[name]} or train a tokenizer"
                )
    layout = getattr(_build(spec, "tokenizer"), "layout").to_dict()  # noqa: B009 - Method has no layout, a tokenizer does
    method = config.generator
    if method is None:
        return
    given = {"layout": layout, "classes": classes, "tokenizer": spec.to_dict()}
    _build(ModelSpec("generator", method.recipe, dict(method.args), dict(method.set), given), "generator")


def _build(spec: ModelSpec, section: str) -> Method:
    try:
        try:
            with torch.device("meta"):
                return spec.build()
        except (NotImplementedError, RuntimeError):
            return spec.build()  # a part that computes values when it is built needs real tensors
    except ConfigError as error:
        text = str(error)
        raise ConfigError(text if text.startswith(section) else f"{section}: {text}") from error
