"""Which conditions a generator takes (classes, texts, columns of the data), and how a request is checked and made into them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tokenloom.models.core.build import ModelSpec
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.requests import Condition, Conditions, Labels, Text, TextFeatures, Values
from tokenloom.models.parts.characters import Encoded, ReadText
from tokenloom.models.parts.conditioners.text_features import TextCondition
from tokenloom.models.parts.conditions import Conditioner, condition_of
from tokenloom.models.zoo.generators.infinity.text import PooledText
from tokenloom.tasks.serving.encoder import FrozenEncoder

#: Names of conditions that are no columns of the data.
_NAMED = (Labels.name, Text.name, TextFeatures.name)


@dataclass(frozen=True)
class Request:
    """What N samples shall be: class numbers (N,), a text each, and ``columns`` by name (N, C, …), of these what the model takes."""

    classes: NDArray[np.int64] | None = None
    texts: Sequence[str] | None = None
    columns: Mapping[str, Values] = field(default_factory=dict)

    def __post_init__(self) -> None:
        counts = {name: len(each) for name, each in (("classes", self.classes), ("texts", self.texts)) if each is not None}
        counts |= {f"column {name!r}": values.rows for name, values in self.columns.items()}
        if len(set(counts.values())) > 1:
            raise ConfigError(f"request: {', '.join(f'{count} {name}' for name, count in counts.items())}: give one of each a sample")

    @classmethod
    def of(cls, given: AnyRequest) -> Request:
        """Class numbers or texts alone, or a whole request as it is."""
        if isinstance(given, Request):
            return given
        return cls(classes=given) if isinstance(given, np.ndarray) else cls(texts=given)

    def __len__(self) -> int:
        first = next((each for each in (self.classes, self.texts) if each is not None), None)
        return len(first) if first is not None else next((values.rows for values in self.columns.values()), 0)

    def part(self, start: int, stop: int) -> Request:
        """Samples ``start:stop``."""
        return Request(
            None if self.classes is None else self.classes[start:stop],
            None if self.texts is None else self.texts[start:stop],
            {name: values.part(start, stop) for name, values in self.columns.items()},
        )

    @property
    def holds(self) -> tuple[str, ...]:
        """What is given, for messages."""
        named = {"classes": self.classes, "texts": self.texts}
        return (*(name for name, each in named.items() if each is not None), *self.columns)


#: Class numbers (N,), N texts, or both and more.
AnyRequest = NDArray[np.int64] | Sequence[str] | Request


@dataclass(frozen=True)
class ConditionSpec:
    """The conditions of a generator: their ``names``, the names of its ``classes``, and ``texts``, example captions from its data.

    ``columns`` are the shapes (C, …) of the columns of the data among them.
    """

    names: tuple[str, ...]
    classes: tuple[str, ...]
    texts: tuple[str, ...] = ()
    length: int | None = None
    encoder: FrozenEncoder | None = None
    columns: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, spec: ModelSpec, classes: Sequence[str] = (), texts: Sequence[str] = ()) -> ConditionSpec:
        """The conditions that a generator of this spec takes."""
        condition = condition_of(spec.config())
        parts = () if condition is None else condition.each
        encoder = next((found for part in parts if (found := encoder_of(part)) is not None), None)
        return cls(
            (Labels.name,) if condition is None else condition.names,
            tuple(classes),
            tuple(texts),
            next((part.length for part in parts if isinstance(part, ReadText.Config)), None),
            None if encoder is None else FrozenEncoder(**encoder),
            {} if condition is None else dict(condition.shapes),
        )

    @property
    def labelled(self) -> bool:
        """Whether classes are among its conditions."""
        return Labels.name in self.names

    @property
    def texted(self) -> bool:
        """Whether texts are among its conditions."""
        return bool({Text.name, TextFeatures.name} & set(self.names))

    @property
    def inputs(self) -> tuple[str, ...]:
        """What a row of a served request holds: ``class_id``, ``text``, and columns of the data by their names."""
        return (*(("class_id",) if self.labelled else ()), *(("text",) if self.texted else ()), *self.columns)

    def check(self, given: AnyRequest) -> None:
        """Refuse a request that the generator cannot follow.

        Raises:
            ConfigError: a condition that is missing or that it does not take, a class that it does not have, a text that is too long, a
                column of another shape.
        """
        request = Request.of(given)
        takes = (*(("classes",) if self.labelled else ()), *(("texts",) if self.texted else ()), *self.columns)
        if set(takes) != set(request.holds):
            absent = [name for name in takes if name not in request.holds]
            hint = f"; give {' and '.join(absent)}" if absent else ""
            raise ConfigError(f"this model is conditioned on {_listed(takes)}, and the request holds {_listed(request.holds)}{hint}")
        if request.classes is not None:
            check_labels(request.classes, self.classes)
        if request.texts is not None and Text.name in self.names and self.length is not None:
            for text in request.texts:
                if len(text.encode()) > self.length:
                    raise ConfigError(f"text {text!r}: {len(text.encode())} bytes, this model takes at most {self.length}")
        for name, values in request.columns.items():
            if bool(values.present_B.any()) and (shape := tuple(values.value.shape[1:])) != self.columns[name]:
                raise ConfigError(f"column {name!r}: values of shape {shape}, this model takes {self.columns[name]}")

    def conditions(self, given: AnyRequest) -> Conditions:
        """The conditions of one sample a row.

        Raises:
            ConfigError: see ``check``; a text encoder that cannot be had.
        """
        self.check(given)
        request = Request.of(given)
        return Conditions({name: self._condition(name, request) for name in self.names})

    def _condition(self, name: str, request: Request) -> Condition:
        if name == Labels.name:
            return Labels(torch.tensor(request.classes, dtype=torch.int64))
        if name not in _NAMED:
            return request.columns[name]
        texts = request.texts or ()
        if name == Text.name:
            return Text.of(texts)
        if self.encoder is None:
            raise ConfigError("this model takes features of texts, and no encoder is named that makes them")
        return self.encoder(texts)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "nothing"


def encoder_of(condition: Conditioner.Config) -> dict[str, Any] | None:
    """The arguments of ``FrozenEncoder`` that a condition names, None for one that needs no encoder."""
    if isinstance(condition, Encoded.Config):
        return {"name": condition.encoder, "length": condition.length, "features": condition.features}
    if not isinstance(condition, TextCondition.Config | PooledText.Config) or not condition.encoder:
        return None
    padded: dict[str, Any] = {"padding": "left"} if isinstance(condition, TextCondition.Config) else {}
    return {"name": condition.encoder, "length": condition.length, "features": condition.features, **padded}


def check_labels(labels: NDArray[np.int64], classes: tuple[str, ...]) -> None:
    """Raise ``ConfigError`` for a class that the model does not have."""
    wrong = [int(k) for k in labels if not 0 <= k < max(1, len(classes))]
    if wrong:
        raise ConfigError(f"class_id {wrong[0]}: this model has the classes 0 to {max(0, len(classes) - 1)}")
