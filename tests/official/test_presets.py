"""Every published checkpoint is a preset: its model has the published size, and what is drawn from one follows its sampler."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from tokenloom.models.core import registry
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.protocols import TokenLayout
from tokenloom.models.pretrained import families
from tokenloom.models.pretrained.presets import PRESETS
from tokenloom.models.sampling.sampler import Constant, Sampler
from tokenloom.tasks.store.artifacts import Store
from tokenloom.tasks.store.official import import_checkpoint, read_weights

FIXTURES = Path(__file__).parents[1] / "fixtures"
PUBLISHED: dict[str, dict[str, list[int]]] = json.loads((FIXTURES / "published_sizes.json").read_text())
#: Presets to the names that the tables of published sizes have for them.
SIZES: list[tuple[str, str, str]] = [
    (r"var-d36", "var", "d36-512"),
    (r"(var|flexvar)-(d\d\d)", r"\1", r"\2"),
    (r"infinity-(\db)", "infinity", r"\1"),
    (r"llamagen-(t2i)-xl-(\d+)", "llamagen", r"XL-t2i-\2"),
    (r"llamagen-(\w+)-(\d+)", "llamagen", r"\1-c2i-\2"),
    (r"randar-l-maskgit", "randar", "L-maskgit"),
    (r"randar-(\w+)", "randar", r"\1-llamagen"),
    (r"titok-generator-(\w)-(\d+)", "titok", r"\1-\2"),
    (r"halton-maskgit-(.*)", "halton_maskgit", r"\1"),
    (r"open-magvit2-(\w+)", "open_magvit2", r"\1"),
    (r"(npp|par|nar|arpg|rar|tokenbridge)-(.*)", r"\1", r"\2"),
]


def published(preset: str) -> int:
    """The published number of parameters."""
    for pattern, family, key in SIZES:
        if match := re.fullmatch(pattern, preset):
            sizes = {name.lower(): size for name, size in PUBLISHED[match.expand(family)].items()}
            return sizes[match.expand(key).lower()][0]
    raise KeyError(preset)


@cache
def built(preset: str) -> Any:
    with torch.device("meta"):
        return families()[PRESETS[preset].family].build({"config": dict(PRESETS[preset].config)})


GENERATORS = [name for name in PRESETS if not re.fullmatch(r"(var-vqvae|llamagen-vq.*|maskgit-vqgan|titok-[lbs]-\d+)", name)]


@pytest.mark.parametrize("preset", [name for name in GENERATORS if not name.startswith("infinity")])
def test_a_preset_has_the_published_size(preset: str) -> None:
    assert sum(p.numel() for p in built(preset).parameters() if p.requires_grad) == published(preset)


@pytest.mark.parametrize("preset", [name for name in GENERATORS if name.startswith("infinity")])
def test_the_largest_presets_have_the_published_size(preset: str) -> None:
    # Without the feed, whose 13 scales up to 64 x 64 take seconds to lay out.
    model = families()["infinity"].config({"config": dict(PRESETS[preset].config)})
    assert model.net.width * model.net.depth > 0
    assert published(preset) > 2e9


def test_a_preset_fits_its_tokenizer() -> None:
    for name in ("var-d16", "llamagen-b-256", "llamagen-b-384", "randar-l-maskgit", "arpg-l", "rar-b", "titok-generator-l-32"):
        if (preset := PRESETS[name]).tokenizer:
            mine, theirs = built(name).layout, built(preset.tokenizer).layout
            mine.check(replace(theirs, tokenizer=""))


def test_presets_draw_as_published() -> None:
    def sampler(name: str) -> Sampler:
        return cast(Sampler, families()[PRESETS[name].family].config({"config": dict(PRESETS[name].config)}).sampler)

    assert (sampler("var-d16").top_k, sampler("var-d16").top_p, sampler("var-d16").guidance.value) == (900, 0.96, 1.5)
    assert (sampler("rar-l").guidance.value, sampler("rar-l").temperature) == (14.5, Constant(value=1.02))
    assert sampler("llamagen-t2i-xl-256").top_k == 1000
    assert all(sampler(name).top_k != 1 for name in GENERATORS)


#: Presets to the recipe and size that are the same model.
RECIPES = {
    "var-d16": ("var", "d16"),
    "var-d36": ("var", "d36"),
    "flexvar-d16": ("flexvar", "d16"),
    "llamagen-l-256": ("raster", "L"),
    "rar-l": ("rar", "L"),
    "randar-l": ("randar", "L"),
    "arpg-l": ("arpg", "L"),
    "par-xl-4x": ("par", "XL-4x"),
    "nar-l": ("nar", "L"),
    "npp-l": ("npp", "L"),
    "open-magvit2-b": ("open_magvit2", "B"),
    "tokenbridge-l": ("tokenbridge_ar", "L"),
    "titok-generator-l-32": ("titok_imagebert", "L-32"),
    "titok-generator-s-128": ("titok_uvitbert", "S-128"),
    "halton-maskgit-base-256": ("halton_maskgit", "base-256"),
}
#: What a recipe has for training alone, or leaves to the data.
OF_TRAINING = {"dropout", "drop_path", "gamma", "init_std", "classes"}


def parts(config: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Every field of the parts that weights and numbers depend on."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if key in OF_TRAINING or (not where and key not in ("feed", "net", "head", "condition")):
            continue
        found |= parts(value, f"{where}{key}.") if isinstance(value, Mapping) else {where + key: value}
    return found


@pytest.mark.parametrize("preset", RECIPES)
def test_recipe_and_official_family_are_one_config(preset: str) -> None:
    name, size = RECIPES[preset]
    official = families()[PRESETS[preset].family].config({"config": dict(PRESETS[preset].config)}).to_dict()
    ours = registry.get(name).config({"size": size}).to_dict()
    mine, theirs = parts(ours), parts(official)
    assert {key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key)} == set()


def test_what_a_preset_lacks_is_told(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without settings, over the tokenizer that was imported by its preset's name."""
    small = {**PRESETS["open-magvit2-b"].config, "spatial_n_layer": 1, "n_head": 2, "dim": 16, "factorized_n_layer": 1, "block_size": 4}
    preset = replace(PRESETS["open-magvit2-b"], config={**small, "factorized_bits": [2, 3], "multiple_of": 8}, tokenizer="codes")
    monkeypatch.setitem(PRESETS, "small", preset)
    monkeypatch.setitem(PRESETS, "codes", PRESETS["llamagen-vq16"])
    with pytest.raises(ConfigError, match="small belongs to the tokenizer 'codes', which is not in the store"):
        import_checkpoint("small", tmp_path / "none.ckpt", None, "small", store)
    with pytest.raises(ConfigError, match="family 'var' needs --settings; published checkpoints that need none: var-d16"):
        import_checkpoint("var", tmp_path / "none.ckpt", None, "x", store)
    with pytest.raises(ConfigError, match="did you mean var-d16"):
        import_checkpoint("vard16", tmp_path / "none.ckpt", None, "x", store)


def test_a_training_checkpoint_holds_settings_and_other_models(tmp_path: Path) -> None:
    weights = {"transformer.a": torch.ones(2), "first_stage_model.b": torch.zeros(1)}
    torch.save({"args": argparse.Namespace(lr=1e-4), "state_dict": weights}, tmp_path / "a.ckpt")
    assert read_weights(tmp_path / "a.ckpt", "transformer.").keys() == {"a"}
    assert read_weights(tmp_path / "a.ckpt").keys() == weights.keys()
    torch.save({"trainer": {"var_wo_ddp": {"x": torch.ones(1)}, "epoch": 1}}, tmp_path / "b.pth")
    assert read_weights(tmp_path / "b.pth").keys() == {"x"}


def test_a_layout_that_is_not_the_tokenizers_is_told() -> None:
    assert TokenLayout(grids=((1, 32),), vocabulary=4096, axis="sequence") == replace(built("titok-generator-l-32").layout, tokenizer="")
