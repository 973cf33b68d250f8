"""Any number in any field of any recipe builds a model without memory, at once, or is refused with the field's name."""

from __future__ import annotations

import inspect
import time
import typing
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zoo import spec_of

from tokenloom.configs import load
from tokenloom.models.core import registry
from tokenloom.models.core.build import ModelSpec
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.protocols import Conditions, Labels, LayoutError, TokenLayout, Tokens

HUGE = 10**30
VALUES = [0, -1, 1, 3, HUGE, 2**31, 65536, -0.5, float("inf"), float("nan"), 1e300, "x", None, [], [0], [-1, HUGE], True]
SECONDS = 10.0  # of one build: they take hundredths, and a machine may be busy


def places(name: str) -> list[str]:
    """Everything that a run file may set of a recipe: ``args.NAME`` and ``set.PATH``."""
    recipe = registry.get(name)
    hints = typing.get_type_hints(recipe.function)
    args = [
        inner
        for arg in inspect.signature(recipe.function).parameters
        for inner in ([field.name for field in fields(hints[arg])] if is_dataclass(hints[arg]) else [arg])
    ]
    return [f"args.{arg}" for arg in args] + [f"set.{path}" for path in leaves(spec_of(name).config(), "")]


def leaves(config: Any, before: str) -> Iterator[str]:
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from leaves(value, f"{before}{field.name}.")
        else:
            yield before + field.name


def builds_or_is_refused(name: str, place: str, value: Any) -> None:
    section, _, path = place.partition(".")
    spec = spec_of(name)
    spec = replace(spec, args={**spec.args, path: value}) if section == "args" else replace(spec, set={path: value})
    began, refusal = time.perf_counter(), None
    try:
        with torch.device("meta"):
            spec.build()
    except ConfigError as error:
        refusal = str(error)
    assert refusal is None or path.rpartition(".")[2] in refusal, f"{place}={value!r}: the field is not named: {refusal}"
    assert refusal is None or "do not go together" not in refusal, f"{place}={value!r}: no check, an accident: {refusal}"
    assert time.perf_counter() - began < SECONDS, f"{place}={value!r}"


@pytest.mark.parametrize("name", registry.names())
def test_a_number_builds_or_is_refused_with_its_field(name: str) -> None:
    known = places(name)

    @settings(max_examples=12, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(known), st.sampled_from(VALUES))
    def some(place: str, value: Any) -> None:
        builds_or_is_refused(name, place, value)

    some()


@pytest.mark.long
@pytest.mark.parametrize("name", registry.names())
def test_each_number_of_each_field(name: str) -> None:
    for place in places(name):
        for value in VALUES:
            builds_or_is_refused(name, place, value)


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("set", {"net.depth": HUGE}, r"set\.net\.depth=1000.*: depth=1000.*: must be from 0 to 512 \(of net\.transformer\)"),
        ("args", {"depth": HUGE}, r"args\.depth=1000.*: must be from 0 to 512"),
        ("set", {"net.heads": 0}, r"set\.net\.heads=0: heads=0: must be from 1 to 512"),
        ("set", {"sampler.temperature.value": float("nan")}, r"set\.sampler\.temperature\.value: nan is not a finite number"),
        ("args", {"dropout": 1.5}, r"args\.dropout=1\.5: must be from 0 to 1"),
    ],
)
def test_what_a_refusal_says(where: str, value: dict[str, Any], message: str) -> None:
    spec = spec_of("raster")
    changed = {where: {**getattr(spec, where), **value}}
    with pytest.raises(ConfigError, match=message):
        replace(spec, **changed).build()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ("sample.temperature=.inf", r"sample\.temperature: inf cannot be used: .*finite number"),
        ("sample.guidance=.nan", r"sample\.guidance: nan cannot be used: .*finite number"),
        ("generator.train.optimizer.lr=.inf", r"generator\.train\.optimizer\.lr: inf cannot be used"),
        (f"generator.train.steps={HUGE}", r"train\.steps=1000.*: must be from 0 to 2147483648"),
        (f"evaluate.samples={HUGE}", r"evaluate\.samples: 1000.* cannot be used: must be from -2147483647"),
        (f"data.seed={HUGE}", r"data\.seed: 1000.* cannot be used"),
        ("stages=[{name: tune, train: {steps: 1}}, {name: Tune, train: {steps: 1}}]", r"two of them are named 'Tune' and 'tune'"),
    ],
)
def test_run_files_have_ranges_too(edit: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load.load_run("smoke_raster", [edit])


def test_lengths_of_ragged_rows_are_checked() -> None:
    layout, data = TokenLayout(grids=((1, 4),), vocabulary=8, axis="sequence"), torch.zeros(2, 4, dtype=torch.int64)
    Tokens(data, layout, torch.tensor([0, 4]))
    Tokens(data[:, :3], layout, torch.tensor([3, 1]))
    for wrong, message in (
        (torch.tensor([1, 5]), "from 1 to 5: must be from 0 to 4"),
        (torch.tensor([-1, 2]), "from -1 to 2"),
        (torch.tensor([1]), "one integer for each of 2 rows"),
        (torch.tensor([1.0, 2.0]), "one integer for each of 2 rows"),
    ):
        with pytest.raises(LayoutError, match=message):
            Tokens(data, layout, wrong)
    with pytest.raises(LayoutError, match="5 tokens a row, layout has 4"):
        Tokens(torch.zeros(2, 5, dtype=torch.int64), layout, torch.tensor([1, 2]))


def test_conditions_are_taken_by_name_or_refused_by_name() -> None:
    labels = Labels(torch.zeros(2, dtype=torch.int64))
    assert Conditions.of({"class": labels, "style": labels}).keys() == {"class", "style"}
    assert Conditions.of({}).rows == 0
    for wrong, message in (({"class": 3}, "'class': int is no condition"), (torch.zeros(2), "Tensor is no condition")):
        with pytest.raises(TypeError, match=message):
            Conditions.of(wrong)  # type: ignore[arg-type]


def test_a_model_that_is_read_back_is_checked_too() -> None:
    spec = spec_of("raster").resolve()
    assert spec.resolved is not None
    spec.resolved["net"]["heads"] = 0
    with pytest.raises(ConfigError, match="heads=0: must be from 1 to 512"):
        ModelSpec.from_dict(spec.to_dict()).config()
