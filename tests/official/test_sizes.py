"""Published sizes: our models have the published number of parameters, and no published size is missing."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import cast

import pytest

from tokenloom.models.core import registry
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.published import Size, Training, grid
from tokenloom.models.core.settings import TrainSettings
from tokenloom.models.core.sized import counted, spec_of
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.sampling.sampler import Constant, Linear, Sampler

ROOT = Path(__file__).resolve().parents[2]
SIZED = [name for name in registry.names() if registry.get(name).sizes]
#: Family to size to [parameters, tokens], as published; None where no source says.
PUBLISHED = json.loads((ROOT / "tests" / "fixtures" / "published_sizes.json").read_text())
#: Recipe (or several) of each family of the published tables.
FAMILIES = {"var": ("var",), "llamagen": ("raster",), "rar": ("rar",)} | {
    name: (name,)
    for name in (
        "npp",
        "par",
        "nar",
        "randar",
        "arpg",
        "open_magvit2",
        "flexvar",
        "halton_maskgit",
        "maskgit",
        "infinity",
        "xar",
        "aim",
        "mvar",
        "hmar",
        "mar",
        "ear",
    )
}
FAMILIES |= {"ibq": ("ibq_ar",), "titok": ("titok_imagebert", "titok_uvitbert"), "tokenbridge": ("tokenbridge_ar",)}
#: Published sizes that no recipe has, and why.
ABSENT = {
    "nar": {"XL-t2i-256": "the recipe has no text condition", "XL-t2i-512": "the recipe has no text condition"},
}


def page() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_readme", ROOT / "docs" / "readme.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", SIZED)
def test_each_size_has_the_published_number_of_parameters_and_its_row(name: str) -> None:
    recipe = registry.get(name)
    for size in recipe.sizes:
        if size.mark in ("code", "measured"):
            assert counted(recipe, size) == size.parameters, size.name
    lines = [line for line in (ROOT / "docs" / "sizes.md").read_text().splitlines() if f"| `{name}` |" in line and line.count("|") == 9]
    assert lines == ["| " + " | ".join(row) + " |" for row in page().published_rows(name)], "run `python docs/readme.py`"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_published_size_of_a_family_is_there_with_its_numbers(family: str) -> None:
    ours = {size.key: size for name in FAMILIES[family] for size in registry.get(name).sizes}
    for key, (parameters, tokens) in PUBLISHED[family].items():
        if key in ABSENT.get(family, {}):
            assert key not in ours, "no longer absent: take it off the list"
            continue
        assert parameters is None or ours[key].parameters == parameters, key
        assert tokens is None or ours[key].tokens == tokens, key
    assert set(ours) <= set(PUBLISHED[family])


def test_a_size_stands_for_its_arguments_and_single_ones_win() -> None:
    recipe = registry.get("raster")
    large = recipe.config({"size": "L"})
    assert large == recipe.config({"size": "L-c2i-256"}) == recipe.config(dict(recipe.size("L").args))
    assert (large.net.depth, large.net.width) == (24, 1024)  # type: ignore[attr-defined]
    assert recipe.config({"size": "L", "depth": 3}).net.depth == 3  # type: ignore[attr-defined]
    assert recipe.config({"size": "tiny"}) == recipe.config(recipe.tiny)
    with pytest.raises(ConfigError, match=r"args.size: recipe 'raster' has no size 'M'; sizes: B, B-384, .*tiny"):
        recipe.config({"size": "M"})


def test_two_sizes_of_one_name_are_refused() -> None:
    twice = [Size(name="L", args={}, parameters=1), Size(name="M", published="L", args={}, parameters=1)]
    with pytest.raises(ConfigError, match="'mine': two sizes share a name: L"):
        registry.register("mine", kind="generator", paper="", tiny={}, sizes=twice)


def test_compute_is_six_flops_a_parameter_and_token() -> None:
    train = Training(settings=TrainSettings(batch=4, epochs=5), images=8)
    size = Size(name="L", args={}, parameters=100, layout=grid(2, 8), training=train)
    assert size.flops == 6 * 100 * 4 * 40
    assert Size(name="L", args={}, parameters=None, layout=grid(2, 8), training=train).flops is None
    unsaid = Training(settings=TrainSettings(batch=4, epochs=5), images=8, unknown=("epochs",))
    assert Size(name="L", args={}, parameters=100, layout=grid(2, 8), training=unsaid).flops is None


def test_the_spec_of_a_size_carries_what_it_was_published_for() -> None:
    spec = spec_of(registry.get("var"), registry.get("var").size("d36"))
    assert spec.given["layout"]["grids"][-1] == (32, 32)
    assert spec.given["tokenizer"]["given"]["signal"]["shape"] == [512, 512]


def test_sizes_draw_as_published() -> None:
    def sampler(name: str, size: str) -> Sampler:
        return cast(GroupGenerator.Config, registry.get(name).config({"size": size})).sampler

    assert [(made.guidance, made.top_k) for made in (sampler("hmar", "d24"), sampler("hmar", "d30"))] == [
        (Linear(value=2.1), 900),
        (Linear(value=1.6), 650),
    ]
    assert (sampler("ibq_ar", "L").guidance, sampler("ibq_ar", "L").temperature) == (Constant(value=1.0), Constant(value=1.0))
    assert sampler("halton_maskgit", "large-384").guidance == Constant(value=0.5)
