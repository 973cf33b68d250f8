"""What held-out images bring along as conditions of samples: their classes, captions and further columns.

Shapes: M held-out images, N samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.requests import Text, Values
from tokenloom.tasks.data.captions import in_turn
from tokenloom.tasks.data.loader import Loader
from tokenloom.tasks.modalities.image.judging.features import selected
from tokenloom.tasks.serving.request import ConditionSpec, Request
from tokenloom.tasks.store.artifacts import Artifact, Store

HELD_OUT = ("validation", "test")


@dataclass(frozen=True)
class HeldOut:
    """The conditions of M held-out images that a model takes: labels (M,), captions, and columns, read when they are asked for."""

    condition_spec: ConditionSpec
    loader: Loader
    index_M: NDArray[np.int64]
    label_M: NDArray[np.int64]
    texts: list[str] | None

    @classmethod
    def of(
        cls, condition_spec: ConditionSpec, store: Store, dataset: Artifact, limit: int | None = None, splits: Sequence[str] = HELD_OUT
    ) -> HeldOut:
        """Those of a dataset, with a ``limit`` at most so many and evenly spread, as ``read_images`` gives them.

        Raises:
            ConfigError: no held-out images, or a column that this data does not have.
        """
        rows, index_M = selected(store, dataset, splits, limit)
        names = (*((Text.name,) if condition_spec.texted else ()), *condition_spec.columns)
        loader = Loader(replace(rows, conditions=names), store.cache)
        captions = list(loader.captions())
        texts = [captions[i] for i in index_M] if condition_spec.texted else None
        found = cls(condition_spec, loader, index_M, loader.labels()[index_M], texts)
        if condition_spec.columns and not found.usable_M.any():
            raise ConfigError(f"data.columns: no held-out image has all of {', '.join(condition_spec.columns)}, which the model takes")
        return found

    @property
    def usable_M(self) -> NDArray[np.bool_]:
        """Which images have all that the model takes."""
        usable = np.ones(len(self.index_M), bool) if self.texts is None else np.array([bool(text) for text in self.texts])
        for name in self.condition_spec.columns:
            usable = usable & self.loader.given(name)[self.index_M]
        return usable

    def in_turn(self, label_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """For each sample a usable image of its class, in turn; -1 where there is none."""
        return in_turn(label_N, self.label_M, self.usable_M)

    def request(self, item_N: NDArray[np.int64], label_N: NDArray[np.int64]) -> Request:
        """The conditions of these images (-1: the null text and no values) under these labels."""
        index_N, given = self.index_M[np.maximum(item_N, 0)], item_N >= 0
        texts = None if self.texts is None else [self.texts[i] if i >= 0 else "" for i in item_N.tolist()]
        columns = {name: _only(self.loader.column(name, index_N), given) for name in self.condition_spec.columns}
        return Request(label_N if self.condition_spec.labelled else None, texts, columns)


def _only(values: Values, given: NDArray[np.bool_]) -> Values:
    return Values(values.value, values.present_B & torch.from_numpy(given))
