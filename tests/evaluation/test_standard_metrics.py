"""The field's own numbers: Inception's features and the metrics made of them, against torch-fidelity's (``inception_golden``)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from inception_golden import COUNT, FEW, FOLDER, SCORED, images, weights
from stand_ins import digits, new_store, write_dataset

from tokenloom.configs.schema import ClusterConfig
from tokenloom.models.core.config import ConfigError
from tokenloom.models.parts.nets.inception import Inception
from tokenloom.tasks.evaluation import metrics
from tokenloom.tasks.modalities.image.judging import feature_actor, inception
from tokenloom.tasks.modalities.image.judging.network import Standard, load
from tokenloom.tasks.modalities.image.judging.statistics import Statistics
from tokenloom.tasks.runtime.pool import Call
from tokenloom.tasks.store.artifacts import Store

GOLDEN = np.load(FOLDER / "torch_fidelity.npz")
NAMES = {"64": "64", "192": "192", "768": "768", "2048": "2048", "logits": "logits_unbiased"}


@pytest.fixture(scope="module")
def network() -> Inception:
    with torch.device("meta"):
        made = Inception()
    shapes = {name: list(value.shape) for name, value in made.state_dict().items()}
    made.load_state_dict({name: torch.from_numpy(value) for name, value in weights(shapes).items()}, assign=True)
    return made.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def checkpoint(network: Inception, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "pt_inception.pth"
    torch.save(network.state_dict(), path)
    return path


def seen(network: Inception, image: np.ndarray, *names: str, resize: str = "tensorflow") -> dict[str, np.ndarray]:
    return inception.features(network, image.transpose(0, 2, 3, 1), resize, names)  # type: ignore[arg-type]


@pytest.mark.parametrize(("key", "shape"), [("square", (0, FEW)), ("wide", (1, FEW, 24, 320))])
def test_every_feature_is_the_published_one(network: Inception, key: str, shape: tuple[int, ...]) -> None:
    found = seen(network, images(*shape)[:4], *NAMES)
    for name, theirs in NAMES.items():
        expected = GOLDEN[f"{key}/{theirs}"][:4]
        assert np.abs(found[name] - expected).max() <= 1e-4 * np.abs(expected).max(), name


def test_the_inception_score_of_the_published_order() -> None:
    p = np.random.default_rng(0).dirichlet(np.ones(5), 64)
    order = np.random.RandomState(metrics.PUBLISHED_SEED).permutation(64)
    parts = [p[order[64 * i // 10 : 64 * (i + 1) // 10]] for i in range(10)]
    expected = [np.exp((q * np.log(q / q.mean(0))).sum(1).mean()) for q in parts]
    assert Standard.score(None, p).mean == pytest.approx(np.mean(expected), rel=1e-12)  # type: ignore[arg-type]


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_metrics_are_equal_to_torch_fidelity_s(network: Inception) -> None:
    fake, real = (seen(network, images(which, COUNT), "64")["64"] for which in (0, 1))
    golden = {name.removeprefix("metric/"): float(GOLDEN[name]) for name in GOLDEN.files if name.startswith("metric/")}
    moments = []
    for feature in (fake, real):
        streamed = metrics.Moments()
        for start in range(0, COUNT, 500):
            streamed.add(feature[start : start + 500])
        moments.append(streamed.moments)
    assert metrics.frechet_distance(*moments[0], *moments[1]) == pytest.approx(golden["frechet_inception_distance"], rel=1e-4)
    kernel = Standard.kernel(None, real, fake, 0)  # type: ignore[arg-type]
    assert kernel.mean == pytest.approx(golden["kernel_inception_distance_mean"], rel=1e-4)
    assert kernel.deviation == pytest.approx(golden["kernel_inception_distance_std"], rel=1e-4)
    precision, recall = metrics.precision_recall(real, fake, 3)
    assert precision == pytest.approx(golden["precision"], rel=1e-4)
    assert recall == pytest.approx(golden["recall"], rel=1e-4)
    logits = seen(network, images(0, SCORED), "logits")["logits"]
    score = Standard.score(None, torch.from_numpy(logits).double().softmax(1).numpy())  # type: ignore[arg-type]
    assert score.mean == pytest.approx(golden["inception_score_mean"], rel=1e-4)
    assert score.deviation == pytest.approx(golden["inception_score_std"], rel=1e-4)


def test_streamed_moments_are_those_of_the_whole() -> None:
    x = 5 + np.random.default_rng(0).standard_normal((300, 7))
    streamed = metrics.Moments()
    for start in range(0, 300, 64):
        streamed.add(x[start : start + 64])
    for got, expected in zip(streamed.moments, metrics.moments(x), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-12)


class _Mean:
    """Stands for the network and its actors: the features of an image are its mean, and actors end in any order."""

    def __init__(self) -> None:
        self.shards = 0

    def features(self, _network: object, image: np.ndarray, _resize: str) -> dict[str, np.ndarray]:
        mean = image.reshape(len(image), -1).mean(axis=1, keepdims=True).astype(np.float32)
        return {"2048": mean, "logits": mean, "spatial": mean}

    def shared_out(
        self, actor: type, given: tuple[object, ...], calls: list[Call], *_: object, what: str, total: int
    ) -> Iterator[tuple[int, object]]:
        made = actor(*given)
        self.shards = total
        for call in reversed(calls):
            yield call.key, getattr(made, call.method)(*call.arguments)


def test_actors_tell_the_features_of_real_images_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, stand = new_store(tmp_path), _Mean()
    image, label = digits()
    dataset = write_dataset(here, image[:60], label[:60], held_out=20)
    monkeypatch.setattr(feature_actor, "shared_out", stand.shared_out)
    monkeypatch.setattr(inception, "load", lambda *_: None)
    monkeypatch.setattr(inception, "features", stand.features)
    monkeypatch.setattr(here.__class__, "fetch", lambda *_: tmp_path)
    told = feature_actor.features_of(here, dataset, ["train", "validation"], dataset, "tensorflow", ClusterConfig())
    found = Statistics.streamed(map(Standard.of, told))
    assert stand.shards == 2
    np.testing.assert_array_equal(found.feature()[:, 0], image[:60].reshape(60, -1).mean(axis=1).astype(np.float32))
    assert found.moments[0] == pytest.approx(image[:60].mean(), rel=1e-6)


def test_resizes_differ_and_keep_a_flat_image() -> None:
    image = torch.from_numpy(images(0, 1)).float()
    made = {name: resize(image) for name, resize in inception.RESIZES.items()}
    assert all(x.shape == (1, 3, 299, 299) for x in made.values())
    assert (made["tensorflow"] - made["bicubic"]).abs().max() > 0.1
    assert (made["tensorflow"] - made["half_pixel"]).abs().max() > 0.1
    for resize in inception.RESIZES.values():
        flat = resize(torch.full((1, 3, 20, 31), 200.0))
        assert float(flat.max() - flat.min()) < 1e-5


def test_a_grey_image_counts_as_three_equal_channels(network: Inception) -> None:
    grey = images(0, 2)[:, :1]
    np.testing.assert_array_equal(seen(network, grey, "64")["64"], seen(network, grey.repeat(3, 1), "64")["64"])


def test_the_network_is_imported_and_found(checkpoint: Path, network: Inception, store: Store) -> None:
    outcome = inception.import_network(checkpoint, store)
    assert inception.import_network(checkpoint, store).status == "cached"
    judge = load(store.fetch(store.resolve("inception", "features")), "tensorflow")
    assert isinstance(judge, Standard)
    assert outcome.artifact.kind == "features"
    assert (judge.metric("fd"), judge.metric("rfd"), judge.metric("is")) == ("fid", "rfid", "is")
    assert load(store.fetch(outcome.artifact), "bicubic").metric("fd") == "fid_bicubic"
    for name, value in judge.network.state_dict().items():
        assert torch.equal(value, network.state_dict()[name]), name


@pytest.mark.parametrize("wrong", ["missing", "shape", "unknown"])
def test_another_checkpoint_is_refused_by_name(wrong: str, network: Inception, tmp_path: Path) -> None:
    state = dict(network.state_dict())
    match wrong:
        case "missing":
            del state["Mixed_7c.branch_pool.bn.bias"]
        case "shape":
            state["fc.weight"] = state["fc.weight"][:1000].clone()
        case "unknown":
            state["Mixed_8.conv.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(ConfigError, match={"missing": "branch_pool.bn.bias is missing", "shape": "fc.weight", "unknown": "Mixed_8"}[wrong]):
        inception.converted(tmp_path / "other.pth")


class _Flat:
    """Stands for the network where only what is read from a file counts."""

    def see(self, image: np.ndarray) -> None:
        raise AssertionError("statistics of the file are enough")


def test_reference_files_as_adm_writes_them(tmp_path: Path) -> None:
    mean, covariance = np.arange(3.0), np.eye(3)
    np.savez(tmp_path / "reference.npz", mu=mean, sigma=covariance, mu_s=mean[:2], sigma_s=covariance[:2, :2])
    found = Statistics.read(tmp_path / "reference.npz", _Flat())  # type: ignore[arg-type]
    assert np.array_equal(found.moments[0], mean)
    assert found.spatial is not None
    assert found.spatial[1].shape == (2, 2)
    with pytest.raises(ConfigError, match="holds no images"):
        found.feature()
    np.savez(tmp_path / "odd.npz", mu=mean, sigma=covariance[:2])
    (tmp_path / "text.npz").write_text("not an archive")
    np.savez(tmp_path / "empty.npz", other=mean)
    np.savez(tmp_path / "objects.npz", mu=np.array([{}], dtype=object), sigma=covariance)
    for name, message in (("odd", "mean"), ("text", "not a reference file"), ("empty", "neither"), ("objects", "not a reference file")):
        with pytest.raises(ConfigError, match=message):
            Statistics.read(tmp_path / f"{name}.npz", _Flat())  # type: ignore[arg-type]
