"""Sampling for people: what a reference means, and what is written."""

from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from stand_ins import build, world

from tokenloom.models.core.build import ModelSpec, load_model
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.protocols import Labels
from tokenloom.tasks.evaluation.sample import PLAN, open_model, sample_model
from tokenloom.tasks.modalities.image.served.draw import sample_images, to_uint8
from tokenloom.tasks.runtime.errors import ArtifactError
from tokenloom.tasks.serving.predict import open_pair, spread
from tokenloom.tasks.store.artifacts import Store
from tokenloom.tasks.training.checkpoint import Checkpoints


def draw(tmp_path: Path, model: str = "digits-var", name: str = "out.npz", **options):
    return sample_model(model, world().store, None, out=tmp_path / name, **options)


def test_npz_holds_images_and_labels_spread_evenly(tmp_path):
    document = draw(tmp_path, total=23, classes=[7, 3])
    with np.load(tmp_path / "out.npz") as arrays:
        assert arrays["images"].shape == (23, 32, 32, 1)
        assert arrays["images"].dtype == np.uint8
        assert np.bincount(arrays["labels"], minlength=10).tolist() == [0, 0, 0, 11, 0, 0, 0, 12, 0, 0]
    assert document["samples"] == 23
    assert document["model"].startswith("generator digits-var-")


def test_png_is_a_grid_of_one_row_a_class(tmp_path):
    from PIL import Image

    draw(tmp_path, total=6, classes=[0, 1, 2], name="out.png")
    with Image.open(tmp_path / "out.png") as image:
        assert image.mode == "RGB"
        assert image.size == (2 * (64 + 2) + 2, 3 * (64 + 2) + 2)  # 32 pixels doubled, 2 between


def test_a_class_with_fewer_samples_ends_in_white():
    from tokenloom.tasks.modalities.image.sampling import grid_by_class

    image = np.zeros((3, 32, 32, 1), np.uint8)
    sheet = grid_by_class(image, np.array([4, 4, 9]))
    assert sheet[10, 70].tolist() == [0, 0, 0]
    assert sheet[80, 10].tolist() == [0, 0, 0]
    assert sheet[80, 80].tolist() == [255, 255, 255]


def test_same_seed_same_samples_and_another_seed_others(tmp_path):
    images = []
    for name, seed in (("a.npz", 5), ("b.npz", 5), ("c.npz", 6)):
        draw(tmp_path, name=name, total=10, seed=seed)
        with np.load(tmp_path / name) as arrays:
            images.append(arrays["images"])
    np.testing.assert_array_equal(images[0], images[1])
    assert (images[0] != images[2]).any()


def test_guidance_changes_the_samples(tmp_path):
    images = []
    for guidance in (None, 1.5, 500.0):  # weights that are not trained hardly look at the class
        draw(tmp_path, total=20, guidance=guidance)
        with np.load(tmp_path / "out.npz") as arrays:
            images.append(arrays["images"])
    np.testing.assert_array_equal(images[0], images[1])  # the recipe's own is 1.5
    assert (images[1] != images[2]).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": [3, 10]}, r"class_id 10: .* 0 to 9"),
        ({"name": "out.jpg"}, r"out\.jpg.*FILE\.png.*FILE\.npz"),
        ({"model": "nothing"}, "'nothing' is not in the store"),
        ({"total": 0}, "at least one"),
        ({"guidance": -1.0}, "guidance"),
        ({"model": "models:/digits-var@champion"}, "tracking server"),
    ],
)
def test_bad_requests_are_one_clear_error(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        draw(tmp_path, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["generator", "evaluation", "fingerprint", "prefix"])
def test_all_references_mean_the_same_generator(kind):
    store, evaluation = world().store, world().var
    generator = store.record(evaluation).inputs["generator"]
    reference = {"generator": generator.id, "evaluation": evaluation.id, "fingerprint": generator.fingerprint, "prefix": generator.id[:-4]}[
        kind
    ]
    pair, title = open_model(reference, store)
    assert title == f"generator {generator.id}"
    assert pair.classes == tuple("0123456789")


def test_a_dataset_cannot_be_sampled():
    with pytest.raises(ConfigError, match=r"dataset digits-.* cannot be sampled"):
        open_model(world().dataset.id, world().store)


def test_a_run_is_sampled_under_its_own_settings(tmp_path):
    from stand_ins import FEW, judge_inline

    from tokenloom.configs.schema import SampleConfig

    var = world().store.record(world().raster)
    inputs = [var.inputs[r] for r in ("generator", "tokenizer", "dataset", "features")]
    made = judge_inline(
        world().store, "hot", *inputs, config=FEW.model_copy(update={"metrics": ["fd"]}), sample=SampleConfig(guidance=3.5, top_k=4)
    )
    try:
        pair, _ = open_model(inputs[0].id, world().store)
        assert (pair.sampler.guidance.value, pair.sampler.top_k) == (3.5, 4)
        assert open_model(world().raster.id, world().store)[0].sampler.guidance.value != 3.5
    finally:
        world().store.storage.delete(made.folder)


def test_a_sample_depends_neither_on_its_batch_nor_on_the_shards():
    var = world().store.record(world().var)
    folders = [world().store.fetch(var.inputs[role]) for role in ("generator", "tokenizer")]
    pair = open_pair(*folders, classes=[])
    labels = spread(12, 10)
    whole = sample_images(pair.generator, pair.tokenizer, labels, pair.sampler, seed=3)
    parts = [
        sample_images(pair.generator, pair.tokenizer, labels[at : at + size], pair.sampler, seed=3, start=at)
        for at, size in ((0, 1), (1, 5), (6, 6))
    ]
    # Kernels may sum in another order for another number of rows: the last bit of a byte, not another token.
    assert int(np.abs(np.concatenate(parts).astype(int) - whole.astype(int)).max()) <= 1
    assert (whole != sample_images(pair.generator, pair.tokenizer, labels, pair.sampler, seed=4)).any()
    draws = SampleDraws.of(3, 0, 12)
    with torch.no_grad():
        expected = pair.tokenizer.decode(pair.generator.generate(Labels(torch.from_numpy(labels)), pair.sampler, draws))
    np.testing.assert_array_equal(whole, to_uint8(expected))


def in_training(store: Store, tmp_path: Path) -> tuple[Store, str, torch.nn.Module]:
    """A generator with a checkpoint and no record, as training leaves it half way."""
    generator = world().store.record(world().var).inputs["generator"]
    spec = ModelSpec.from_dict(json.loads((store.fetch(generator) / "model.json").read_text()))
    model, folder = build(spec, seed=7), "generator/running-0123456789ab"
    plan = {
        "spec": spec.to_dict(),
        "tokenizer": world().store.record(world().var).inputs["tokenizer"].to_dict(),
        "classes": list("0123456789"),
        "sample": {"guidance": 3.0},
    }
    store.storage.write(f"{folder}/{PLAN}", json.dumps(plan).encode())
    state = {f"model.{n}": t for n, t in model.state_dict().items()}
    ema = {f"ema.main.{n}": p.detach() + 1 for n, p in model.named_parameters()}
    Checkpoints(store.storage, folder, "0123456789ab", tmp_path / "scratch").save(40, state | ema, world=1)
    return store, folder, model


def test_a_run_still_training_is_sampled_from_its_newest_checkpoint(tmp_path):
    store, folder, model = in_training(world().store, tmp_path)
    try:
        pair, title = open_model("running", store)
        assert title == f"{folder} at step 40 (still training)"
        assert pair.sampler.guidance.value == 3.0  # as the run samples
        got = dict(pair.generator.named_parameters())
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(got[name], parameter + 1)  # the average, as a finished run saves it
        draw(tmp_path, "running", total=3)
        with np.load(tmp_path / "out.npz") as arrays:
            assert len(arrays["images"]) == 3
    finally:
        store.storage.delete(folder)


def test_a_run_whose_checkpoint_is_damaged_says_so(tmp_path):
    store, folder, _ = in_training(world().store, tmp_path)
    path = f"{folder}/checkpoints/step-0000040/state.safetensors"
    try:
        store.storage.write(path, b"x" * store.storage.size(path))
        with pytest.raises(ArtifactError, match="no whole checkpoint yet"):
            open_model("running", store)
    finally:
        store.storage.delete(folder)


def test_generator_and_tokenizer_that_do_not_belong_together_are_refused():
    from tokenloom.models.core.protocols import LayoutError

    store = world().store
    generator = store.fetch(store.record(world().var).inputs["generator"])
    tokenizer = store.fetch(store.record(world().raster).inputs["tokenizer"])
    with pytest.raises(LayoutError, match="grids"):
        open_pair(generator, tokenizer, classes=[])


def test_progress_is_reported(tmp_path):
    report = mock.Mock()
    draw(tmp_path, total=5, report=report)
    assert report.call_args_list[-1].args[:3] == ("sample", 5, 5)


def test_models_load_in_eval_mode():
    store = world().store
    assert not load_model(store.fetch(store.record(world().var).inputs["generator"]))[0].training
