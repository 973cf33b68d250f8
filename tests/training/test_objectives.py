"""The objective axis: what is minimised is a value beside the parts of a model, and brings the trained models that it needs by role."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from small_generators import grid, small, some
from torch import Tensor, nn
from zoo import spec_of

from tokenloom.models.core import registry
from tokenloom.models.core.build import ModelSpec
from tokenloom.models.core.config import ConfigError, from_dict
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.edits import override
from tokenloom.models.core.protocols import Batch, Tokens
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.objectives.base import GroupModel, Objective, objectives
from tokenloom.models.objectives.nll import NLL
from tokenloom.models.zoo.generators.heptapod.objective import WholeGrid


class Pull(Objective):
    """A toy: NLL, and the distance of the mean state to that of a trained reference."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Objective.Config):
        weight: float = 1.0

        @property
        def needs(self) -> tuple[str, ...]:
            return ("reference",)

        def build(self) -> Pull:
            return Pull(self)

    def __init__(self, config: Config) -> None:
        self.config, self._reference = config, nn.Module()

    def adopt(self, **roles: nn.Module) -> None:
        self._reference = roles["reference"].eval()

    def losses(self, model: GroupModel, batch: Batch, phase: str, draws: Draws) -> dict[str, Tensor]:
        assert batch.tokens is not None
        assert batch.conditions is not None
        assert isinstance(self._reference, GroupGenerator)
        plan, ids = model.order.plan(model.layout, None), batch.tokens.ids
        with torch.no_grad():
            theirs = self._reference.nll(ids, batch.conditions, plan, None)
        ours = model.nll(ids, batch.conditions, plan, None)
        return {"loss": ours.mean() + self.config.weight * (ours - theirs).square().mean()}


def config_of(name: str = "raster", **args: object) -> GroupGenerator.Config:
    found = registry.get(name).config(dict(registry.get(name).tiny) | args)
    assert isinstance(found, GroupGenerator.Config)
    return found


def test_a_run_file_names_an_objective_and_its_fields() -> None:
    assert {"nll", "whole_grid", "distilled_order"} <= set(objectives())
    assert override(config_of("heptapod"), {"objective": {"whole_grid": {"later": 0.5}}}).objective == WholeGrid.Config(later=0.5)
    assert override(config_of("heptapod"), {"objective": {"nll": None}}).objective == NLL.Config()
    assert override(config_of("heptapod"), {"objective.later": 2.0}).objective == WholeGrid.Config(later=2.0)
    for wrong, message in (
        ({"nil": {}}, "write one of .*nll.*whole_grid"),
        ({"nll": {"weight": 1}}, "objective.nll: unknown field 'weight'; fields here: none"),
        ({"whole_grid": {"later": "x"}}, "objective.whole_grid.later"),
        ({}, "write one of"),
    ):
        with pytest.raises(ConfigError, match=message):
            override(config_of("heptapod"), {"objective": wrong})


def test_the_default_objective_is_not_in_the_stored_form_and_another_is() -> None:
    assert "objective" not in config_of("raster").to_dict()
    stored = config_of("heptapod").to_dict()
    # As it was stored when the loss was a subclass of the generator: what is in a store keeps its fingerprint.
    assert (stored["type"], stored["later"], stored["targets"], "objective" in stored) == ("model.whole_grid", 1.0, 0, False)
    assert from_dict(stored) == config_of("heptapod")


def test_the_table_of_methods_is_read_off_the_configs() -> None:
    """A column changes with the value on that axis, for a recipe and for an edit of it."""
    assert config_of("heptapod").axis_labels["objective"] == "whole grid"
    assert override(config_of("heptapod"), {"objective": {"nll": {}}}).axis_labels["objective"] == "NLL"
    masked = registry.get("maskgit").config()
    assert (masked.axis_labels["order"], masked.axis_labels["net"]) == ("masked, by confidence", "transformer + post-norm")
    assert override(masked, {"order.choice": None}).axis_labels["order"] == "masked, random"
    for row in registry.table():
        recipe = registry.get(row["name"])
        assert row.items() >= recipe.config().axis_labels.items()
        assert all(label and label == label.strip() for label in recipe.axes.values()), row
    columns = {kind: columns for kind, (columns, _) in registry.tables().items()}
    assert {"order", "feed", "net", "head", "objective", "condition"} < set(columns["generator"])
    assert {"net", "quantizer"} < set(columns["tokenizer"])
    assert "order" not in columns["tokenizer"]


def test_an_unknown_kind_of_method_is_refused() -> None:
    with pytest.raises(ConfigError, match="kind 'generater': use one of tokenizer, generator, density"):
        registry.register("new", kind="generater", paper="", tiny={})


def test_an_objective_refuses_parts_that_it_cannot_train() -> None:
    for name, changes, message in (
        ("raster", {"objective": {"whole_grid": {}}}, r"states with queries of positions: objective .* requires yes, net .* has no"),
        ("raster", {"objective": {"distilled_order": {}}}, r"orders that the model finds: objective .* requires yes, order .* has no"),
        ("oar", {"objective": {"whole_grid": {}}}, r"positions in storage order: objective .* requires yes, order .* has no"),
    ):
        with pytest.raises(ConfigError, match=message):
            replace(spec_of(name), set=changes).build()


def test_one_model_has_other_losses_under_other_objectives_and_the_same_weights_and_samples() -> None:
    layout = grid(3)
    whole, plain = small("heptapod", layout, scale=0.3), config_of("heptapod")
    other = override(plain, {"objective": {"nll": {}}}).build(layout=layout, classes=3)
    other.load_state_dict(whole.state_dict(), strict=True)
    ids, labels = some(layout, 4)
    batch = Batch(tokens=Tokens(ids, layout), conditions=labels)
    first, second = (model.eval().losses(batch, "main", Draws.whole(0, 0, 4)) for model in (whole, other))
    torch.testing.assert_close(first["next"], second["loss"], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(first["loss"], second["loss"])
    torch.testing.assert_close(whole.log_prob(batch), other.log_prob(batch))


def test_an_objective_is_given_its_roles_frozen_outside_of_the_saved_state() -> None:
    layout = grid(2)
    config = replace(config_of("raster"), objective=Pull.Config(weight=2.0))
    assert config.needs == ("reference",)
    model, reference = config.build(layout, 3).eval(), small("raster", layout, scale=0.3)
    model.adopt(reference=reference)
    assert set(model.state_dict()) == set(reference.state_dict())
    ids, labels = some(layout, 4)
    batch = Batch(tokens=Tokens(ids, layout), conditions=labels)
    plain = replace(config, objective=NLL.Config()).build(layout, 3).eval()
    plain.load_state_dict(model.state_dict())
    loss = model.losses(batch, "main", Draws.whole(0, 0, 4))["loss"]
    loss.backward()
    ours, theirs = (m.nll(ids, labels, m.order.plan(layout, None), None) for m in (plain, reference))
    torch.testing.assert_close(loss, ours.mean() + 2 * (ours - theirs).square().mean())
    assert all(p.grad is None for p in reference.parameters())
    model.load_state_dict(reference.state_dict())
    torch.testing.assert_close(model.losses(batch, "main", Draws.whole(0, 0, 4))["loss"], theirs.mean())


def test_training_without_a_role_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ModelSpec, "config", lambda self: replace(config_of("raster"), objective=Pull.Config()))
    spec = ModelSpec("generator", "raster")
    spec.check_roles({"tokenizer", "reference"})
    with pytest.raises(ConfigError, match="'raster' needs a trained model in the role 'reference' and was given tokenizer"):
        spec.check_roles({"tokenizer"})
