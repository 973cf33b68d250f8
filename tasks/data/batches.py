"""Cutting and casting batches: small pure helpers of the training loop."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tokenloom.models.core.protocols import Batch, Condition, Conditions, TextFeatures, Values


def rows_of(batch: Batch, start: int, stop: int) -> Batch:
    """Rows ``start:stop`` of a batch."""
    tokens = batch.tokens
    if tokens is not None:
        lengths = None if tokens.lengths is None else tokens.lengths[start:stop]
        tokens = replace(tokens, data=tokens.data[start:stop], lengths=lengths)
    signal = None if batch.signal is None else batch.signal[start:stop]
    return Batch(signal, tokens, batch.conditions.part(start, stop))


def pieces(batch: Batch | None, size: int, count: int | None = None) -> Iterator[tuple[int, int, Batch]]:
    """Micro-batches of at most ``size`` rows (0: all at once), or ``count`` nearly equal ones, as (start, stop, rows)."""
    rows = 0 if batch is None else batch.rows
    starts = list(range(0, rows, size or max(1, rows))) if count is None else [rows * i // count for i in range(count)]
    for start, stop in zip(starts, [*starts[1:], rows]):
        assert batch is not None
        yield start, stop, batch if stop - start == rows else rows_of(batch, start, stop)


def floats_to(batch: Batch, dtype: torch.dtype) -> Batch:
    """The batch with its signal, latents and numbers of conditions in another floating-point type."""
    tokens = batch.tokens
    if tokens is not None and tokens.data.is_floating_point():
        tokens = replace(tokens, data=tokens.data.to(dtype))
    signal = None if batch.signal is None else batch.signal.to(dtype)
    return Batch(signal, tokens, Conditions({name: _floats(each, dtype) for name, each in batch.conditions.items()}))


def _floats(condition: Condition, dtype: torch.dtype) -> Condition:
    if isinstance(condition, TextFeatures):
        return TextFeatures(condition.feature_BTD.to(dtype), condition.mask_BT)
    return Values(condition.value.to(dtype), condition.given_B) if isinstance(condition, Values) else condition


def exact_norms(model: nn.Module) -> None:
    """Let every normalisation take and give float32 under autocast.

    Autocast on accelerators does so by itself; on processors it hands half precision through.
    """

    def widen(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Any, ...]:
        return tuple(t.float() if isinstance(t, Tensor) and t.dtype in (torch.bfloat16, torch.float16) else t for t in given)

    for module in model.modules():
        if isinstance(module, (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)):
            module.register_forward_pre_hook(widen)
