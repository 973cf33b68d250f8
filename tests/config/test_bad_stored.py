"""Stored configs, hand-edited model files and named values of a run file are refused by field and value, not with a crash."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest

from tokenloom.models.core import registry
from tokenloom.models.core.build import ModelSpec
from tokenloom.models.core.config import ConfigError, from_dict
from tokenloom.models.core.protocols import LayoutError, TokenLayout
from tokenloom.models.objectives.base import Objective
from tokenloom.models.parts.conditions import Conditioner
from tokenloom.models.sampling.decoders.base import Decoder
from tokenloom.models.sampling.head_sampler import HeadSampler
from tokenloom.models.sampling.sampler import Sampler

LAYOUT = TokenLayout(grids=((2, 2),), vocabulary=4)
SPEC = ModelSpec("generator", "raster", {"width": 16, "depth": 1, "heads": 2}, {}, {"layout": LAYOUT.to_dict(), "classes": 2})
GONE = object()


def edited(path: str, value: Any) -> dict[str, Any]:
    data = copy.deepcopy(SPEC.resolve().to_dict())
    *above, last = path.split(".")
    inner = data
    for name in above:
        inner = inner[name]
    if value is GONE:
        del inner[last]
    else:
        inner[last] = value
    return data


def test_an_unedited_model_file_builds() -> None:
    assert ModelSpec.from_dict(SPEC.resolve().to_dict()).build().layout == LAYOUT


@pytest.mark.parametrize(
    ("path", "value", "names"),
    [
        ("format", "3", "model.format"),
        ("format", [], "model.format"),
        ("format", 99, "newer"),
        ("recipe", GONE, "'recipe' is missing"),
        ("args", 5, "model.args"),
        ("given", None, "model.given"),
        ("given.layout", [], "layout"),
        ("given.layout", {}, "'grids' is missing"),
        ("given.layout.grids", "x", "layout.grids"),
        ("given.layout.grids", [[2]], "layout.grids"),
        ("given.layout.vocabulary", None, "layout.vocabulary"),
        ("given.layout.rows", 3, "unknown field 'rows'"),
        ("given.signal", {"kind": "image", "shape": 4, "channels": 1}, "signal.shape"),
        ("resolved", 7, "resolved"),
        ("resolved.sampler.temperature.value", math.nan, "temperature.value: nan"),
        ("resolved.sampler.temperature.value", 10**400, "temperature.value"),
    ],
)
def test_an_edited_model_file_is_refused_by_field(path: str, value: Any, names: str) -> None:
    with pytest.raises((ConfigError, LayoutError), match=names):
        ModelSpec.from_dict(edited(path, value)).build()


@pytest.mark.parametrize("data", [None, 3, "x", []])
def test_what_is_no_mapping_is_no_config(data: Any) -> None:
    with pytest.raises(ConfigError, match="model: "):
        ModelSpec.from_dict(data)
    with pytest.raises(ConfigError, match="there: "):
        from_dict(data, "there")


@pytest.mark.parametrize("name", ["guidance", "temperature", "top_k"])
def test_sampler_settings_are_finite(name: str) -> None:
    with pytest.raises(ConfigError, match=f"sample.{name}=inf: must be a finite"):
        Sampler().edited(**{name: math.inf})


@pytest.mark.parametrize("fields", [5, "x", [1], True])
@pytest.mark.parametrize(
    ("kind", "name"), [(Objective.Config, "nll"), (Conditioner.Config, "characters"), (Decoder, "jacobi"), (HeadSampler, "diffusion")]
)
def test_fields_of_a_named_value_are_a_mapping(kind: Any, name: str, fields: Any) -> None:
    with pytest.raises(ConfigError, match=f"here.{name}: .* is not a mapping of fields"):
        kind.parse({name: fields}, "here")


def test_a_named_decoder_is_of_its_name_and_bounded() -> None:
    with pytest.raises(ConfigError, match="unknown field 'type'"):
        Decoder.parse({"jacobi": {"type": "decoder.group_wise"}}, "sample.decoder")
    for odd in (5, True, [1], {}):
        with pytest.raises(ConfigError, match=r"sample\.decoder: .*: write one of aded"):
            Decoder.parse(odd, "sample.decoder")  # type: ignore[arg-type]
    for name in ("jacobi", "draft_model"):
        with pytest.raises(ConfigError, match=rf"window=10+: must be from 1 to 4096 \(of decoder\.{name}\)"):
            Decoder.parse({name: {"window": 10**30}}, "sample.decoder")


def test_a_value_of_the_wrong_kind_is_refused_by_its_axis() -> None:
    with pytest.raises(ConfigError, match=r"set\.objective: 5 is not a valid Objective\.Config"):
        registry.get("raster").config({}, {"objective": 5})
