"""Parts that do not fit are refused when a generator is built: known cases, fields set to other values, exchanged parts."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
from zoo import CLASSES, batch_of, spec_of

from tokenloom.models.core import registry
from tokenloom.models.core.build import ModelSpec
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.layout import LayoutError, TokenLayout
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.agreement import AtLeast, Trait, Traits, compare
from tokenloom.models.parts.plan import Plan

GENERATORS = registry.names("generator")
PLAN = Plan(torch.zeros(1, 1, dtype=torch.long), (1,))


def edited(name: str, **changes: Any) -> ModelSpec:
    """The tiny spec with fields set."""
    return replace(spec_of(name), set=changes)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("randar", {"net.heads": 4}, ["attention heads", "feed.heads", "net.heads"]),
        ("randar", {"feed.rope.base": 100.0}, ["rotary positions", "feed.rope", "net.rope"]),
        ("tokenbridge_ar", {"net.buffer": 3}, ["buffer slots", "feed.buffer", "net.buffer: 3"]),
        ("token_shuffle", {"net.share": 1}, ["taken apart", "feed.share", "net.share: 1"]),
        ("nar", {"net.branches": [1, 1]}, ["hidden states of a slot", "net.branches: 3", "head.states: 2"]),
        ("nar", {"head.states": 3}, ["hidden states of a slot", "head.states: 3"]),
        ("maskgit", {"feed.prefix": 2}, ["prefix slots", "feed.prefix", "requires 2"]),
        ("par", {"feed.registers": 1}, ["grow by at most 1"]),
        ("srdd", {"order": {"scales": {"window": 1}}}, ["window must be 0"]),
        ("halton_maskgit", {"head.extra": 3}, ["embeddings of tokens"]),
        ("infinity", {"condition.heads": 3}, ["heads=3"]),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)) if isinstance(value, dict) else "",
)
def test_known_mismatches_are_refused_with_their_fields(name: str, changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        edited(name, **changes).build()
    assert all(word in str(caught.value) for word in words), str(caught.value)


def leaves(config: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """Dotted path, value and type of each field that holds no config."""
    hints = typing.get_type_hints(type(config))
    for field in fields(config):
        value, here = getattr(config, field.name), f"{path}.{field.name}"
        if is_dataclass(value):
            yield from leaves(value, here)
        else:
            yield here, value, hints[field.name]


def other(value: Any, hint: Any) -> Any:
    """Another value of a field, of its type; None where numbers alone differ."""
    if get_origin(hint) is Literal:
        return next(choice for choice in get_args(hint) if choice != value)
    if isinstance(value, tuple):
        return [*value, value[-1]] if value else None
    return 2 * value or 1 if isinstance(value, int) and not isinstance(value, bool) else None


@pytest.mark.parametrize("name", GENERATORS)
def test_any_field_set_to_another_value_trains_or_is_refused(name: str) -> None:
    spec = spec_of(name)
    config = spec.config()
    axes = [axis for axis in ("order", "feed", "net", "head", "condition", "coarse", "fine") if hasattr(config, axis)]
    changes = {path: other(value, hint) for axis in axes for path, value, hint in leaves(getattr(config, axis), axis)}
    for path, value in changes.items():
        if value is None:
            continue
        try:
            model = edited(name, **{path: value}).build()
        except ConfigError:
            continue
        model.train()
        with torch.no_grad():
            loss = model.losses(batch_of(model, 2), model.phases[0], Draws.whole(0, 1, 2, 10))["loss"]
        assert loss.isfinite(), f"{path}={value}"


def exchanged(name: str, axis: str, giver: str) -> None:
    """Build a recipe with one part of another one."""
    spec = spec_of(name)
    config, other = spec.config(), spec_of(giver).config()
    assert isinstance(config, GroupGenerator.Config)
    assert isinstance(other, GroupGenerator.Config)
    layout = TokenLayout.from_dict(spec.given["layout"])
    tokenizer = ModelSpec.from_dict(spec.given["tokenizer"]).config()
    replace(config, **{axis: getattr(other, axis)}).build(layout=layout, classes=CLASSES, tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("name", "axis", "giver", "words"),
    [
        ("par", "net", "aim", "slots in sequence order"),
        ("raster", "net", "mvar", "whole scales"),
        ("raster", "net", "arpg", "query slots"),
        ("arpg", "net", "raster", "query slots"),
        ("raster", "net", "infinity", "memory"),
        ("raster", "order", "maskgit", "one position a group"),
        ("sigma_gpt", "order", "halton_maskgit", "known positions"),
        ("raster", "net", "token_shuffle", "taken apart"),
        ("var", "order", "hmar", "known positions"),
        ("var", "order", "raster", "whole scales"),
        ("var", "head", "halton_maskgit", "embeddings of tokens"),
        ("tokenbridge_ar", "order", "oar", "logits"),
    ],
)
def test_parts_of_other_methods_are_refused_where_they_do_not_fit(name: str, axis: str, giver: str, words: str) -> None:
    with pytest.raises((ConfigError, LayoutError), match=words):
        exchanged(name, axis, giver)


def test_a_part_of_another_method_is_taken_where_it_fits() -> None:
    exchanged("raster", "net", "aim")
    exchanged("maskgit", "order", "halton_maskgit")


def test_codebooks_of_different_sizes_are_refused_by_a_head_that_has_one_size() -> None:
    spec = spec_of("infinity")
    layout = spec.given["layout"]
    sizes = (layout["vocabulary"],) * (layout["codebooks"] - 1) + (1,)
    with pytest.raises(ConfigError, match="Bitwise predicts codebooks of one size"):
        replace(spec, given={**spec.given, "layout": {**layout, "vocabularies": sizes}}).build()


class Stub:
    """A part that states what it is given."""

    def __init__(self, traits: Traits | None = None, requires: Traits | None = None) -> None:
        self._traits, self._requires = traits or {}, requires or {}

    def traits(self, plan: Plan) -> Traits:
        return self._traits

    def requires(self, plan: Plan) -> Traits:
        return self._requires


def parts(**given: Stub) -> dict[str, Any]:
    return {axis: given.get(axis, Stub()) for axis in ("order", "feed", "net", "head", "condition")}


def test_shared_traits_have_defaults_and_requirements_may_be_bounds() -> None:
    compare(parts(), PLAN)
    compare(parts(net=Stub({"buffer slots before the tokens": Trait(0, "net.buffer")})), PLAN)
    with pytest.raises(ConfigError, match=r"feed: 0, net\.buffer: 3"):
        compare(parts(net=Stub({"buffer slots before the tokens": Trait(3, "net.buffer")})), PLAN)
    feed = Stub(requires={"prefix slots": Trait(AtLeast(1), "feed")})
    compare(parts(feed=feed, condition=Stub({"prefix slots": Trait(2, "condition.length")})), PLAN)
    with pytest.raises(ConfigError, match=r"requires at least 1, condition .* has 0"):
        compare(parts(feed=feed), PLAN)
