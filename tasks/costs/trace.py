"""One training step carried out on tensors without memory: its operations, and what its forward pass keeps for the backward pass.

Weights, activations and images are tensors without memory (``FakeTensorMode``).  What no weight takes part in, orders and masks, is
carried out for real, so that a step may read their sizes on the host.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from tokenloom.models.core.build import ModelSpec
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Batch, Conditions, Density, Generator, Labels, Method, Tokens
from tokenloom.models.core.settings import TrainSettings
from tokenloom.models.core.signals import SignalSpec
from tokenloom.models.parts.nets.classifier import Classifier

_BY_MASK = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default)
_Module = TypeVar("_Module", bound=nn.Module)


def traced(
    model: Method, spec: ModelSpec, settings: TrainSettings, rows: int, others: Mapping[str, nn.Module] | None = None
) -> tuple[float, int]:
    """Operations an item of one training step (forward and backward, all phases), and bytes that the largest phase's forward keeps.

    Args:
        model: built without memory.
        spec: what it was built from.
        settings: of the training.
        rows: of the micro-batch.
        others: the trained models that it depends on, by role, built without memory.

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
    if others:
        with torch.no_grad():
            model.adopt(**{role: other.eval() for role, other in others.items()})
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = _on_cpu(model).train()
        batch = _batch(model, spec, rows)
        for phase in model.phases:
            counter, kept = FlopCounterMode(display=False, custom_mapping=mapping), Kept(model)
            with counter, kept.counted(), half, Numbers():
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


class Numbers(TorchDispatchMode):
    """Carries out for real what no weight takes part in: orders, masks and their sizes, which a step may read on the host.

    A mask that selects of a tensor without memory does so by the numbers of its entries.
    """

    LARGEST = 1 << 24  # values; a tensor that is made larger than this stays without memory

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        if not any(isinstance(each, FakeTensor) for each in given) and self._small(given, args):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if func in _BY_MASK and any(each is not None and each.dtype == torch.bool for each in args[1]):
            args = (args[0], self._places(args[1]), *args[2:])
        return func(*args, **kwargs)

    def _small(self, given: list[Tensor], args: Any) -> bool:
        if given:
            return True
        sizes = [each for each in (args[0] if args and isinstance(args[0], (list, tuple)) else args[:1]) if isinstance(each, int)]
        return math.prod(sizes) <= self.LARGEST

    def _places(self, indices: Any) -> list[Tensor | None]:
        found: list[Tensor | None] = []
        for each in indices:
            if each is None or each.dtype != torch.bool or isinstance(each, FakeTensor):
                found.append(each)
                continue
            with unset_fake_temporarily():
                found += each.nonzero().unbind(1)
        return found


def depended_on(spec: ModelSpec, others: Mapping[str, ModelSpec]) -> dict[str, nn.Module]:
    """The trained models that a model needs, by role, built without memory; ``others`` are those that its spec does not name itself.

    Raises:
        KeyError: a role that nothing is known of.
    """
    found: dict[str, nn.Module] = {}
    for role in spec.config().needs:
        if role in others:
            found[role] = others[role].shaped()
        elif role == "features":
            with torch.device("meta"):
                found[role] = Classifier.of(spec.given["features"])
        else:
            found[role] = ModelSpec.from_dict(spec.given[role]).shaped()
    return found


def _on_cpu(model: _Module) -> _Module:
    """A model of the meta device as one of fake tensors of the processor, plain attributes too."""
    model.to_empty(device="cpu")
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and value.is_meta:
                setattr(module, name, torch.empty_like(value, device="cpu"))
            for held in value if isinstance(value, (list, tuple)) else ():  # adopted, and no part of the model
                if isinstance(held, nn.Module) and any(tensor.is_meta for tensor in (*held.parameters(), *held.buffers())):
                    _on_cpu(held)
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
