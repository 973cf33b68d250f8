"""The feature network: trained once for a dataset, deterministic, good enough to judge by."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from stand_ins import digits, new_store, quick_features, world, write_dataset

from tokenloom.configs.schema import EvaluateConfig
from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.modalities.image.judging import features, recognition
from tokenloom.tasks.runtime.errors import StepError


def test_classifier_learns_digits_and_does_not_depend_on_threads():
    image, label = digits()
    few = features.Protocol(steps=120)
    threads = torch.get_num_threads()
    one = features.train_classifier(image[:1500], label[:1500], 10, few)
    torch.set_num_threads(2)
    try:
        two = features.train_classifier(image[:1500], label[:1500], 10, few)
        assert torch.get_num_threads() == 2  # given back
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values()))
    _, probability = features.classify(one, image[4000:4500])
    assert (probability.argmax(1) == label[4000:4500]).mean() > 0.85


def test_features_are_those_before_the_logits():
    network = features.Classifier(1, 10).eval()
    image = digits()[0][:5]
    feature, probability = features.classify(network, image)
    logits = network.logits(torch.from_numpy(feature).float())
    assert feature.shape == (5, 64)
    np.testing.assert_allclose(logits.softmax(1).detach().numpy(), probability, atol=1e-6)


def test_large_images_are_averaged_down():
    network = features.Classifier(3, 4)
    small = torch.rand(2, 3, 64, 64)
    large = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.allclose(network(small)[0], network(large)[0], atol=1e-5)


def test_step_is_cached_and_keyed_by_dataset_and_protocol_alone(tmp_path):
    store, (image, label) = new_store(tmp_path), digits()
    data = write_dataset(store, image[:100], label[:100], held_out=20)
    other = write_dataset(store, image[:100], label[:100], held_out=30)
    plan = features.plan_features(data, EvaluateConfig(), store)
    assert plan.fingerprint == features.plan_features(data, EvaluateConfig(samples=50, seed=3, metrics=["fd"]), store).fingerprint
    assert plan.fingerprint != features.plan_features(other, EvaluateConfig(), store).fingerprint
    first = features.features(quick_features(data), store)
    again = features.features(quick_features(data), store)
    assert (first.status, again.status) == ("ran", "cached")
    network = features.load_classifier(store.fetch(first.artifact))
    feature, _ = features.classify(network, image[80:100])
    assert np.isfinite(feature).all()
    assert first.metrics["accuracy"] == pytest.approx((features.classify(network, image[80:100])[1].argmax(1) == label[80:100]).mean())


@pytest.mark.parametrize("name", ["inception", "inception.safetensors"])
def test_weights_that_are_not_in_the_store_are_refused_before_work(name):
    with pytest.raises(ConfigError, match=rf"{name}'.*no such weights.*auto.*tokenloom import inception"):
        features.plan_features(world().dataset, EvaluateConfig(features=name), world().store)


def test_an_empty_training_split_is_one_clear_error(tmp_path):
    store, (image, label) = new_store(tmp_path), digits()
    data = write_dataset(store, image[:10], label[:10], held_out=9)
    with pytest.raises(StepError, match="1 training images"):
        features.features(quick_features(data), store)


def test_read_images_takes_splits_limits_and_prepares_by_block():
    store, data = world().store, world().dataset
    image, label = digits()
    held, held_label = features.read_images(store, data, ["validation", "test"])
    np.testing.assert_array_equal(held, image[300:400])
    np.testing.assert_array_equal(held_label, label[300:400])
    few, few_label = features.read_images(store, data, ["train"], 4, lambda x: x[:, ::2])
    np.testing.assert_array_equal(few, image[[0, 100, 199, 299]][:, ::2])
    np.testing.assert_array_equal(few_label, label[[0, 100, 199, 299]])
    assert len(features.read_images(store, data, ["test"])[0]) == 0


def test_bytes_and_floats_are_inverse():
    from tokenloom.tasks.modalities.image.served.draw import to_uint8

    every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    np.testing.assert_array_equal(to_uint8(features.to_float(every)), every)


def test_the_machine_recognises_held_out_digits():
    image, label = digits()
    machine = recognition.train(image[:4000], label[:4000])
    assert machine.straighten
    assert machine.accuracy(image[4000:], label[4000:]) >= 0.975


def test_recognition_of_colour_images_and_of_blank_ones():
    rng = np.random.default_rng(0)
    label = np.arange(60) % 3
    image = np.zeros((60, 8, 8, 3), np.uint8)
    image[np.arange(60), :, :, label] = rng.integers(100, 255, (60, 8, 8))
    machine = recognition.train(image, label)
    assert not machine.straighten
    assert machine.accuracy(image, label) == 1.0
    assert recognition._upright(np.zeros((8, 8))).sum() == 0


def test_many_images_lie_in_files_that_go_with_them(tmp_path, monkeypatch):
    store, (image, label) = new_store(tmp_path), digits()
    dataset = write_dataset(store, image[:40], label[:40], held_out=10)
    in_memory, _ = features.read_images(store, dataset, ["train", "validation"])
    monkeypatch.setattr("tokenloom.tasks.data.arrays._IN_MEMORY", 0)
    mapped, labels = features.read_images(store, dataset, ["train", "validation"])
    np.testing.assert_array_equal(mapped, in_memory)
    np.testing.assert_array_equal(labels, label[:40])
    assert isinstance(mapped.base, np.memmap)
    assert not [path for path in (store.root / "scratch").rglob("*") if path.is_file()], "the file has no name"
