"""What slots attend to: each value against its definition, which kernel it asks for, and trees against the values that they generalise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tokenloom.models.parts.attention import attend
from tokenloom.models.parts.slots import Slots, visibility_of
from tokenloom.models.parts.visibility import Causal, Everything, Groups, Mask, Padding, Segments, Tree, Visibility

CPU = torch.device("cpu")
GROUPS = torch.tensor([[-1, 0, 0, 1, 2]])


def seen(visibility: Visibility, queries: int, keys: int) -> list[list[list[int]]]:
    return visibility.seen(queries, keys, CPU).int().tolist()


def test_kernels_are_decided_by_shapes() -> None:
    kernels = {(v, s): v.kernel(s, 5) for v in (Everything(), Causal()) for s in (1, 3, 5)}
    assert kernels == {
        (Everything(), 1): "full",
        (Everything(), 3): "full",
        (Everything(), 5): "full",
        (Causal(), 1): "full",  # the newest slot attends to all
        (Causal(), 3): "mask",  # the kernel's triangle starts at the first key, not after the cached ones
        (Causal(), 5): "causal",
    }
    assert Groups(GROUPS, GROUPS).kernel(5, 5) == "mask"


def test_causal_slots_attend_to_cached_ones_too() -> None:
    assert seen(Causal(), 2, 4) == [[[1, 1, 1, 0], [1, 1, 1, 1]]]


def test_groups_and_windows() -> None:
    assert seen(Groups(GROUPS[:, 2:], GROUPS), 3, 5) == [[[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]]
    # With a window of 0 a slot attends to its own group and the prefix.
    assert seen(Groups(GROUPS[:, 2:], GROUPS, 0), 3, 5) == [[[1, 1, 1, 0, 0], [1, 0, 0, 1, 0], [1, 0, 0, 0, 1]]]


def test_segments_and_padding() -> None:
    assert seen(Segments(torch.tensor([[-1, 0, 1]]), torch.tensor([[-1, 0, 1]])), 3, 3) == [[[1, 0, 0], [1, 1, 0], [1, 0, 1]]]
    hidden = torch.tensor([[False, True], [True, True]])
    # Padding is hidden from all but itself: a row of scores without any key would be NaN.
    assert seen(Padding(hidden), 3, 3) == [[[1, 1, 1], [0, 1, 1], [0, 1, 1]], [[1, 1, 1]] * 3]


def test_a_tree_attends_to_ancestors_in_any_order_of_slots() -> None:
    #      3 <- 0 <- 2,  3 <- 1,  4 alone; one cached slot, which all attend to
    tree = Tree(torch.tensor([[3, 3, 0, -1, -1]]))
    assert seen(tree, 5, 6) == [[[1, 1, 0, 0, 1, 0], [1, 0, 1, 0, 1, 0], [1, 1, 0, 1, 1, 0], [1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, 1]]]


@pytest.mark.parametrize("length", [1, 2, 5, 9])
def test_a_chain_is_causal(length: int) -> None:
    chain = Tree(torch.arange(-1, length - 1)[None])
    assert torch.equal(chain.seen(length, length + 2, CPU), Causal().seen(length, length + 2, CPU))


def test_and_keeps_what_both_let_through() -> None:
    groups, segments = Groups(GROUPS, GROUPS), Segments(torch.tensor([[-1, 0, 1, 2, 3]]), torch.tensor([[-1, 0, 1, 2, 3]]))
    both = groups & segments
    assert torch.equal(both.seen(5, 5, CPU), groups.seen(5, 5, CPU) & segments.seen(5, 5, CPU))
    assert (Everything() & groups) is groups
    assert (groups & Everything()) is groups


def test_attention_takes_any_value_and_decides_without_the_device() -> None:
    q, k, v = torch.randn(3, 2, 4, 5, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    full = attend(q, k, v, Mask(torch.ones(1, 5, 5).tril().bool()), 0.3)
    read = Reads()
    with read:
        causal = attend(q, k, v, Causal(), 0.3)
        tree = attend(q, k, v, Tree(torch.arange(-1, 4)[None]), 0.3)
        groups = attend(q, k, v, Groups(torch.arange(5)[None], torch.arange(5)[None]) & Padding(torch.ones(2, 1).bool()), 0.3)
    assert read.found == []
    for other in (causal, tree, groups):
        torch.testing.assert_close(other, full)


class Reads(TorchDispatchMode):
    """Operations that wait for the device's numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(name in str(func) for name in ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal")):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def test_a_window_needs_no_mask_where_nothing_else_is_cached() -> None:
    group = torch.full((1, 3), 2)
    slots = Slots(torch.zeros(1, 3, 4), group, group, group, visibility=Everything())
    assert visibility_of(slots, window=1, key_group_BT=group) == Everything()
    held = torch.tensor([[0, 1, 2, 2, 2]])
    assert seen(visibility_of(slots, window=1, key_group_BT=held), 3, 5) == [[[0, 1, 1, 1, 1]] * 3]
    assert visibility_of(slots, key_group_BT=held) == Everything()


def test_a_tree_of_drafts_keeps_its_form_under_windows_and_padding() -> None:
    """Two drafts after one cached slot of padding and one of group 0; the second draft's group is too far from group 0 for the window."""
    group = torch.tensor([[1, 2]])
    slots = Slots(torch.zeros(1, 2, 4), group, group, group, visibility=Tree(torch.tensor([[-1, -1]])))
    keys = torch.tensor([[-1, 0, 1, 2]])
    assert seen(visibility_of(slots, key_group_BT=keys), 2, 4) == [[[1, 1, 1, 0], [1, 1, 0, 1]]]
    assert seen(visibility_of(slots, 1, torch.tensor([[False]]), keys), 2, 4) == [[[0, 1, 1, 0], [0, 0, 0, 1]]]
