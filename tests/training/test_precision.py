"""Mixed precision: tokenizers train in bfloat16 as they do in float32, with norms, quantizer and losses in float32."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from stand_ins import digits, new_store, write_dataset
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tokenloom.configs.schema import BaseConfig, ClusterConfig
from tokenloom.models.core import signals
from tokenloom.models.core.build import load_model
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Batch
from tokenloom.models.core.registry import get
from tokenloom.models.core.settings import ExecutionSettings, OptimizerSettings, TrainSettings
from tokenloom.tasks.data.batches import exact_norms
from tokenloom.tasks.store.artifacts import Artifact, Store
from tokenloom.tasks.training.curves import read_curves
from tokenloom.tasks.training.distributed import make_job, plan_tokenizer
from tokenloom.tasks.training.train_loop import train

CPU = ClusterConfig(execution=ExecutionSettings(workers=1, device="cpu"))


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Artifact]:
    store, (image, label) = new_store(tmp_path_factory.mktemp("precision")), digits()
    return store, write_dataset(store, image[:64], label[:64], held_out=16)


def trained(ground: tuple[Store, Artifact], recipe: str, args: dict[str, Any], precision: Any) -> tuple[list[dict[str, Any]], Path]:
    store, dataset = ground
    settings = TrainSettings(steps=3, batch=16, log_every=1, precision=precision, optimizer=OptimizerSettings(lr=1e-3))
    job, _ = make_job(plan_tokenizer("x", BaseConfig(recipe=recipe, args=args, train=settings), dataset, store), store, CPU)
    train(job)
    return read_curves(store.storage, job.folder), store.storage.local_path(job.folder)


@pytest.mark.parametrize("recipe", ["vq", "var_vq"])
def test_three_steps_are_close_to_those_of_float32(ground: tuple[Store, Artifact], recipe: str) -> None:
    args = dict(get(recipe).tiny) | {"patch": 4}
    args |= {"scales": [1, 2, 4]} if recipe == "var_vq" else {}
    (full, _), (half, folder) = (trained(ground, recipe, args, precision) for precision in ("float32", "bfloat16"))
    assert [row["step"] for row in half] == [1, 2, 3]
    for a, b in zip(full, half):
        assert math.isfinite(b["loss"])
        assert b["loss"] == pytest.approx(a["loss"], rel=0.05)
        assert b["gradient_norm"] == pytest.approx(a["gradient_norm"], rel=0.25)
    assert [row["loss"] for row in full] != [row["loss"] for row in half], "nothing was computed in bfloat16"
    model, _ = load_model(Path(folder))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}, "the weights themselves stay in float32"
    assert json.loads((Path(folder) / "model.json").read_text())["recipe"] == recipe


class Kinds(TorchFunctionMode):
    """Notes the types that normalisations and convolutions compute with."""

    def __init__(self) -> None:
        super().__init__()
        self.norms: set[torch.dtype] = set()
        self.convolutions: set[torch.dtype] = set()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function in (F.group_norm, torch.group_norm):
            self.norms.add(result.dtype)
        elif function in (F.conv2d, torch.conv2d):
            self.convolutions.add(result.dtype)
        return result


def test_norms_are_in_float32_and_convolutions_in_bfloat16() -> None:
    model: Any = get("vq").config({**get("vq").tiny, "patch": 4}).build(signal=signals.image(32, 1))
    batch = Batch(signal=torch.rand(4, 1, 32, 32) * 2 - 1)
    exact_norms(model)
    kinds = Kinds()
    with torch.autocast("cpu", torch.bfloat16), kinds:
        losses: dict[str, Tensor] = model.losses(batch, model.phases[0], Draws.whole(0, 0, 4))
    assert kinds.norms == {torch.float32}
    assert kinds.convolutions == {torch.bfloat16}
    assert losses["loss"].dtype == torch.float32
