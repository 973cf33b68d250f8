"""What the documentation shows runs."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tokenloom.models.core import registry
from tokenloom.models.core.build import ModelSpec
from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.protocols import Labels, TokenLayout
from tokenloom.models.generators.group_wise import GroupGenerator

PAGE = Path(__file__).resolve().parents[2] / "docs" / "add_a_method.md"


@pytest.fixture
def recipe() -> Iterator[str]:
    """The page's example, registered as if it lay in the zoo."""
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[0]
    module = types.ModuleType("example_of_the_page")
    sys.modules[module.__name__] = module
    registry.names()
    before = set(registry._RECIPES)
    try:
        exec(compile(code, str(PAGE), "exec"), module.__dict__)
        (name,) = set(registry._RECIPES) - before
        yield name
    finally:
        del sys.modules[module.__name__]
        for name in set(registry._RECIPES) - before:
            del registry._RECIPES[name]


def test_the_example_of_a_new_method_predicts_column_by_column(recipe: str) -> None:
    layout = TokenLayout(grids=((3, 2),), vocabulary=8)
    spec = ModelSpec("generator", recipe, dict(registry.get(recipe).tiny), {}, {"layout": layout.to_dict(), "classes": 3})
    torch.manual_seed(0)
    model = spec.build().eval()
    assert isinstance(model, GroupGenerator)
    labels, draw = Labels(torch.arange(3)), SampleDraws.of(0, 0, 3)
    steps = list(model.decode_steps(labels, model.sampler, draw))
    assert torch.cat([step.place_Bn for step in steps], 1)[0].tolist() == [0, 2, 4, 1, 3, 5]
    assert set(model.generate(labels, model.sampler, draw).ids.unique().tolist()) <= set(range(8))
