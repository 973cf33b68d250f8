"""Runs that take a generator as it is, imported or trained by another run: evaluated, registered, trained further."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from inline_runs import here_fixture, ran, scheduled  # noqa: F401
from PIL import Image
from toy_runs import complete, run, source_fixture, statuses  # noqa: F401

from tokenloom.configs.load import build
from tokenloom.configs.schema import RunConfig
from tokenloom.flows import planning
from tokenloom.models import pretrained
from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.evaluation.sample import open_model, sample_model
from tokenloom.tasks.store.artifacts import Artifact, Store
from tokenloom.tasks.store.lineage import lineage_of
from tokenloom.tasks.store.official import import_checkpoint

FIXTURES = Path(__file__).parents[1] / "fixtures" / "parity"
SMALL = {"depth": 1, "embed_dim": 16, "num_heads": 1, "num_classes": 3}


def imported(store: Store, folder: Path, **changes: Any) -> tuple[Artifact, Artifact]:
    """VAR's tokenizer of its fixture, and a small transformer of random weights on it, as official checkpoints."""
    codec = import_checkpoint("var_vqvae", FIXTURES / "var_vqvae.safetensors", FIXTURES / "var_vqvae.json", "vae", store).artifact
    made_for = json.loads((FIXTURES / "var_vqvae.json").read_text())["config"]
    official = json.loads((FIXTURES / "var.json").read_text())["config"]
    official |= {"vocab_size": made_for["vocab_size"], "Cvae": made_for["z_channels"], "patch_nums": made_for["v_patch_nums"]}
    family, info = pretrained.families()["var"], {"config": {**official, **SMALL, **changes}}
    torch.manual_seed(3)
    state = family.names(info).dump(dict(family.build(info).state_dict()))
    torch.save({k: v for k, v in state.items() if not k.startswith("state_vae/")}, folder / "var.pth")
    (folder / "var.json").write_text(json.dumps(info))
    return codec, import_checkpoint("var", folder / "var.pth", folder / "var.json", "small-var", store, codec.id).artifact


@pytest.fixture(name="pictures")
def pictures_fixture(tmp_path: Path) -> Path:
    """Three classes of noisy 24 x 24 images in colour."""
    for index in range(36):
        target = tmp_path / "pictures" / "abc"[index % 3] / f"{index:03d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(index).integers(0, 100, (24, 24, 3)) + 50 * (index % 3)
        Image.fromarray(noise.astype(np.uint8)).save(target)
    return tmp_path / "pictures"


def using(pictures: Path, reference: str, *sets: str, **sections: Any) -> RunConfig:
    document = {
        "name": "as-it-is",
        "data": {"source": f"folder:{pictures}", "size": 24, "channels": 3, "validation": 0.3, "shard_rows": 16},
        "generator": {"use": reference},
        "evaluate": {"samples": 12, "neighbours": 1, "components": 2, "metrics": ["fd", "nll", "reconstruction"]},
        **sections,
    }
    return build(RunConfig, document, sets, "test")


def refusal(config: RunConfig, store: Store) -> str:
    with pytest.raises(ConfigError) as caught:
        planning.check(config, store, planning.plan(config, store))
    return str(caught.value)


def test_a_run_on_an_imported_generator_trains_nothing(pictures: Path, store: Store, tmp_path: Path) -> None:
    codec, generator = imported(store, tmp_path)
    config = using(pictures, "small-var")
    planned = {one.name: one for one in planning.plan(config, store)}
    assert list(planned) == ["ingest", "train_tokenizer", "features", "train_generator", "evaluate", "register"]
    assert planned["train_generator"].artifact == generator
    assert planned["train_generator"].reason == "generator.use"
    planning.check(config, store, tuple(planned.values()))
    made = complete(config, store)
    assert (made["tokenizer"], made["generator"]) == (codec, generator)
    assert store.record(made["evaluation"]).inputs["generator"] == generator
    named = using(pictures, generator.id, tokenizer={"use": "vae"})
    assert set(statuses(named, store).values()) == {"cached"}
    further = using(pictures, "small-var", stages=[{"name": "tune", "train": {"steps": 2, "batch": 4}}])
    assert [name for name, status in statuses(further, store).items() if status != "cached"] == [
        "extract", "stage_tune", "evaluate", "register"
    ]  # fmt: skip
    planning.check(further, store, planning.plan(further, store))


def test_what_cannot_be_used_is_refused_before_work(pictures: Path, source: Path, store: Store, tmp_path: Path) -> None:
    imported(store, tmp_path)
    assert "generator.use: generator 'nobody' is not in the store" in refusal(using(pictures, "nobody"), store)
    assert "generator.use='small-var': made for shape 24x24, the data has 32x32" in refusal(
        using(pictures, "small-var", "data.size=32"), store
    )
    two = using(pictures, "small-var", f"data.source=folder:{source}")
    assert "conditioned on 3 classes, the data has 2: give the data that it was trained on" in refusal(two, store)
    assert "sample.steps" in refusal(using(pictures, "small-var", "sample.steps=3"), store)
    for wrong, message in (
        ({"generator": {"use": "small-var", "recipe": "var"}}, "either generator.recipe .* or generator.use"),
        ({"generator": {"use": "small-var", "args": {"depth": 2}}}, "generator.args goes with generator.recipe"),
        ({"generator": {"recipe": "var"}}, "generator.train is missing"),
        ({"tokenizer": {"recipe": "var_vq", "train": {"steps": 1}}}, "generator.use='small-var' brings its own"),
    ):
        with pytest.raises(ConfigError, match=message):
            using(pictures, "small-var", **wrong)


def test_the_tokenizer_that_is_named_has_to_be_the_generators(source: Path, store: Store) -> None:
    first = complete(run(source), store)
    other = complete(run(source, "tokenizer.train.seed=5", "name=other"), store)
    document = {"name": "x", "data": run(source).data.model_dump(mode="json"), "generator": {"use": first["generator"].id}}
    config = build(RunConfig, document | {"tokenizer": {"use": other["tokenizer"].id}}, (), "test")
    with pytest.raises(ConfigError, match=r"tokenizer\.use: other-.* is not the tokenizer of toy-.*leave tokenizer out"):
        planning.plan(config, store)


def test_an_imported_generator_is_sampled_by_name(store: Store, tmp_path: Path) -> None:
    imported(store, tmp_path)
    pair, _ = open_model("small-var", store)
    assert pair.classes == ("0", "1", "2")
    assert pair.sampler == pair.generator.sampler  # type: ignore[union-attr]
    sample_model("small-var", store, None, total=4, classes=[0, 2], out=tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as arrays:
        assert arrays["images"].shape == (4, 24, 24, 3)
        assert arrays["labels"].tolist() == [0, 2, 0, 2]


@pytest.mark.long
def test_a_used_generator_is_evaluated_registered_and_trained_further(pictures: Path, here: Store, tmp_path: Path) -> None:
    _, generator = imported(here, tmp_path)
    rows, _ = scheduled(using(pictures, "small-var"), here)
    assert ran(rows) == ["ingest", "features", "evaluate", "register"]
    version = here.records("registration")[0]
    assert version.inputs["generator"] == generator
    assert "as-it-is" in str(version.metrics["uri"])
    further = using(pictures, "small-var", stages=[{"name": "tune", "train": {"steps": 2, "batch": 4}}])
    rows, _ = scheduled(further, here)
    assert ran(rows) == ["extract", "stage_tune", "evaluate", "register"]
    tuned = here.resolve(rows["stage_tune"]["artifact"], "generator")
    assert generator in lineage_of(here, tuned)["ancestors"]
    assert here.record(tuned).notes["spec"]["recipe"] == "official/var"
