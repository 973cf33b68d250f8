"""Laws of hybrid linear attention over sequences of images: forms that are equal, causality, and what sampling carries."""

from __future__ import annotations

from typing import cast

import torch

from tokenloom.models.core import registry
from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.layout import TokenLayout
from tokenloom.models.core.protocols import Conditions, Labels
from tokenloom.models.parts.flows.matching import FlowSampler
from tokenloom.models.zoo.generators.arflow.module import ARFlow, companions
from tokenloom.models.zoo.generators.arflow.net import hybrid

LAYOUT = TokenLayout(grids=((4, 4),), channels=3)


def model_of(patch: int = 2) -> ARFlow:
    torch.manual_seed(0)
    config = registry.get("arflow").config({"depth": 2, "width": 16, "heads": 2, "patch": patch, "steps": 5})
    model = cast(ARFlow, config.build(LAYOUT, 3))  # type: ignore[attr-defined]
    for part in model.parameters():
        torch.nn.init.normal_(part, std=0.3)
    return model.eval()


@torch.no_grad()
def test_chunks_and_the_recurrence_are_one_computation() -> None:
    """By sums over all earlier images, by a state from image to image, and in two parts."""
    q, k, v = torch.randn(3, 2, 3, 4, 5, 6).double()
    gate = -torch.rand(2, 3, 4, 5).double()
    whole, last = hybrid(q, k, v, gate)
    first, state = hybrid(q[:, :, :2], k[:, :, :2], v[:, :, :2], gate[:, :, :2])
    second, end = hybrid(q[:, :, 2:], k[:, :, 2:], v[:, :, 2:], gate[:, :, 2:], state)
    torch.testing.assert_close(torch.cat([first, second], 2), whole)
    torch.testing.assert_close(end, last)
    key, fade = k * 6**-0.5, gate.mean(-1)
    for i in range(4):
        direct = (q[:, :, i] @ key[:, :, i].transpose(-1, -2)).softmax(-1) @ v[:, :, i]
        for j in range(i):
            between = fade[:, :, j + 1 : i].sum(-1).exp()[..., None, None]
            scores = (q[:, :, i] * gate[:, :, i].cumsum(-1).exp()[..., None]) @ key[:, :, j].transpose(-1, -2)
            direct = direct + between * (scores @ v[:, :, j])
        torch.testing.assert_close(whole[:, :, i], direct)


@torch.no_grad()
def test_one_image_after_another_equals_the_training_form() -> None:
    model = model_of()
    x, t, vector = torch.randn(2, 4, 16, 3), torch.rand(2, 4), torch.randn(2, 16)
    whole, _ = model(x, t, vector)
    states, each = None, []
    for i in range(4):
        y, states = model(x[:, i : i + 1], t[:, i : i + 1], vector, states)
        each.append(y)
    torch.testing.assert_close(torch.cat(each, 1), whole, atol=1e-5, rtol=1e-5)


def test_an_image_depends_on_itself_and_on_those_before_it() -> None:
    model = model_of(patch=1)
    x = torch.randn(1, 3, 16, 3, requires_grad=True)
    out = model(x, torch.rand(1, 3), torch.randn(1, 16))[0]
    for i in range(3):
        (grad,) = torch.autograd.grad(out[:, i].sum(), x, retain_graph=True)
        assert (grad.abs().sum((0, 2, 3)) > 0).tolist() == [j <= i for j in range(3)]


def test_companions_are_rows_of_the_class_and_the_last_is_the_row() -> None:
    label = torch.tensor([2, 0, 2, 1, 2, 0])
    chosen = companions(label, torch.rand(6, 50, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(chosen[:, -1], torch.arange(6))
    assert all(set(row.tolist()) == set((label == of).nonzero().flatten().tolist()) for row, of in zip(chosen, label))
    assert companions(None, torch.rand(2, 3)).tolist() == [[0, 0, 0], [1, 1, 1]]


@torch.no_grad()
def test_sampling_carries_the_state_of_its_own_noisier_steps() -> None:
    model = model_of()
    own, labels = cast(FlowSampler, model.sampler.head), Conditions.of(Labels(torch.tensor([0, 1])))
    draws = SampleDraws.of(0, 0, 2)
    found = model.generate(labels, model.sampler.edited(guidance=0.0), draws).data
    vector, seen, times = model.condition(labels).vector_BD, [], []

    def velocity(x: torch.Tensor, t: float) -> torch.Tensor:
        seen.append(x)
        times.append(torch.full((2,), t))
        return model(torch.stack(seen, 1), torch.stack(times, 1), vector)[0][:, -1]

    wanted = own.walk(draws.normal("head", 0, 16, 3), velocity, lambda i: draws.normal("walk", i, 16, 3))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
