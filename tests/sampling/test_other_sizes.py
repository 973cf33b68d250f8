"""Images of other sizes than a model was trained on, any steps and orders, previews of first tokens; models that cannot say why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stand_ins
import torch
from stand_ins import write_dataset, write_generator, write_tokenizer

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.protocols import TokenLayout
from tokenloom.models.parts.orders import Masked, Random
from tokenloom.models.parts.orders.sizes import Along, Arccos, CosineCurve, Shares, Steps, Straight
from tokenloom.models.parts.orders.visits import Listed, Outward
from tokenloom.models.parts.quantizers.grids import at_aspect, grown, resized
from tokenloom.models.zoo.generators.flexvar.order import DrawnScales
from tokenloom.tasks.evaluation.sample import open_model, sample_model
from tokenloom.tasks.serving.predict import sized
from tokenloom.tasks.store.artifacts import Store

CONV = {"channels": 8, "multipliers": [1, 1], "patch": 4}
#: Generator: its tokenizer, and the arguments of that.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "flexvar": ("flexvar_vq", {"codes": 16, "dim": 4, "scales": [1, 2, 3, 4]} | CONV),
    "infinity": ("infinity_bsq", {"bits": 4, "scales": [1, 2, 4]} | CONV),
    "randar": ("vq", {"codes": 16, "dim": 4} | CONV),
    "var": ("var_vq", {"codes": 16, "dim": 4, "scales": [1, 2, 4]} | CONV),
    "raster": (
        "d_ar",
        {"tokens": 4, "codes": 16, "dim": 4, "groups": 2, "steps": 4, "patch": 4, "widths": [16, 32], "depths": [1, 1], "heads": 2},
    ),
}


@pytest.fixture(name="store", scope="module")
def store_fixture(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Untrained models of three classes of grey 32 x 32 images."""
    store = stand_ins.new_store(tmp_path_factory.mktemp("sizes"))
    image = np.random.default_rng(0).integers(0, 255, (12, 32, 32, 1)).astype(np.uint8)
    dataset = write_dataset(store, image, np.arange(12) % 3, held_out=3)
    for name, (codec, args) in MODELS.items():
        write_generator(store, dataset, write_tokenizer(store, dataset, codec.replace("_", "-"), codec, args=args), name, name)
    return store


def drawn(store: Store, name: str, folder: Path, **options: Any) -> np.ndarray:
    sample_model(name, store, None, **{"total": 3, "classes": [1], "out": folder / "out.npz"} | options)
    with np.load(folder / "out.npz") as arrays:
        return arrays["images"][..., 0]


@pytest.mark.parametrize("name", ["flexvar", "infinity", "randar"])
@pytest.mark.parametrize("size", [(64, 32), (32, 48)])
def test_images_of_other_sizes_and_aspects(name: str, size: tuple[int, int], store: Store, tmp_path: Path) -> None:
    first = drawn(store, name, tmp_path, size=size)
    assert first.shape == (3, *size)
    assert (first[0] != first[1]).any()
    assert (first == drawn(store, name, tmp_path, size=size)).all()
    assert (first != drawn(store, name, tmp_path, size=size, seed=1)).any()


def test_the_own_size_changes_nothing_and_painting_follows_the_size(store: Store, tmp_path: Path) -> None:
    assert (drawn(store, "randar", tmp_path, size=(32, 32)) == drawn(store, "randar", tmp_path)).all()
    from PIL import Image

    noise = np.random.default_rng(3).integers(0, 255, (64, 32)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "image.png")
    Image.fromarray(np.repeat([[255], [0]], 32, axis=0).astype(np.uint8).repeat(32, axis=1)).save(tmp_path / "mask.png")
    painted = drawn(store, "randar", tmp_path, size=(64, 32), inpaint=(tmp_path / "image.png", tmp_path / "mask.png"))
    assert (painted[:, 32:] == noise[32:]).all()


def test_models_that_have_one_size_say_why(store: Store, tmp_path: Path) -> None:
    for name, size, reason in (
        ("var", (64, 32), r"size=64x32: generator var-.* draws images of 32x32 alone: this generator is bound to its grids .*position"),
        ("raster", (64, 32), "FlowTokenizer is bound to the size of images that it was trained on"),
        ("randar", (60, 32), "not divisible by the downsampling 8"),
        ("infinity", (8, 8), "too few for 3 growing scales"),
    ):
        with pytest.raises(ConfigError, match=reason):
            drawn(store, name, tmp_path, size=size)


def test_weights_are_shared_with_the_model_of_another_size(store: Store) -> None:
    pair, _ = open_model("flexvar", store)
    other = sized(pair, (64, 32))
    shared = {tensor.data_ptr() for tensor in pair.generator.parameters()}
    assert {tensor.data_ptr() for tensor in other.generator.parameters()} == shared


def test_scales_of_other_grids_are_the_released_ones() -> None:
    flexvar = grown(tuple(range(1, 17)), (32, 32))
    assert flexvar == tuple((n, n) for n in (*range(1, 17), 23, 32))
    layout = TokenLayout(grids=flexvar, vocabulary=4)
    sides = [max(layout.grids[i]) for i in DrawnScales()._scheduled(layout)]
    assert sides == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 23, 32]  # README of FlexVAR: zero-shot 512
    assert grown((1, 2, 4), (8, 4)) == ((1, 1), (2, 1), (4, 2), (6, 3), (8, 4))
    square = (1, 2, 4, 6, 8, 12, 16)
    assert at_aspect(square, (22, 11)) == ((1, 1), (2, 2), (4, 2), (6, 3), (10, 5), (16, 8), (22, 11))
    assert len(at_aspect(square, (64, 64))) == 13
    assert resized((1, 2, 4), (8, 4)) == ((1, 1), (4, 2), (8, 4))
    with pytest.raises(ConfigError, match="too few for 4 growing scales"):
        resized((1, 2, 3, 4), (2, 2))


def test_steps_by_size_and_along_curves() -> None:
    assert Shares(shares=(1, 3, 12)).cut(16) == (1, 3, 12)
    assert sum(Shares(shares=(1, 3, 12)).cut(8)) == 8
    assert Shares(shares=(1, 1, 1)).cut(2) == (1, 1)
    own = Steps(count=6, curve=CosineCurve(), rounding="down")
    assert Along(curve=Straight()).over(own) == Steps(count=6, curve=Straight(), rounding="down")
    assert Along(curve=Arccos(), count=3).over(own).cut(12) != own.cut(12)
    layout = TokenLayout(grids=((4, 4),), vocabulary=4)
    for order in (Random(), Masked()):
        assert order.decode(layout, 1, SampleDraws.of(0, 0, 1), Shares(shares=(2, 6, 8))).sizes == (2, 6, 8)


def test_any_order() -> None:
    layout = TokenLayout(grids=((4, 4),), vocabulary=4)
    assert Listed(places=(5, 0)).sequence(layout, 1, None).tolist()[0][:4] == [5, 0, 1, 2]
    assert sorted(Outward().sequence(layout, 1, None)[0, :4].tolist()) == [5, 6, 9, 10]
    with pytest.raises(ConfigError, match="position 16, the model has 16"):
        Listed(places=(16,)).sequence(layout, 1, None)
    with pytest.raises(ConfigError, match="each once"):
        Listed(places=(1, 1))


def test_samples_follow_steps_and_orders(store: Store, tmp_path: Path) -> None:
    plain = drawn(store, "randar", tmp_path)
    for options in ({"steps": [1, 3, 12]}, {"steps": 3, "steps_along": "arccos"}, {"order": "outward"}, {"order": [15, 14]}):
        assert (plain != drawn(store, "randar", tmp_path, **options)).any(), options
    with pytest.raises(ConfigError, match=r"sample\.steps=\[1, 5\]: give positions of stored grids"):
        drawn(store, "flexvar", tmp_path, steps=[1, 5])
    assert drawn(store, "flexvar", tmp_path, steps=[1, 4, 16]).shape == (3, 32, 32)
    with pytest.raises(ConfigError, match=r"sample\.order='upwards': write one of raster, random, halton, outward"):
        drawn(store, "randar", tmp_path, order="upwards")


def test_previews_of_the_first_tokens(store: Store, tmp_path: Path) -> None:
    whole = sample_model("raster", store, None, total=2, classes=[1], out=tmp_path / "o.npz")
    first = sample_model("raster", store, None, total=2, classes=[1], out=tmp_path / "p.npz", prefix=2)
    assert first["net_calls"] < whole["net_calls"]
    pair, _ = open_model("raster", store)
    from tokenloom.models.core.requests import Conditions, Labels

    tokens = pair.generator.generate(Conditions.of(Labels(torch.tensor([1, 1]))), pair.sampler, SampleDraws.of(0, 0, 2))
    expected = pair.tokenizer.decode_prefix(tokens, 2)  # type: ignore[union-attr]
    with np.load(tmp_path / "p.npz") as arrays:
        found = torch.from_numpy(arrays["images"][..., 0]).float() / 127.5 - 1
    torch.testing.assert_close(found, expected[:, 0], atol=0.01, rtol=0)
    with pytest.raises(ConfigError, match=r"prefix=1: this decoder takes the first 2 to 4 tokens"):
        drawn(store, "raster", tmp_path, prefix=1)
    with pytest.raises(ConfigError, match=r"the tokens of generator randar-.* are no sequence"):
        drawn(store, "randar", tmp_path, prefix=2)


def test_a_served_model_takes_them(store: Store) -> None:
    import base64
    import io

    import pandas as pd
    from mlflow.exceptions import MlflowException
    from PIL import Image

    from tokenloom.tasks.modalities.image.served.model_def import ImageModel

    served, rows = ImageModel(), pd.DataFrame({"class_id": [1, 2]})
    served.pair, _ = open_model("flexvar", store)
    raw = served.predict(None, rows, {"size": "64x32"})["png_base64"][0]
    assert Image.open(io.BytesIO(base64.b64decode(raw))).size == (32, 64)
    for given, message in (
        ({"size": "64x"}, "size='64x': write rows"),
        ({"prefix": 2}, "no sequence"),
        ({"steps_along": "x"}, "steps_along='x'"),
    ):
        with pytest.raises(MlflowException, match=message):
            served.predict(None, rows, given)
    served.pair, _ = open_model("randar", store)
    plain = served.predict(None, rows, {})["png_base64"].tolist()
    for given in ({"step_sizes": "1,3,12"}, {"order": "15,14,13"}, {"order": "outward"}):
        assert plain != served.predict(None, rows, given)["png_base64"].tolist()
    served.pair, _ = open_model("raster", store)
    assert plain != served.predict(None, rows, {"prefix": 2})["png_base64"].tolist()
