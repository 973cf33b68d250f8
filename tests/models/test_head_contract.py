"""What heads, orders and sessions promise each other: several calls of the net in a group, likelihoods, one seed a sample."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from zoo import CLASSES, build, early

from tokenloom.models.core import registry
from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.protocols import Labels, weakest
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.drawn import Drawn
from tokenloom.models.parts.heads.categorical import Categorical
from tokenloom.models.parts.heads.hidden import Hidden
from tokenloom.models.sampling.sampler import Moment, Sampler


class Repeating(Categorical):
    """A categorical head that runs the net three times a group, the second time as at first, and draws from that."""

    calls = "several"
    seen: list[tuple[Tensor, Tensor, Tensor]]

    def draw(self, hidden: Hidden, sampler: Sampler, moment: Moment, draws: SampleDraws, forced=None, predict=None) -> Drawn:  # type: ignore[no-untyped-def, override]
        assert predict is not None
        nothing = torch.zeros_like(hidden.cond_BND)
        again = predict(nothing)
        other = predict(nothing + torch.linspace(-1, 1, nothing.shape[-1]))  # a constant would be lost in a layer norm
        self.seen.append((hidden.cond_BND, other.cond_BND, again.cond_BND))
        return super().draw(again, sampler, moment, draws, forced)


@pytest.mark.parametrize("guidance", [0.0, 0.7])
@pytest.mark.parametrize("name", ["raster", "var", "aim", "maskgit"])
def test_a_head_may_run_the_net_several_times_in_a_group(name: str, guidance: float) -> None:
    """Caches of attention, recurrent states and nets without a cache are as after one call."""
    model = early(name)
    model.eval()
    assert isinstance(model, GroupGenerator)
    labels, sampler = Labels(torch.arange(4) % CLASSES), model.sampler.edited(guidance=guidance)
    draws = SampleDraws.of(0, 0, 4)
    plain = list(model.decode_steps(labels, sampler, draws))
    head = model.head
    head.__class__ = type("Several", (Repeating, type(head)), {})
    head.seen = []  # type: ignore[assignment]
    several = list(model.decode_steps(labels, sampler, draws))
    for first, second in zip(plain, several, strict=True):
        assert torch.equal(first.data, second.data)
        torch.testing.assert_close(first.h_BnD, second.h_BnD, atol=1e-5, rtol=1e-5)
    assert len(head.seen) == len(plain)  # type: ignore[arg-type]
    for once, other, again in head.seen:  # type: ignore[union-attr]
        torch.testing.assert_close(once, again, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(once, other, atol=1e-3), "the net takes what the head adds in"


@pytest.mark.parametrize("name", ["raster", "randar"])
def test_a_sample_alone_is_the_sample_in_a_batch_of_64(name: str) -> None:
    model = early(name)
    model.eval()
    assert isinstance(model, GroupGenerator)
    labels, sampler = Labels(torch.arange(64) % CLASSES), model.sampler.edited(guidance=0.5)
    batch = model.generate(labels, sampler, SampleDraws.of(5, 0, 64)).ids
    for row in (0, 17, 63):
        assert torch.equal(model.generate(labels.part(row, row + 1), sampler, SampleDraws.of(5, row, row + 1)).ids[0], batch[row])
    parts = [model.generate(labels.part(a, a + 16), sampler, SampleDraws.of(5, a, a + 16)).ids for a in range(0, 64, 16)]
    assert torch.equal(torch.cat(parts), batch)
    with pytest.raises(ValueError, match="63 seeds for 64 samples"):
        model.generate(labels, sampler, SampleDraws.of(5, 0, 63))


def test_each_sample_has_a_random_order_of_its_own() -> None:
    model = build("randar")
    assert isinstance(model, GroupGenerator)
    order = model.order.decode(model.layout, 64, SampleDraws.of(0, 0, 64)).sequence_BL
    assert len({tuple(row) for row in order.tolist()}) > 60
    assert torch.equal(order[9:12], model.order.decode(model.layout, 3, SampleDraws.of(0, 9, 12)).sequence_BL)


def test_guidance_is_the_published_formula() -> None:
    cond, null = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    torch.testing.assert_close(Hidden(cond, null, 2.0).guided(), 3 * cond - 2 * null)
    torch.testing.assert_close(Hidden(cond, null, 2.0).guided(torch.square), 3 * cond.square() - 2 * null.square())
    assert torch.equal(Hidden(cond).guided(torch.square), cond.square())


def test_a_likelihood_is_the_weaker_one_of_head_and_order() -> None:
    assert [weakest("exact", "exact"), weakest("exact", "bound"), weakest("bound", "none")] == ["exact", "bound", "none"]
    found = {name: build(name).likelihood for name in ("raster", "randar", "maskgit", "halton_maskgit", "oar", "vq_ddm", "coarse_to_fine")}
    assert found == {
        "raster": "exact",
        "randar": "exact",
        "maskgit": "none",
        "halton_maskgit": "exact",
        "oar": "none",
        "vq_ddm": "none",
        "coarse_to_fine": "exact",
    }
    masked = registry.get("maskgit").config(registry.get("maskgit").tiny).order  # type: ignore[attr-defined]
    assert replace(masked, choice=None).likelihood == "exact"
