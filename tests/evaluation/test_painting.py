"""In-painting and editing by mask: what is given stays, what is drawn heeds it; models that cannot say why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stand_ins
import torch
from PIL import Image
from stand_ins import write_dataset, write_generator, write_tokenizer

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.protocols import TokenLayout
from tokenloom.tasks.evaluation.sample import open_model, sample_model
from tokenloom.tasks.modalities.image.served.draw import png_base64
from tokenloom.tasks.modalities.image.served.painting import Painting
from tokenloom.tasks.store.artifacts import Store

PAINTERS = ("randar", "maskgit", "var")


@pytest.fixture(name="store", scope="module")
def store_fixture(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Untrained models of three classes of grey 32 x 32 images: any order, masked, of scales, and row by row."""
    store = stand_ins.new_store(tmp_path_factory.mktemp("painting"))
    label = np.arange(12) % 3
    image = np.random.default_rng(0).integers(0, 255, (12, 32, 32, 1)).astype(np.uint8)
    dataset = write_dataset(store, image, label, held_out=3)
    codecs = {recipe: write_tokenizer(store, dataset, recipe, recipe) for recipe in ("vq", "var_vq")}
    for recipe in (*PAINTERS, "raster"):
        write_generator(store, dataset, codecs["var_vq" if recipe == "var" else "vq"], recipe.replace("_", "-"), recipe)
    return store


def files(folder: Path, seed: int = 5) -> tuple[Path, Path]:
    """An image of noise, and a mask of which the upper half is white."""
    noise = np.random.default_rng(seed).integers(0, 255, (32, 32)).astype(np.uint8)
    Image.fromarray(noise).save(folder / f"image{seed}.png")
    Image.fromarray(np.repeat([[255], [0]], 16, axis=0).astype(np.uint8).repeat(32, axis=1)).save(folder / "mask.png")
    return folder / f"image{seed}.png", folder / "mask.png"


def painted(store: Store, name: str, folder: Path, image_seed: int = 5, **options: Any) -> np.ndarray:
    sample_model(name, store, None, total=4, classes=[1], inpaint=files(folder, image_seed), out=folder / "out.npz", **options)
    with np.load(folder / "out.npz") as arrays:
        return arrays["images"][..., 0]


@pytest.mark.parametrize("name", PAINTERS)
def test_what_is_given_stays_and_what_is_drawn_heeds_it(name: str, store: Store, tmp_path: Path) -> None:
    first = painted(store, name, tmp_path)
    given = np.asarray(Image.open(tmp_path / "image5.png"))
    assert (first[:, 16:] == given[16:]).all()
    assert (first[0, :16] != first[1, :16]).any(), "samples differ where they are drawn"
    assert (first == painted(store, name, tmp_path)).all()
    assert (first[:, :16] != painted(store, name, tmp_path, seed=1)[:, :16]).any()
    # What is given stands below what is drawn, and is known to it all the same.
    surest = painted(store, name, tmp_path, temperature=1e-6)
    assert (surest[:, :16] != painted(store, name, tmp_path, image_seed=6, temperature=1e-6)[:, :16]).any()


def test_a_position_is_given_where_no_pixel_of_it_is_drawn() -> None:
    anew = torch.zeros(16, 16, dtype=torch.bool)
    anew[3, 15] = True
    kept = Painting(torch.zeros(1, 16, 16), anew).kept(TokenLayout(grids=((1, 1), (2, 2), (4, 4)), vocabulary=8))
    assert torch.nonzero(~kept).flatten().tolist() == [0, 2, 8]


def test_steps_are_for_what_is_drawn(store: Store, tmp_path: Path) -> None:
    one = painted(store, "randar", tmp_path, steps=1)
    assert (one != painted(store, "randar", tmp_path, steps=4)).any()


def test_models_that_cannot_say_why(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"generator raster-.* cannot draw a part of an image: it decodes in the order raster, in which"):
        painted(store, "raster", tmp_path)
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(tmp_path / "black.png")
    with pytest.raises(ConfigError, match="nothing is to be drawn; what is white"):
        sample_model("var", store, None, total=1, inpaint=(files(tmp_path)[0], tmp_path / "black.png"), out=tmp_path / "o.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ConfigError, match=r"--inpaint .*text\.png: "):
        sample_model("var", store, None, total=1, inpaint=(tmp_path / "text.png", files(tmp_path)[1]), out=tmp_path / "o.png")


def test_a_served_model_paints(store: Store, tmp_path: Path) -> None:
    import pandas as pd
    from mlflow.exceptions import MlflowException

    from tokenloom.tasks.modalities.image.served.model_def import ImageModel

    image, mask = (png_base64(np.asarray(Image.open(path))[..., None]) for path in files(tmp_path))
    served = ImageModel()
    served.pair, _ = open_model("randar", store)
    rows = pd.DataFrame({"class_id": [1, 2]})
    drawn = served.predict(None, rows, {"inpaint": image, "mask": mask})["png_base64"].tolist()
    assert drawn != served.predict(None, rows, {})["png_base64"].tolist()
    assert drawn == served.predict(None, rows, {"inpaint": image, "mask": mask})["png_base64"].tolist()
    for given, message in (
        ({"inpaint": image}, "mask: is missing"),
        ({"inpaint": "x", "mask": mask}, "column 'inpaint', row 0"),
        ({"inpaint": image, "mask": png_base64(np.zeros((8, 8, 1), np.uint8))}, "8 rows and 8 columns"),
    ):
        with pytest.raises(MlflowException, match=message):
            served.predict(None, rows, given)
    served.pair, _ = open_model("raster", store)
    with pytest.raises(MlflowException, match="cannot draw a part of an image: it decodes in the order raster"):
        served.predict(None, rows, {"inpaint": image, "mask": mask})
