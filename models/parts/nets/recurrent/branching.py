"""Recurrent states along a tree of drafted slots, each of which goes on from its parent's state (STree, arXiv:2505.14969).

One call of the net runs all slots: what a slot has of its ancestors' inputs is weighed by the product of the decays between them, as a
matrix over pairs of slots, so that nothing is unrolled path by path.

Shapes: B rows, S new slots, N earlier states of the tree, F decays a slot, G channels a decay, E channels, K taps of a convolution.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Branches:
    """Where new slots hang.

    ``parent_BS`` are indices of the new slots' parents among them, -1 where the parent was run before; a parent stands before its
    children.  ``origin_BS`` are the earlier states (0: the one before the tree) from which a slot's uppermost new ancestor goes on,
    ``step_BS`` the slots' places in the sequence.
    """

    parent_BS: Tensor
    origin_BS: Tensor
    step_BS: Tensor

    @classmethod
    def of(cls, parent_BS: Tensor, before: int, step_BS: Tensor) -> Branches:
        """From parents among all slots of the tree, of which ``before`` were run already (-1: the root's)."""
        inside_BS = parent_BS - before
        inside_BS = torch.where(inside_BS >= 0, inside_BS, -1)
        made = cls(inside_BS, parent_BS, step_BS)
        top_BS = made.reach_BSS.long().argmax(2)  # the first ancestor in storage order is the uppermost
        return cls(inside_BS, parent_BS.gather(1, top_BS) + 1, step_BS)

    @property
    def reach_BSS(self) -> Tensor:
        """True from a slot (second axis) to itself and its new ancestors (third axis)."""
        return reach(self.parent_BS)


def reach(parent_BS: Tensor) -> Tensor:
    """(B, S, S) true from a slot to itself and its ancestors, whose parents (-1: a root) stand before them."""
    slots = parent_BS.shape[1]
    itself = torch.arange(slots, device=parent_BS.device)
    reach_BSS = ((parent_BS[:, :, None] == itself) | (itself[:, None] == itself)).float()
    # Ancestors within 2^k steps are those within 2^(k-1) steps of those within 2^(k-1) steps.
    for _ in range(max(1, (slots - 1).bit_length())):
        reach_BSS = (reach_BSS @ reach_BSS).clamp_max(1)
    return reach_BSS > 0


def pick(each: Tensor, index_BS: Tensor) -> Tensor:
    """(B, S, …) of (B, N, …) at indices (B, S)."""
    index = index_BS.view(*index_BS.shape, *[1] * (each.ndim - 2)).expand(*index_BS.shape, *each.shape[2:])
    return each.gather(1, index)


def weights(log_decay: Tensor, by: Branches) -> tuple[Tensor, Tensor]:
    """What is left of each ancestor's input at a slot (B, S, S, F), and of the state that it goes on from (B, S, F)."""
    reach_BSS = by.reach_BSS
    total = torch.einsum("bij,bjf->bif", reach_BSS.to(log_decay.dtype), log_decay)
    apart = (total[:, :, None] - total[:, None]).masked_fill(~reach_BSS[..., None], -torch.inf)
    return apart.exp(), total.exp()


def tree_states(log_decay: Tensor, drive: Tensor, earlier: Tensor, by: Branches) -> Tensor:
    """The states ``h_t = decay_t h_parent(t) + drive_t``, (B, S, F, G), of ``earlier`` ones (B, 1 + N, F, G)."""
    among, start = weights(log_decay, by)
    return start.unsqueeze(-1) * pick(earlier, by.origin_BS) + torch.einsum("bijf,bjfg->bifg", among, drive)


def tree_windows(signal_BSE: Tensor, tails: Tensor, by: Branches) -> Tensor:
    """The last K inputs of a causal convolution at each slot, (B, S, E, K), given the last K - 1 ones at earlier states
    (B, 1 + N, E, K - 1)."""
    tail_BSEK, taps = pick(tails, by.origin_BS), tails.shape[3] + 1
    at_BS = torch.arange(signal_BSE.shape[1], device=signal_BSE.device).expand(len(signal_BSE), -1)
    beyond_BS = torch.zeros_like(at_BS)  # steps above the uppermost new ancestor
    found = []
    for _ in range(taps):
        new = pick(signal_BSE, at_BS.clamp_min(0))
        if taps > 1:
            place = (taps - 1 - beyond_BS).clamp(0, taps - 2)
            old = tail_BSEK.gather(3, place[:, :, None, None].expand(-1, -1, signal_BSE.shape[2], 1)).squeeze(3)
            new = torch.where((at_BS >= 0).unsqueeze(-1), new, old)
        found.append(new)
        at_BS = torch.where(at_BS >= 0, by.parent_BS.gather(1, at_BS.clamp_min(0)), at_BS)
        beyond_BS = beyond_BS + (at_BS < 0)
    return torch.stack(found[::-1], dim=3)
