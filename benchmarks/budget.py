"""What a generator costs: parameters, FLOPs of a training step, passes and time of a sample; and sizes that match two of them.

FLOPs are those of matrix products, convolutions and attention, forward and backward, as ``torch.utils.flop_counter`` counts them on a
real step; elementwise work (norms, the scans of state-space nets) is not in them.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tokenloom.models.core.build import ModelSpec, parameters
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import Batch, Generator, Labels, TokenLayout, Tokens
from tokenloom.models.parts.heads.base import Head
from tokenloom.models.parts.nets.slots import SlotNet
from tokenloom.models.sampling.sampler import Constant
from tokenloom.tasks.serving.predict import default_sampler

ROWS = 4  # of the batch on which FLOPs are counted
MOMENTS = 8  # of a training run at which they are counted: orders and patch sizes change on the way


@dataclass(frozen=True)
class Cost:
    """Of one width: trainable parameters, and FLOPs of training on one image, as the mean over a run."""

    width: int
    parameters: int
    flops: float


def random_batch(layout: TokenLayout, classes: int, rows: int = ROWS) -> Batch:
    """Tokens and labels without meaning."""
    shape = (rows, layout.length) if layout.codebooks == 1 else (rows, layout.length, layout.codebooks)
    draw = torch.Generator().manual_seed(0)
    data = torch.randint(layout.vocabulary, shape, generator=draw) if layout.discrete else torch.randn(*shape[:2], layout.channels)
    return Batch(tokens=Tokens(data, layout), conditions=Labels(torch.arange(rows) % classes))


def training_flops(model: Generator, batch: Batch) -> float:
    """FLOPs of forward and backward on one row, as the mean over a training run."""
    model.train()
    total = 0
    for moment in range(MOMENTS):
        with FlopCounterMode(display=False) as counter:
            model.losses(batch, "main", Draws.whole(0, moment, batch.rows, MOMENTS))["loss"].backward()
        total += counter.get_total_flops()
        model.zero_grad()
    return total / MOMENTS / batch.rows


def matched(spec: ModelSpec, widths: Iterable[int], target: int) -> tuple[Cost, ModelSpec]:
    """The width whose number of parameters is nearest to ``target``, and the spec with it."""
    found: list[tuple[int, int, ModelSpec]] = []
    for width in widths:
        wide = replace(spec, args={**spec.args, "width": width})
        found.append((parameters(wide.build()), width, wide))
        if found[-1][0] > 2 * target:
            break
    count, width, best = min(found, key=lambda one: abs(one[0] - target))
    layout = TokenLayout.from_dict(spec.given["layout"])
    model = cast(Generator, best.build())
    return Cost(width, count, training_flops(model, random_batch(layout, spec.given["classes"]))), best


def passes(model: Generator, classes: int) -> int:
    """Passes of the net that one unguided sample takes, the nets of heads not counted."""
    count = itertools.count()
    inside: set[nn.Module] = set()
    for part in model.modules():
        if isinstance(part, (Head, SlotNet)):
            inside.update(child for child in part.modules() if child is not part)
    nets = [part for part in model.modules() if isinstance(part, SlotNet) and part not in inside]
    hooks = [net.register_forward_pre_hook(lambda *_: (next(count), None)[1]) for net in nets]
    try:
        _draw(model, 1, classes)
    finally:
        for hook in hooks:
            hook.remove()
    return next(count)


def _draw(model: Generator, rows: int, classes: int, guidance: float = 0.0) -> None:
    sampler = replace(default_sampler(model), guidance=Constant(value=guidance), top_k=0, top_p=1.0)
    model.generate(Labels(torch.arange(rows) % classes), sampler, SampleDraws.of(0, 0, rows))


def speed_ratio(model: Generator, reference: Generator, classes: int, rows: int = 100, rounds: int = 5, guidance: float = 0.3) -> Any:
    """Images a second of a model, and their ratio to those of a reference sampled in turn with it: medians over the rounds."""

    def seconds(one: Generator) -> float:
        began = time.process_time()
        _draw(one, rows, classes, guidance)
        return time.process_time() - began

    seconds(model), seconds(reference)
    pairs = [(seconds(model), seconds(reference)) for _ in range(rounds)]
    return {
        "images_per_second": rows / statistics.median(a for a, _ in pairs),
        "speed": statistics.median(b / a for a, b in pairs),
    }
