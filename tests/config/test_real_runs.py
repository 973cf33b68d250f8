"""Run files at real size: they load, their models are the published ones, and they can be planned before the data is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenloom.configs.load import load_run, shipped
from tokenloom.flows import planning
from tokenloom.models.core import registry
from tokenloom.models.core.build import ModelSpec, parameters
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.protocols import TokenLayout
from tokenloom.tasks.runtime.checks import check_tokenizer
from tokenloom.tasks.store.artifacts import Store

REAL = sorted(name for name in shipped("runs") if name.startswith("imagenet"))


def test_real_sizes_ship() -> None:
    assert {"imagenet256_var_d16", "imagenet256_llamagen_l", "imagenet256_rar_b"} <= set(REAL)
    assert {"imagenet256_titok_l32", "imagenet256_var_vqvae"} <= set(REAL)


@pytest.mark.parametrize("name", REAL)
def test_a_real_run_is_the_published_model_and_plans_without_data(name: str, tmp_path: Path) -> None:
    config = load_run(name)
    assert config.data.classes == 1000
    tokenizer, layout = check_tokenizer(config, 1000)
    section = config.generator or config.codec
    recipe = registry.get(section.recipe or "")
    size = recipe.size(section.args["size"])
    assert config.data.size == size.image
    assert section.set == {}
    if config.generator is None:
        assert TokenLayout.from_dict(layout).length == size.tokens
        assert section.args == {"size": size.name}, "test_sizes.py holds its number of parameters"
    else:
        assert size.layout is not None
        assert TokenLayout.from_dict(layout | {"tokenizer": ""}) == size.layout
        given = {"layout": layout, "classes": 1000, "tokenizer": tokenizer.to_dict()}
        assert parameters(ModelSpec("generator", recipe.name, section.args, {}, given).shaped()) == size.parameters
        trained = planning.published_trainings(config)[-1]
        assert trained["section"] == "generator"
        assert trained["published steps"] == config.generator.train.on(1_281_167).steps > 0
    store = Store(str(tmp_path / "store"), tmp_path)
    planned = planning.plan(config, store)
    planning.check(config, store, planned)
    assert [one.status for one in planned][:2] == ["run", "unknown"]
    assert "until then the run is checked for data.classes=1000" in planned[0].reason


def test_the_number_of_classes_is_held_to_the_data(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"), tmp_path)
    config = load_run("smoke_var", ["data.classes=7"])
    with pytest.raises(ConfigError, match=r"data\.classes=7: digits has 10 classes"):
        planning.check(config, store, planning.plan(config, store))
    absent = load_run("smoke_var", ["data.source=folder:nowhere"])
    with pytest.raises(ConfigError, match="nowhere: no such folder"):
        planning.plan(absent, store)
