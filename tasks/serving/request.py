"""Which conditions a generator takes (classes or texts), and how a request is checked and made into them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tokenloom.models.core.build import ModelSpec
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.requests import Condition, Conditions, Labels, Text, TextFeatures
from tokenloom.models.parts.characters import Encoded, ReadText
from tokenloom.models.parts.conditions import Conditioner, condition_of
from tokenloom.tasks.serving.encoder import FrozenEncoder

#: Class numbers (N,), or N texts.
Request = NDArray[np.int64] | Sequence[str]


@dataclass(frozen=True)
class ConditionSpec:
    """The conditions of a generator: their ``names``, the names of its ``classes``, and ``texts``, example captions from its data."""

    names: tuple[str, ...]
    classes: tuple[str, ...]
    texts: tuple[str, ...] = ()
    length: int | None = None
    encoder: FrozenEncoder | None = None

    @classmethod
    def of(cls, spec: ModelSpec, classes: Sequence[str] = (), texts: Sequence[str] = ()) -> ConditionSpec:
        """The conditions that a generator of this spec takes."""
        condition = condition_of(spec.config())
        encoder = encoder_of(condition)
        length = condition.length if isinstance(condition, ReadText.Config) else None
        return cls(
            (Labels.name,) if condition is None else condition.names,
            tuple(classes),
            tuple(texts),
            length,
            None if encoder is None else FrozenEncoder(**encoder),
        )

    @property
    def column(self) -> str:
        """The column of a request: ``class_id`` or ``text``."""
        return "text" if self.texted else "class_id"

    @property
    def texted(self) -> bool:
        """Whether texts are among its conditions."""
        return bool({Text.name, TextFeatures.name} & set(self.names))

    def check(self, request: Request) -> None:
        """Refuse a request that the generator cannot follow.

        Raises:
            ConfigError: texts instead of classes or the other way round, a class that it does not have, a text that is too long.
        """
        if isinstance(request, np.ndarray) == self.texted:
            what = "texts, and the request holds classes" if self.texted else "classes, and the request holds texts"
            raise ConfigError(f"this model is conditioned on {what}")
        if isinstance(request, np.ndarray):
            check_labels(request, self.classes)
        elif Text.name in self.names and self.length is not None:
            for text in request:
                if len(text.encode()) > self.length:
                    raise ConfigError(f"text {text!r}: {len(text.encode())} bytes, this model takes at most {self.length}")

    def conditions(self, request: Request) -> Conditions:
        """The conditions of one sample a row.

        Raises:
            ConfigError: see ``check``; a text encoder that cannot be had.
        """
        self.check(request)
        return Conditions.of(self._condition(request))

    def _condition(self, request: Request) -> Condition:
        if isinstance(request, np.ndarray):
            return Labels(torch.tensor(request, dtype=torch.int64))
        if Text.name in self.names:
            return Text.of(request)
        if self.encoder is None:
            raise ConfigError("this model takes features of texts, and no encoder is named that makes them")
        return self.encoder(request)


def encoder_of(condition: Conditioner.Config | None) -> dict[str, Any] | None:
    """The arguments of ``FrozenEncoder`` that a condition names, None for one that needs no encoder."""
    if not isinstance(condition, Encoded.Config):
        return None
    return {"name": condition.encoder, "length": condition.length, "features": condition.features}


def check_labels(labels: NDArray[np.int64], classes: tuple[str, ...]) -> None:
    """Raise ``ConfigError`` for a class that the model does not have."""
    wrong = [int(k) for k in labels if not 0 <= k < max(1, len(classes))]
    if wrong:
        raise ConfigError(f"class_id {wrong[0]}: this model has the classes 0 to {max(0, len(classes) - 1)}")
