"""What a training will cost, known before it starts: floating-point operations, memory and hours.

One step is carried out on tensors without memory (``FakeTensorMode``), at the run's own shapes: the operations are counted
as they come, and so is what the forward pass keeps for the backward pass.  A model whose step needs numbers of its data on the
host cannot be followed so: then its activations are left out and said to be, and 6 N operations a token stand in for a
generator's (Kaplan et al. 2020, arXiv:2001.08361, section 2.1).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from tokenloom.models.core.build import ModelSpec, parameters
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Batch, Conditions, Density, Generator, Labels, Method, Tokens
from tokenloom.models.core.settings import ExecutionSettings, TrainSettings
from tokenloom.models.core.signals import SignalSpec
from tokenloom.tasks.training.speed import Accelerator

#: Share of the peak that a training is taken to use where no run has told.
SHARE = 0.4


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
    counted: str

    def on(self, accelerator: Accelerator, settings: TrainSettings, workers: int, price: float | None = None) -> dict[str, Any]:
        """This cost on so many accelerators, as plain data: hours, money and counsel where it does not fit."""
        peak = accelerator.bfloat16 if settings.precision == "bfloat16" else accelerator.float32
        hours = None if self.flops is None else self.flops / (SHARE * peak * workers) / 3600
        where: dict[str, Any] = {"accelerator": accelerator.name, "accelerators": workers, "share_of_peak": SHARE, "hours": hours}
        where["price"] = None if price is None or hours is None else price * hours * workers
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


def cost_of(spec: ModelSpec, section: str, settings: TrainSettings, execution: ExecutionSettings, items: int | None = None) -> Cost:
    """The cost of training this model.

    Args:
        spec: what is trained.
        section: of the run file that trains it.
        settings: of the training.
        execution: workers, micro-batch and sharding.
        items: training items, which epochs count; None: not known yet.
    """
    share = -(-settings.batch // execution.workers)
    rows = min(execution.micro_batch or share, share)
    model = spec.shaped()
    shards = execution.workers if execution.sharding == "fsdp" and isinstance(model, Generator) else 1
    memory = held(model, settings, shards)
    tokens, token_bytes = _tokens(model)
    flops: float | None
    try:
        flops, kept = traced(model, spec, settings, rows)
        counted = "traced"
        memory["activations"] = kept
    except Exception as error:  # a step may meet any operation that needs the data's numbers; which one is reported
        flops = 6.0 * parameters(model) * tokens if isinstance(model, Generator) else None
        counted = (
            f"{'6 N a token, ' if flops else ''}without activations: the step cannot be followed without data ({type(error).__name__})"
        )
    steps = settings.steps if settings.epochs is None else None if items is None else settings.on(items).steps
    whole = None if steps is None or flops is None else flops * steps * settings.batch
    return Cost(section, parameters(model), tokens, token_bytes, flops, whole, memory, sum(memory.values()), steps, rows, counted)


def held(model: Method, settings: TrainSettings, shards: int = 1) -> dict[str, int]:
    """Bytes a worker holds whatever the batch: weights, gradients, AdamW's two moments and the moving average, in float32 (or float64)."""
    size = 8 if settings.precision == "float64" else 4
    learned = parameters(model) * size // shards
    fixed = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()) if not t.requires_grad)
    found = {"weights": learned + fixed, "gradients": learned, "moments": 2 * learned}
    return found | ({"average": learned} if settings.ema else {})


def _tokens(model: Method) -> tuple[int, int]:
    """Tokens of one item, and their bytes in the store."""
    layout = getattr(model, "layout", None)
    if layout is None:
        return 0, 0
    if layout.discrete:
        width = 1 if layout.vocabulary <= 256 else 2 if layout.vocabulary <= 65536 else 4
        return layout.length, layout.length * layout.codebooks * width
    return layout.length, layout.length * layout.channels * 4


def traced(model: Method, spec: ModelSpec, settings: TrainSettings, rows: int) -> tuple[float, int]:
    """Operations an item of one training step (forward and backward, all phases), and bytes that the largest phase's forward keeps.

    Raises:
        Exception: what an operation raises that needs the data's numbers.
    """
    if isinstance(model, Generator):  # where tokens stand is known: what the build without memory has kept of it has no numbers
        vars(model.layout).pop("positions", None)
        _ = model.layout.positions
    total, most = 0.0, 0
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    mapping = {attention: _attention, torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward}
    half = torch.autocast("cpu", torch.bfloat16) if settings.precision == "bfloat16" else contextlib.nullcontext()
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = _on_cpu(model).train()
        batch = _batch(model, spec, rows)
        for phase in model.phases:
            counter, kept = FlopCounterMode(display=False, custom_mapping=mapping), Kept(model)
            with counter, kept.counted(), half:
                loss = model.losses(batch, phase, Draws.whole(0, 0, rows, settings.steps or 1, stream=phase))["loss"]
                if loss.requires_grad:
                    loss.backward()
            total, most = total + counter.get_total_flops(), max(most, kept.bytes)
    return total / rows, most


class Kept:
    """Bytes of all storages that a forward pass keeps for the backward pass, besides the model's own."""

    def __init__(self, model: nn.Module) -> None:
        self.bytes, self._known = 0, {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
        self._alive: list[Tensor] = []  # or storages of other tensors could take their names

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._known:
            self._known.add(storage._cdata)
            self._alive.append(tensor.detach())
            self.bytes += storage.nbytes()
        return tensor

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Count what is kept in this context."""
        with torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor):
            yield


def _on_cpu(model: Method) -> Method:
    """A model of the meta device as one of fake tensors of the processor, plain attributes too."""
    model.to_empty(device="cpu")
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and value.is_meta:
                setattr(module, name, torch.empty_like(value, device="cpu"))
    return model


def _batch(model: Method, spec: ModelSpec, rows: int) -> Batch:
    """A batch of these rows as training gives it, without numbers."""
    classes = Conditions.of(Labels(torch.zeros(rows, dtype=torch.long)))
    if isinstance(model, Generator):
        layout = model.layout
        if layout.discrete:
            shape = (rows, layout.length) + ((layout.codebooks,) if layout.codebooks > 1 else ())
            return Batch(tokens=Tokens(torch.zeros(shape, dtype=torch.long), layout), conditions=classes)
        return Batch(tokens=Tokens(torch.zeros(rows, layout.length, layout.channels), layout), conditions=classes)
    form = SignalSpec.from_dict(spec.given["signal"])
    signal = torch.zeros(rows, form.channels, *form.shape)
    return Batch(signal=signal, conditions=classes) if isinstance(model, Density) else Batch(signal=signal)


def _attention(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))
