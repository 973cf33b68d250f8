"""MaskGIT's head: a transform and a norm before the tied table, and labels that are smoothed in training alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tokenloom.models.core.protocols import Labels, TokenLayout
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.conditions import ClassCondition
from tokenloom.models.zoo.generators.maskgit.head import MaskedLM
from tokenloom.models.zoo.generators.maskgit.recipe import maskgit
from tokenloom.models.zoo.generators.nar.recipe import nar

LAYOUT = TokenLayout(grids=((2, 2),), vocabulary=8)


def model() -> GroupGenerator:
    torch.manual_seed(0)
    built = maskgit(depth=1, width=16, heads=2, spare=3).build(LAYOUT, 4)
    with torch.no_grad():
        for parameter in built.head.parameters():
            parameter.normal_()
    return built


def test_logits_are_those_of_the_embedding_table_after_transform_and_norm() -> None:
    built = model()
    head, h = built.head, torch.randn(2, 4, 16)
    assert isinstance(head, MaskedLM)
    assert head.bias.shape == (8 + 3,), "spare rows are kept, and read by nothing"
    table = built.feed.table.books[0].weight  # type: ignore[attr-defined]
    mixed = F.gelu(h @ head.transform.weight.T + head.transform.bias)
    centred = mixed - mixed.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-12).sqrt() * head.norm.weight + head.norm.bias
    expected = normed @ table[:8].T + head.bias[:8]
    torch.testing.assert_close(head.logits(h), expected, atol=1e-4, rtol=1e-4)
    assert table.data_ptr() == head._table[0].weight.data_ptr(), "one table, not a copy"


def test_labels_are_smoothed_in_training_and_likelihoods_are_not() -> None:
    head, h, target = model().head, torch.randn(2, 4, 16), torch.randint(0, 8, (2, 4))
    log_p = head.logits(h).log_softmax(-1)  # type: ignore[operator]
    plain = -log_p.gather(-1, target.unsqueeze(-1))[..., 0]
    torch.testing.assert_close(head.eval().loss(h, target), plain)
    torch.testing.assert_close(head.train().loss(h, target), 0.9 * plain - 0.1 * log_p.mean(-1))


def test_a_null_class_can_be_the_zero_vector() -> None:
    condition = ClassCondition.Config(null="zero").build(3, 4)
    assert condition.table.weight.shape == (3, 4)
    found = condition.embed_of(Labels(torch.tensor([0, 2, 3]))).vector_BD
    torch.testing.assert_close(found, torch.stack([condition.table.weight[0], condition.table.weight[2], torch.zeros(4)]))


def test_nars_branch_is_added_to_the_layers() -> None:
    net = nar(depth=3, width=16, heads=2, branch=2).net
    assert (net.trunk.depth, net.branches) == (3, (2,))  # type: ignore[attr-defined]
