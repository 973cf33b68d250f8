"""FAR by frequencies: what passes grows with the stage, and each stage sees that alone."""

from __future__ import annotations

import pytest
import torch

from tokenloom.models.core import registry
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.layout import LayoutError, TokenLayout
from tokenloom.models.core.protocols import Labels
from tokenloom.models.zoo.generators.far_frequency.module import FrequencyGenerator, Masks

LAYOUT = TokenLayout(grids=((8, 8),), channels=3)


def small(masks: Masks = "some", stages: tuple[int, ...] = (0, 2, 4)) -> FrequencyGenerator:
    torch.manual_seed(0)
    recipe = registry.get("far_frequency")
    model: FrequencyGenerator = recipe.config(dict(recipe.tiny) | {"masks": masks, "stages": stages}).build(layout=LAYOUT, classes=3)  # type: ignore[attr-defined]
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def test_a_low_pass_lets_through_nothing_then_more_then_everything() -> None:
    model, smooth = small(), torch.linspace(-1, 1, 8)
    x = (smooth[:, None] * smooth + 0.3 * (torch.arange(64).view(8, 8) % 2)).reshape(1, 64, 1).repeat(1, 1, 3)
    left = [float((model.low_pass(x, stage) - x).square().mean()) for stage in (0, 1, 2, 4, 8)]
    assert left[0] == pytest.approx(float(x.square().mean()))
    assert left == sorted(left, reverse=True)
    assert left[-1] < 1e-10
    flat = torch.full((1, 64, 3), 0.7)
    torch.testing.assert_close(model.low_pass(flat, 2), flat)


@torch.no_grad()
@pytest.mark.parametrize("masks", ["some", "none"])
def test_a_stage_hangs_on_the_low_pass_of_the_one_before_and_on_nothing_else(masks: Masks) -> None:
    model, labels, draws = small(masks), Labels(torch.arange(2)), SampleDraws.of(0, 0, 2)
    order = torch.arange(64).expand(2, -1)
    first, second, third = model.walk(labels, model.sampler.edited(guidance=0.0), draws, order)
    assert [each.side for each in (first, second, third)] == [0, 2, 4]
    given = model.low_pass(second.token_BLC, 4)
    masked = model._masked(2)
    assert (masked > 0) == (masks == "some")
    states = model(given, (torch.arange(64) >= masked).expand(2, -1), labels)
    torch.testing.assert_close(third.hidden.cond_BND[..., :-1], states, atol=1e-5, rtol=1e-5)
    assert bool((third.hidden.cond_BND[..., -1] == 4).all()), "the head is told the stage"
    assert model.generate(labels, model.sampler, draws).data.shape == (2, 64, 3)


def test_released_stages_are_scaled_to_the_grid_and_wrong_ones_refused() -> None:
    assert small(stages=()).stages == (0, 6, 6, 2, 3, 3, 4, 4, 5, 5, 6)
    with pytest.raises(ConfigError, match="stages begin with 0"):
        small(stages=(1, 2))
    with pytest.raises(LayoutError, match="grid's side 8"):
        small(stages=(0, 9))
