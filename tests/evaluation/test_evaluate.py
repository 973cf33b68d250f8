"""Evaluation: the numbers are those of the metrics, the protocol says all, and nothing is done twice."""

from __future__ import annotations

import json
import math
from unittest import mock

import numpy as np
import pytest
import torch
from stand_ins import (
    FEW,
    copy_store,
    digits,
    draw_here,
    judge_inline,
    new_store,
    quick_features,
    world,
    write_dataset,
    write_generator,
    write_tokenizer,
)

from tokenloom.configs.schema import ClusterConfig, EvaluateConfig, SampleConfig
from tokenloom.models.core.build import load_model
from tokenloom.models.core.protocols import Batch, Labels
from tokenloom.models.core.settings import ExecutionSettings
from tokenloom.tasks.evaluation import metrics
from tokenloom.tasks.evaluation.evaluate import evaluate, plan_evaluate
from tokenloom.tasks.modalities.image.judging import features, reconstruction, sampling_actor, scores
from tokenloom.tasks.modalities.image.judging.network import load as load_network
from tokenloom.tasks.runtime.errors import StepError
from tokenloom.tasks.serving.request import Request


@pytest.fixture
def judged():
    return world().store.record(world().var)


def test_every_number_and_picture_is_there(judged):
    expected = {
        "fd_classifier", "kid_classifier", "is_classifier", "precision", "recall", "density", "coverage", "recognition",
        "recognition_ceiling", "memorisation_ratio", "copies", "nll_bits_per_image", "nll_bits_per_dim", "rfd_classifier", "psnr",
        "ssim", "codebook_use", "codebook_perplexity", "codebook_use_scale_0", "images_per_second", "parameters",
    }  # fmt: skip
    assert expected <= set(judged.metrics)
    assert all(np.isfinite(v) for v in judged.metrics.values())
    names = {f["path"].rsplit("/", 1)[1] for f in judged.files}
    assert names >= {"samples.png", "nearest.png", "reconstructions.png", "codebook.png", "curves.png", "samples.npz", "report.html"}
    assert not [p for p, _ in world().store.storage.list(f"{judged.artifact.folder}/parts")]


def test_samples_are_even_over_the_classes_and_of_the_data_s_size(judged):
    with np.load(world().store.fetch(judged.artifact) / "samples.npz") as arrays:
        assert arrays["images"].shape == (60, 32, 32, 1)
        assert arrays["images"].dtype == np.uint8
        np.testing.assert_array_equal(np.bincount(arrays["labels"]), np.full(10, 6))


def test_numbers_are_those_of_the_samples(judged):
    store = world().store
    with np.load(store.fetch(judged.artifact) / "samples.npz") as arrays:
        sample = arrays["images"]
    held, _ = features.read_images(store, world().dataset, ["validation"])
    train, _ = features.read_images(store, world().dataset, ["train"])
    network = features.load_classifier(store.fetch(world().features))
    real, fake = (metrics.moments(features.classify(network, x)[0]) for x in (held, sample))
    assert judged.metrics["fd_classifier"] == pytest.approx(metrics.frechet_distance(*real, *fake))
    flat = [x.reshape(len(x), -1) / 255 for x in (sample, held, train)]
    assert judged.metrics["memorisation_ratio"] == pytest.approx(metrics.memorisation_ratio(*flat))


def test_likelihood_is_that_of_the_generator(judged):
    store = world().store
    generator = load_model(store.fetch(judged.inputs["generator"]))[0]
    tokenizer = load_model(store.fetch(judged.inputs["tokenizer"]))[0]
    held, label = features.read_images(store, world().dataset, ["validation"])
    with torch.no_grad():
        tokens = tokenizer.encode(features.to_float(held))
        bits = -generator.log_prob(Batch(tokens=tokens, conditions=Labels(torch.from_numpy(label)))).mean() / math.log(2)
    assert judged.metrics["nll_bits_per_image"] == pytest.approx(float(bits), rel=1e-5)
    assert judged.metrics["nll_bits_per_dim"] == pytest.approx(float(bits) / 1024, rel=1e-5)


def test_the_protocol_says_what_a_number_depends_on(judged):
    protocol = judged.notes["protocol"]
    assert protocol["reference"]["images"] == 100
    assert protocol["reference"]["dataset"] == world().dataset.fingerprint
    assert protocol["image"] == {"size": 32, "channels": 1, "fit": "pad"}
    assert protocol["samples"] == 60
    assert protocol["class_balance"] == {"rule": "even", "least": 6, "most": 6}
    assert protocol["manifold"] == {"neighbours": 3, "components": 10, "pixels": 32, "real": {"held_out": 60, "train": 0}}
    assert protocol["features"]["artifact"] == world().features.fingerprint
    assert judged.notes["sampler"]["guidance"]["value"] == 1.5  # the recipe's own
    stored = json.loads((world().store.fetch(judged.artifact) / "protocol.json").read_text())
    assert stored["protocol"] == protocol


def test_the_report_needs_no_other_file(judged):
    page = (world().store.fetch(judged.artifact) / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 5
    assert "http" not in page.replace("<!doctype html>", "").split("<pre>")[0]
    assert judged.inputs["generator"].id in page
    assert judged.notes["protocol"]["reference"]["sha256"] in page


def test_real_images_as_samples_get_the_best_numbers():
    image, label = digits()
    network = load_network(world().store.fetch(world().features), "tensorflow")
    config = EvaluateConfig(samples=500, metrics=FEW.metrics)
    train = image[1000:3000], label[1000:3000]
    real = scores.sample_scores(scores.Judged(network, image[:500], label[:500], image[500:1000], label[500:1000], *train), config)
    copies = scores.sample_scores(scores.Judged(network, train[0][:500], train[1][:500], image[500:1000], label[500:1000], *train), config)
    assert real["precision"] > 0.85
    assert real["recall"] > 0.75
    assert real["recognition"] > 0.93
    assert real["memorisation_ratio"] == pytest.approx(1, abs=0.05)
    assert (real["copies"], copies["copies"]) == (0.0, 1.0)
    assert copies["memorisation_ratio"] == 0.0


def test_too_few_held_out_images_are_filled_up_with_training_images():
    def blank(rows: int, value: int) -> tuple[np.ndarray, np.ndarray]:
        return np.full((rows, 4, 4, 1), value, np.uint8), np.zeros(rows, np.int64)

    small = scores.Judged(mock.Mock(), *blank(1, 0), *blank(3, 1), *blank(9, 2))
    real, counts = scores.manifold_reference(small, 8)
    assert counts == {"held_out": 3, "train": 5}
    assert real.reshape(8, -1).max(1).tolist() == [1, 1, 1, 2, 2, 2, 2, 2]
    assert scores.manifold_reference(small, 2)[1] == {"held_out": 2, "train": 0}


def test_codebook_use_is_counted_by_scale(judged):
    store = world().store
    tokenizer = load_model(store.fetch(judged.inputs["tokenizer"]))[0]
    tokens = [tokenizer.encode(features.to_float(digits()[0][300:350])), tokenizer.encode(features.to_float(digits()[0][350:400]))]
    count, names = reconstruction.code_counts(tokens)
    assert names == ["1x1", "2x2", "4x4"]
    assert count.sum(axis=1).tolist() == [100, 400, 1600]
    ids = torch.cat([t.ids for t in tokens])
    np.testing.assert_array_equal(count[1], np.bincount(ids[:, 1:5].flatten().numpy(), minlength=16))


def test_large_images_are_compared_at_fewer_pixels():
    image = np.repeat(np.repeat(np.arange(64 * 64, dtype=np.int64).reshape(1, 64, 64, 1) % 251, 2, 1), 2, 2).astype(np.uint8)
    small = scores.small(image, 64)
    np.testing.assert_array_equal(small, image[:, ::2, ::2])
    assert scores.small(image[:, :20, :20]) is not None
    assert scores.small(image[:, :20, :20]).shape == (1, 20, 20, 1)


def test_the_plan_depends_on_sampling_and_protocol():
    store, var = world().store, world().store.record(world().var)
    inputs = [var.inputs[role] for role in ("generator", "tokenizer", "dataset", "features")]

    def fingerprint(sample: SampleConfig, config: EvaluateConfig) -> str:
        return plan_evaluate("x", *inputs, sample, config, store).fingerprint

    assert fingerprint(SampleConfig(), FEW) == world().var.fingerprint  # the name does not count
    assert fingerprint(SampleConfig(guidance=2.0), FEW) != world().var.fingerprint
    assert fingerprint(SampleConfig(), FEW.model_copy(update={"neighbours": 4})) != world().var.fingerprint


def test_an_interrupted_evaluation_draws_only_what_is_missing(tmp_path):
    store, (image, label) = new_store(tmp_path), digits()
    data = write_dataset(store, image[:120], label[:120], held_out=40)
    judge = features.features(quick_features(data), store).artifact
    codec = write_tokenizer(store, data)
    step = plan_evaluate("x", write_generator(store, data, codec), codec, data, judge, SampleConfig(), FEW, store)
    drawn: list[list[int]] = []

    def dies(todo, *rest):
        drawn.append(list(todo))
        for i, result in enumerate(draw_here(todo, *rest)):
            if i == 1 and len(drawn) == 1:
                raise KeyboardInterrupt
            yield result

    with mock.patch("tokenloom.tasks.modalities.image.judging.sampling_actor._finished", dies):
        with pytest.raises(KeyboardInterrupt):
            evaluate(step, store, ClusterConfig())
        resumed = evaluate(step, store, ClusterConfig())
    assert drawn == [[0, 1, 2], [1, 2]]
    whole = judge_inline(
        copy_store(store, tmp_path / "other", "evaluation"),
        "x",
        *[step.inputs[r] for r in ("generator", "tokenizer", "dataset", "features")],
    )
    with np.load(store.fetch(resumed.artifact) / "samples.npz") as a, np.load(f"{whole.uri}/samples.npz") as b:
        np.testing.assert_array_equal(a["images"], b["images"])


def test_a_tokenizer_alone_is_judged(tmp_path):
    var = world().store.record(world().var)
    made = judge_inline(world().store, "codec-alone", None, *[var.inputs[r] for r in ("tokenizer", "dataset", "features")])
    record = world().store.record(made)
    assert record.metrics["psnr"] == pytest.approx(var.metrics["psnr"])
    assert "fd_classifier" not in record.metrics
    assert "samples" not in record.notes["protocol"]


def test_a_handful_of_held_out_images_is_refused(tmp_path):
    store, (image, label) = new_store(tmp_path), digits()
    data = write_dataset(store, image[:60], label[:60], held_out=3)
    judge = features.features(quick_features(data), store).artifact
    codec = write_tokenizer(store, data)
    with pytest.raises(StepError, match=r"3 held-out images.*data\.validation"):
        judge_inline(store, "x", write_generator(store, data, codec), codec, data, judge)


@pytest.mark.ray
@pytest.mark.parametrize("actors", [2, pytest.param(1, marks=pytest.mark.long)])
def test_actors_draw_the_same_samples_however_many_there_are(ray_session, actors):
    step_inputs = [world().store.record(world().var).inputs[r] for r in ("generator", "tokenizer", "dataset", "features")]
    store = world().store
    step = plan_evaluate("x", *step_inputs, SampleConfig(), FEW, store)
    request = Request(np.arange(60) % 10)
    protocol = FEW.model_copy(update={"shard": 25, "seed": 0})
    here = {i: drawn["image"] for i, drawn, *_ in draw_here([0, 1, 2], request, protocol, step, store, ClusterConfig())}
    cluster = ClusterConfig(extract_actors=actors, execution=ExecutionSettings(workers=1, device="cpu"))
    there = {i: drawn["image"] for i, drawn, *_ in sampling_actor._finished([0, 1, 2], request, protocol, step, store, cluster)}
    assert sorted(there) == [0, 1, 2]
    for i in there:
        np.testing.assert_array_equal(there[i], here[i])


def test_an_impossible_protocol_is_refused_before_work():
    from tokenloom.models.core.config import ConfigError

    inputs = [world().store.record(world().var).inputs[r] for r in ("generator", "tokenizer", "dataset", "features")]
    with pytest.raises(ConfigError, match=r"evaluate\.neighbours=60.*evaluate\.samples=60"):
        plan_evaluate("x", *inputs, SampleConfig(), FEW.model_copy(update={"neighbours": 60}), world().store)
