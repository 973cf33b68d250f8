"""Shared helpers of the families that load official weights and repeat their numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.pretrained.names import NameMap
from tokenloom.models.sampling.sampler import Sampler


def official_state(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict in a fixture's tensors: ``state/KEY`` becomes ``KEY``; a second module keeps its prefix (``state_vae/KEY``)."""
    return {k.removeprefix("state/"): v for k, v in tensors.items() if k.startswith("state")}


def load(family: Any, info: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    """The family's model built from a fixture's description with the official weights loaded strictly, in eval mode.

    Raises:
        ConfigError: a setting that the family does not know, or refuses.
    """
    model: nn.Module = family.build(info)
    model.load_state_dict(family.names(info).load(official_state(tensors)), strict=True)
    return model.eval()


def greedy(sampler: Sampler) -> Sampler:
    """The sampler with the likeliest code in place of a drawn one, as runs are recorded."""
    return replace(sampler, top_k=1, top_p=1.0)


def gradient_norms(model: nn.Module, names: NameMap, loss: Tensor, keys: Sequence[str]) -> Tensor:
    """L2 norm of the gradient of ``loss`` for each official parameter in ``keys`` (with or without ``state/``): (len(keys),).

    A parameter that gets no gradient has norm 0.
    """
    parameters = dict(model.named_parameters())
    trained = {n: p for n, p in parameters.items() if p.requires_grad}
    found = dict(zip(trained, torch.autograd.grad(loss, list(trained.values()), allow_unused=True, retain_graph=True)))
    gradients = names.dump({n: torch.zeros_like(p) if (g := found.get(n)) is None else g for n, p in parameters.items()})
    return torch.stack([gradients[k.removeprefix("state/")].norm() for k in keys])


def reorder(*parts: int) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """The two ways of a map whose output is cut into equal parts: ours are the official ones in this order."""

    def load(t: Tensor) -> Tensor:
        chunks = t.chunk(len(parts))
        return torch.cat([chunks[p] for p in parts])

    def dump(t: Tensor) -> Tensor:
        chunks = t.chunk(len(parts))
        return torch.cat([chunks[parts.index(p)] for p in range(len(parts))])

    return load, dump


def paired(heads: int, of: int | None = None) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """The two ways of a map to heads whose channels c and c + E/2 are turned together there, and 2 c and 2 c + 1 here: of the first
    ``heads`` ``of`` so many (None: of all)."""

    def moved(t: Tensor, before: tuple[int, int]) -> Tensor:
        first, rest = t.split([len(t) * heads // (of or heads), len(t) - len(t) * heads // (of or heads)])
        return torch.cat([first.unflatten(0, (heads, *before)).transpose(1, 2).flatten(0, 2), rest])

    return lambda t: moved(t, (2, -1)), lambda t: moved(t, (-1, 2))


class ReplayedDraws(Draws):
    """Numbers of a training step that were recorded elsewhere, in the order of the calls."""

    def __init__(self, *numbers: Tensor) -> None:
        super().__init__(0, 0, 1, 0, len(numbers[0]), len(numbers[0]))
        self.numbers = iter(numbers)

    def uniform(self, *shape: int) -> Tensor:
        return next(self.numbers).view(self.rows, *shape)

    def normal(self, *shape: int) -> Tensor:
        return next(self.numbers).view(self.rows, *shape)


class ReplayedSamples(SampleDraws):
    """Numbers of a sampling that were recorded elsewhere, by stream and step."""

    def __init__(self, rows: int, numbers: Mapping[tuple[str, int], Tensor]) -> None:
        super().__init__(torch.zeros(rows, dtype=torch.int64))
        self.numbers = numbers

    def uniform(self, stream: str, step: int | Tensor, *shape: int) -> Tensor:
        return self.numbers[stream, int(step)].view(self.rows, *shape)

    def normal(self, stream: str, step: int | Tensor, *shape: int) -> Tensor:
        return self.numbers[stream, int(step)].view(self.rows, *shape)

    def to(self, device: torch.device | str, rows: int | None = None) -> SampleDraws:
        return self


@contextmanager
def calls_of(holder: Any, method: str) -> Iterator[list[tuple[tuple[Any, ...], Any]]]:
    """Positional arguments and result of each call of a method, while it lasts."""
    calls: list[tuple[tuple[Any, ...], Any]] = []
    original = getattr(holder, method)

    def watched(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        calls.append((args, result))
        return result

    object.__setattr__(holder, method, watched)
    try:
        yield calls
    finally:
        object.__delattr__(holder, method)
