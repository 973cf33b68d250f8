"""What a model takes of the weights of another one: all of them, or all but the parts that start afresh."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenloom.models.core.config import ConfigError


def carried(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], fresh: Sequence[str], where: str) -> dict[str, Tensor]:
    """The state of a model that starts from another one's weights, as in fine-tuning to another size or with another codebook.

    Args:
        ours: names and tensors of the model as it was built; those of ``fresh`` parts stay.
        theirs: those of the model that it starts from.
        fresh: beginnings of names, whole words between dots (``quantizer``, ``quantizer.codebook``, ``adversarial``).
        where: what the message begins with: the field, the artifact.

    Raises:
        ConfigError: a part that the model does not have, or a tensor outside of the fresh parts that is on one side only or has
            another shape; tables of the positions of a square grid may have another size, and are resized.
    """
    if absent := [part for part in fresh if not any(_inside(name, part) for name in ours)]:
        parts = sorted({name.partition(".")[0] for name in ours})
        raise ConfigError(f"{where}: fresh: there is no part {absent[0]!r}; parts: {', '.join(parts)}")
    kept = {name for name in ours if not any(_inside(name, part) for part in fresh)}
    known = {name for name in theirs if not any(_inside(name, part) for part in fresh)}
    state, odd = dict(ours), []
    for name in sorted(kept | known):
        mine, other = ours.get(name), theirs.get(name)
        if mine is not None and other is not None and mine.shape == other.shape:
            state[name] = other
        elif mine is not None and other is not None and (resized := _positions(name, other, mine)) is not None:
            state[name] = resized
        else:
            odd.append(f"{name} is {_shape(other)} there and {_shape(mine)} here")
    if odd:
        more = f" and {len(odd) - 2} more" if len(odd) > 2 else ""
        raise ConfigError(f"{where}: {'; '.join(odd[:2])}{more}")
    return state


def _inside(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")


def _shape(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else str(tuple(tensor.shape))


def _positions(name: str, table: Tensor, wanted: Tensor) -> Tensor | None:
    """A table of learned positions (rows * columns, D) of a square grid at another size, bicubic; None if it is no such table.

    One more row, the first, is that of a class token and stays as it is.
    """
    if name.rpartition(".")[2] != "position" or table.dim() != 2 or wanted.dim() != 2 or table.shape[1] != wanted.shape[1]:
        return None
    for first in (0, 1):
        old, new = (math.isqrt(max(0, len(each) - first)) for each in (table, wanted))
        if old and new and old**2 + first == len(table) and new**2 + first == len(wanted):
            grid_1Dhw = table[first:].float().t().unflatten(1, (old, old))[None]
            resized = F.interpolate(grid_1Dhw, size=(new, new), mode="bicubic", align_corners=False)[0].flatten(1).t()
            return torch.cat([table[:first], resized.to(table)])
    return None
