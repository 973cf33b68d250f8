"""Prefix scans in log depth: all partial results of an associative operation along a sequence.

Shapes: S steps along ``dim``; everything else is elementwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Leaves = tuple[Tensor, ...]


def associative_scan(combine: Callable[[Leaves, Leaves], Leaves], leaves: Leaves, dim: int) -> Leaves:
    """Inclusive prefixes ``x1, x1·x2, x1·x2·x3, …`` of an associative ``combine(earlier, later)``.

    Neighbours are combined, the halved sequence is scanned, and the steps between are filled in: O(S) work in O(log S)
    rounds (Blelloch 1990).  ``combine`` works elementwise on slices along ``dim``; all leaves have the same length there.
    """
    length = leaves[0].shape[dim]
    if length == 1:
        return leaves
    even = tuple(x[_every(x, dim, 0)] for x in leaves)
    odd = tuple(x[_every(x, dim, 1)] for x in leaves)
    pairs = odd[0].shape[dim]
    ends = associative_scan(combine, combine(tuple(x.narrow(dim, 0, pairs) for x in even), odd), dim)
    rest = even[0].shape[dim] - 1
    if rest == 0:
        return tuple(torch.cat([a, b], dim) for a, b in zip(even, ends))
    between = combine(tuple(x.narrow(dim, 0, rest) for x in ends), tuple(x.narrow(dim, 1, rest) for x in even))
    evens = tuple(torch.cat([x.narrow(dim, 0, 1), y], dim) for x, y in zip(even, between))
    return tuple(_interleave(a, b, dim) for a, b in zip(evens, ends))


def linear_scan(decay: Tensor, drive: Tensor, start: Tensor | None = None, dim: int = 1) -> Tensor:
    """All states of ``h_t = decay_t h_{t-1} + drive_t``, shaped as ``drive``; ``start`` is ``h_0`` (None: zero).

    Only products of decays are formed, never quotients: decays in [0, 1] cannot overflow, and zeros are fine.
    The gradient is a scan in the other direction, so just the decays and the states are kept for it.
    """
    if start is not None:
        first = drive.narrow(dim, 0, 1) + decay.narrow(dim, 0, 1) * start.unsqueeze(dim)
        drive = torch.cat([first, drive.narrow(dim, 1, drive.shape[dim] - 1)], dim)
    return _LinearScan.apply(decay, drive, dim)


class _LinearScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, decay: Tensor, drive: Tensor, dim: int) -> Tensor:
        state = _scan(decay, drive, dim)
        ctx.save_for_backward(decay, state)
        ctx.dim = dim
        return state

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        decay, state = ctx.saved_tensors
        dim, steps = ctx.dim, decay.shape[ctx.dim]
        # The gradient of drive_t is that of h_t and, times decay_{t+1}, that of drive_{t+1}; the last one has no successor.
        shifted = torch.cat([decay.narrow(dim, 1, steps - 1), torch.zeros_like(decay.narrow(dim, 0, 1))], dim)
        to_drive = _scan(shifted.flip(dim), gradients[0].flip(dim), dim).flip(dim)
        before = torch.cat([torch.zeros_like(state.narrow(dim, 0, 1)), state.narrow(dim, 0, steps - 1)], dim)
        return to_drive * before, to_drive, None


def _scan(decay: Tensor, drive: Tensor, dim: int) -> Tensor:
    return associative_scan(_affine, (decay, drive), dim)[1]


def _affine(earlier: Leaves, later: Leaves) -> Leaves:
    """``h -> a h + b`` twice is again of that form."""
    (a, b), (c, d) = earlier, later
    return c * a, c * b + d


def wide(x: Tensor) -> Tensor:
    """At least float32: sums over long sequences lose too much in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _every(x: Tensor, dim: int, offset: int) -> tuple[slice, ...]:
    return (slice(None),) * (dim % x.ndim) + (slice(offset, None, 2),)


def _interleave(even: Tensor, odd: Tensor, dim: int) -> Tensor:
    """e0 o0 e1 o1 …; the even ones may be one more."""
    shape = list(even.shape)
    shape[dim] += odd.shape[dim]
    out = even.new_empty(shape)
    out[_every(out, dim, 0)] = even
    out[_every(out, dim, 1)] = odd
    return out
