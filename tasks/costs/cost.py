"""What a training will cost, known before it starts: floating-point operations, memory, room in the store and hours.

One step is followed without memory (``tasks/costs/trace.py``).  Where that cannot be, activations are left out and said to be, and 6 N
operations a token stand in for a generator's (Kaplan et al. 2020, arXiv:2001.08361, section 2.1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from tokenloom.models.core.build import ModelSpec, parameters
from tokenloom.models.core.protocols import Generator, Method
from tokenloom.models.core.settings import ExecutionSettings, TrainSettings
from tokenloom.tasks.costs.took import Rate
from tokenloom.tasks.costs.trace import depended_on, traced
from tokenloom.tasks.training.speed import Accelerator

#: Full states that a training has in the store at most: the two newest, and the best.
STATES = 3


@dataclass(frozen=True)
class Cost:
    """The cost of one training.

    Args:
        section: of the run file.
        parameters: trainable ones.
        tokens: of one item; 0 where there are none.
        token_bytes: of one item in the store; 0 where there are none.
        flops_per_item: forward and backward; None where they could not be counted.
        flops: of the whole training; None where they, or its length, are not known.
        memory: bytes a worker at its peak, by what holds them.
        memory_bytes: their sum.
        steps: optimizer steps; None where the number of items decides and is not known yet.
        rows: of the micro-batch that the memory is for.
        store: bytes that the store grows by, by what they are; checkpoints at their most.
        counted: how operations and activations were found: ``traced``, or what stands in and why.
    """

    section: str
    parameters: int
    tokens: int
    token_bytes: int
    flops_per_item: float | None
    flops: float | None
    memory: dict[str, int]
    memory_bytes: int
    steps: int | None
    rows: int
    store: dict[str, int]
    counted: str

    def on(
        self, accelerator: Accelerator, settings: TrainSettings, workers: int, price: float | None = None, rate: Rate | None = None
    ) -> dict[str, Any]:
        """This cost on so many accelerators, as plain data: hours, money and counsel where it does not fit.

        Args:
            accelerator: each of them.
            settings: of the training.
            workers: how many.
            price: of one accelerator's hour.
            rate: what share of the peak is used, and how that is known.
        """
        rate = rate or Rate()
        hours = None if self.flops is None else self.flops / (rate.share * accelerator.peak(settings.precision) * workers) / 3600
        where: dict[str, Any] = {"accelerator": accelerator.name, "accelerators": workers, "hours": hours}
        where |= {"share_of_peak": rate.share, "share_from": rate.source}
        where["price"] = None if price is None or hours is None else price * hours * workers
        where["store_bytes"] = sum(self.store.values())
        where["warning"] = self._warning(accelerator)
        return asdict(self) | where

    def _warning(self, accelerator: Accelerator) -> str | None:
        """What would make it fit, where it does not."""
        if self.memory_bytes <= accelerator.memory:
            return None
        kept, held = self.memory.get("activations", 0), self.memory_bytes - self.memory.get("activations", 0)
        fits = int(self.rows * (accelerator.memory - held) / kept) if kept else 0  # activations grow with the rows
        counsel = f"execution.micro_batch: {fits}" if fits >= 1 else "execution.sharding: fsdp over more workers"
        return (
            f"{self.section} needs {self.memory_bytes / 2**30:.1f} GiB a worker and {accelerator.name} has "
            f"{accelerator.memory / 2**30:.0f}: {counsel} would fit it"
        )


def cost_of(
    spec: ModelSpec,
    section: str,
    settings: TrainSettings,
    execution: ExecutionSettings,
    items: int | None = None,
    others: Mapping[str, ModelSpec] | None = None,
    views: int = 0,
) -> Cost:
    """The cost of training this model.

    Args:
        spec: what is trained.
        section: of the run file that trains it.
        settings: of the training.
        execution: workers, micro-batch and sharding.
        items: training items, which epochs count; None: not known yet.
        others: the trained models that it needs and its spec does not name, by role.
        views: of each item whose tokens have still to be made; 0: they are there.
    """
    share = -(-settings.batch // execution.workers)
    rows = min(execution.micro_batch or share, share)
    model = spec.shaped()
    shards = execution.workers if execution.sharding == "fsdp" and isinstance(model, Generator) else 1
    tokens, token_bytes = _tokens(model)
    number = parameters(model)
    states = held(model, settings, 1)
    memory = held(model, settings, shards)
    store = {"weights": states["weights"], "checkpoints": STATES * (sum(states.values()) - states["gradients"])}
    if views and items and token_bytes:
        store["tokens"] = token_bytes * items * views
    flops: float | None
    try:
        below = depended_on(spec, others or {})
        if below:
            memory["other models"] = sum(map(_size, below.values()))
        flops, memory["activations"] = traced(model, spec, settings, rows, below)
        counted = "traced"
    except Exception as error:  # a step may meet any operation that needs the data's numbers; which one is reported
        flops = 6.0 * number * tokens if isinstance(model, Generator) else None
        counted = (
            f"{'6 N a token, ' if flops else ''}without activations: the step cannot be followed without data ({type(error).__name__})"
        )
    steps = settings.steps if settings.epochs is None else None if items is None else settings.on(items).steps
    whole = None if steps is None or flops is None else flops * steps * settings.batch
    return Cost(section, number, tokens, token_bytes, flops, whole, memory, sum(memory.values()), steps, rows, store, counted)


def held(model: Method, settings: TrainSettings, shards: int = 1) -> dict[str, int]:
    """Bytes a worker holds whatever the batch: weights, gradients, AdamW's two moments and the moving average, in float32 (or float64)."""
    size = 8 if settings.precision == "float64" else 4
    learned = parameters(model) * size // shards
    fixed = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()) if not t.requires_grad)
    found = {"weights": learned + fixed, "gradients": learned, "moments": 2 * learned}
    return found | ({"average": learned} if settings.ema else {})


def _size(model: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))


def _tokens(model: Method) -> tuple[int, int]:
    """Tokens of one item, and their bytes in the store."""
    layout = getattr(model, "layout", None)
    if layout is None:
        return 0, 0
    if layout.discrete:
        width = 1 if layout.vocabulary <= 256 else 2 if layout.vocabulary <= 65536 else 4
        return layout.length, layout.length * layout.codebooks * width
    return layout.length, layout.length * layout.channels * 4
