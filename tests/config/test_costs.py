"""What a training will cost, before it starts: operations, memory, hours, and what is said where it does not fit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from click.testing import CliRunner
from torch.utils.flop_counter import FlopCounterMode
from zoo import batch_of, build, spec_of

from tokenloom.configs.load import load_run, shipped
from tokenloom.flows import costs, planning
from tokenloom.flows.cli.main import cli
from tokenloom.models.core.build import parameters
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.settings import ExecutionSettings, TrainSettings
from tokenloom.tasks.costs.cost import cost_of, held
from tokenloom.tasks.costs.took import TOOK, Rate, cells, noted, rate_of, row
from tokenloom.tasks.costs.trace import traced
from tokenloom.tasks.store.artifacts import Artifact, Record, Store
from tokenloom.tasks.training import speed
from tokenloom.tasks.training.speed import ACCELERATORS

REAL = sorted(name for name in shipped("runs") if name.startswith("imagenet"))


@pytest.mark.parametrize("name", ["raster", "rar", "var", "vq"])
def test_operations_are_those_of_a_real_step(name: str) -> None:
    rows, model, spec = 4, build(name), spec_of(name)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        for phase in model.phases:
            model.train().losses(batch_of(model, rows), phase, Draws.whole(0, 0, rows, 10, stream=phase))["loss"].backward()
    found, kept = traced(spec.shaped(), spec, TrainSettings(steps=10), rows)
    # The kernel without a stored matrix makes the scores anew in its backward pass: a fifth of its operations more.
    assert counter.get_total_flops() / rows <= found <= 1.1 * counter.get_total_flops() / rows
    assert kept > 0


def test_weights_gradients_moments_and_average_are_counted_a_worker() -> None:
    model, settings = spec_of("raster").shaped(), TrainSettings(steps=1, ema=0.9)
    size = 4 * sum(p.numel() for p in model.parameters())
    assert {k: v for k, v in held(model, settings).items() if k != "weights"} == {"gradients": size, "moments": 2 * size, "average": size}
    sharded = held(model, replace(settings, ema=0.0), shards=2)
    assert sharded["moments"] == size
    assert "average" not in sharded


def test_a_smaller_micro_batch_and_bfloat16_need_less() -> None:
    spec, settings = spec_of("raster"), TrainSettings(steps=10, batch=64)
    whole, parts = (cost_of(spec, "generator", settings, ExecutionSettings(workers=1, micro_batch=n)) for n in (0, 8))
    assert parts.memory["activations"] < whole.memory["activations"] / 4
    assert parts.flops == whole.flops
    assert parts.flops is not None
    assert parts.flops_per_item is not None
    assert parts.flops == parts.flops_per_item * 640
    half = cost_of(spec, "generator", replace(settings, precision="bfloat16"), ExecutionSettings(workers=1))
    assert half.memory["activations"] < whole.memory["activations"]


def test_what_does_not_fit_is_said_with_what_would() -> None:
    cost = cost_of(spec_of("raster"), "generator", TrainSettings(steps=10), ExecutionSettings(workers=1))
    small = replace(ACCELERATORS["L4"], memory=cost.memory_bytes - 1)
    assert "execution.micro_batch: 63 would fit it" in cost.on(small, TrainSettings(steps=10), 1)["warning"]
    with pytest.raises(ConfigError, match=r"--price nan: give the price of an hour"):
        costs.costs(load_run("smoke_raster"), Store("unused", Path("unused")), {}, ExecutionSettings(), price=float("nan"))
    tiny = replace(small, memory=cost.memory["weights"])
    row = cost.on(tiny, TrainSettings(steps=10), 1, price=2.0)
    assert "fsdp" in row["warning"]
    assert row["price"] == pytest.approx(2 * row["hours"])
    assert cost.on(ACCELERATORS["L4"], TrainSettings(steps=10), 1)["warning"] is None


@pytest.mark.parametrize(
    "name", ["smoke_titok", *(pytest.param(name, marks=pytest.mark.long) for name in ("smoke_maskgit", "smoke_stages"))]
)
def test_masks_bases_and_stages_are_followed_too(name: str, tmp_path: Path) -> None:
    config, store = load_run(name), Store(str(tmp_path / "store"), tmp_path)
    roles = planning.roles(config, store, planning.plan(config, store))
    rows = costs.costs(config, store, roles, ExecutionSettings(workers=1), items=1000)
    assert {row["counted"] for row in rows} == {"traced"}
    sections = {"smoke_stages": ["tokenizer", "generator", "stages.finetune"], "smoke_titok": ["tokenizer.base", "tokenizer"]}
    assert [row["section"] for row in rows] == sections.get(name, ["tokenizer", "generator"])
    assert costs.totals(rows)["store_bytes"] == sum(row["store_bytes"] for row in rows)
    if name == "smoke_maskgit":
        assert rows[-1]["store"]["tokens"] == 1000 * rows[-1]["token_bytes"]


def past(recipe: str, share: float, device: str = "NVIDIA L4") -> Record:
    """A record of a training that used this share of an L4's peak on two of them."""
    metrics = {"workers": 2, "steps": 10, "train_seconds": 5.0, "device": device}
    flops = share * 30.3e12 * 2 * 5.0 / (10 * 8)
    took = noted(metrics, TrainSettings(steps=10, batch=8), {"flops_per_item": flops, "memory_bytes": 7})
    artifact = Artifact("generator", "a", "0" * 12, "")
    return Record(artifact, "train_generator", 1, {"recipe": recipe}, {}, [], {}, {}, None, 1.0, "", {TOOK: took})


def test_the_share_of_the_peak_is_that_of_past_trainings() -> None:
    found, l4 = (
        [past("var", 0.2), past("raster", 0.5), past("raster", 0.3), past("raster", 0.1), past("raster", 0.9, "CPU")],
        ACCELERATORS["L4"],
    )
    own = rate_of(found, l4, "raster", "float32")
    assert (own.share, own.source) == (pytest.approx(0.3), "3 past trainings")
    other = rate_of(found, l4, "rar", "float32")
    assert (other.share, other.source) == (pytest.approx(0.25), "4 past trainings of other recipes")
    assert rate_of(found, l4, "raster", "bfloat16") == rate_of([], l4, "raster", "float32") == Rate()
    assert rate_of(found, ACCELERATORS["H100"], "raster", "float32").source == "assumed"
    shown = cells(row(found[0]))
    assert shown[2:] == ["5.0 s on 2 NVIDIA L4, 16 items/s", "", "6.06e+13 at 6.06e+12/s a worker"]


def test_what_a_training_took_stands_in_its_metrics() -> None:
    note = noted({"workers": 1, "steps": 4, "resumed_from": 4, "train_seconds": 0.0}, TrainSettings(steps=4), {})
    assert "rows_per_second" not in note  # a run that was only finished has measured nothing
    assert "flops" not in note


def test_a_length_in_epochs_waits_for_the_number_of_items() -> None:
    settings = TrainSettings(epochs=2, batch=8)
    unknown = cost_of(spec_of("raster"), "generator", settings, ExecutionSettings(workers=1))
    assert unknown.steps is None
    assert unknown.flops is None
    assert unknown.on(ACCELERATORS["H100"], settings, 1)["hours"] is None
    assert cost_of(spec_of("raster"), "generator", settings, ExecutionSettings(workers=1), items=80).steps == 20


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.long) for name in REAL])
def test_every_real_run_has_a_cost(name: str, tmp_path: Path) -> None:
    config, store = load_run(name), Store(str(tmp_path / "store"), tmp_path)
    planned = planning.plan(config, store)
    rows = costs.costs(config, store, planning.roles(config, store, planned), ExecutionSettings(workers=8, micro_batch=4), price=2.0)
    total = costs.totals(rows)
    assert total["parameters"] > 0
    assert total["memory_bytes"] > 0
    if config.generator is not None:
        assert rows[-1]["section"] == "generator"
        assert rows[-1]["hours"] > 0
    assert len(costs.cells(rows)[1]) == len(rows)


def test_plan_prints_the_cost_and_refuses_an_unknown_accelerator(tmp_path: Path) -> None:
    ran = CliRunner().invoke(cli, ["plan", "smoke_raster", "--root", str(tmp_path), "--json", "--accelerator", "L4"])
    cost = json.loads(ran.stdout)["cost"]
    assert cost["parameters"] == sum(row["parameters"] for row in cost["trainings"])
    assert cost["flops"] > 0
    assert cost["memory_bytes"] > 0
    assert {row["accelerator"] for row in cost["trainings"]} == {"L4"}
    with pytest.raises(ConfigError, match="--accelerator B52: no peak rates are known; use one of H200"):
        costs.accelerator_named("B52")


#: What one step takes beyond weights, gradients and moments, after a step of one row that loads all kernels.
MEASURE = """
import json, resource, sys, torch
from tokenloom.models.core.build import ModelSpec
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Batch, Labels, Tokens

def step(rows):
    tokens = Tokens(torch.zeros(rows, model.layout.length, dtype=torch.long), model.layout)
    batch = Batch(tokens=tokens, conditions=Labels(torch.zeros(rows, dtype=torch.long)))
    model.losses(batch, "main", Draws.whole(0, 0, rows, 10))["loss"].backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

torch.set_num_threads(1)
model = ModelSpec.from_dict(json.loads(sys.argv[1])).build().train()
print(-step(1) + step(int(sys.argv[2])))
"""


@pytest.mark.long
def test_the_memory_of_a_step_is_within_15_percent_of_what_a_process_takes() -> None:
    layout = {**spec_of("raster").given["layout"], "grids": [[16, 16]]}
    spec = replace(spec_of("raster"), args={"depth": 8, "width": 256, "heads": 4}, given=spec_of("raster").given | {"layout": layout})
    found = cost_of(spec, "generator", TrainSettings(steps=10, batch=32), ExecutionSettings(workers=1)).memory["activations"]
    command = [sys.executable, "-c", MEASURE, json.dumps(spec.to_dict()), "32"]
    exact = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed goes back, so that no hole is counted
    measured = int(subprocess.run(command, capture_output=True, text=True, check=True, env=exact).stdout)
    assert found == pytest.approx(measured, rel=0.15), (found, measured)


def test_speed_is_told_in_items_tokens_and_the_share_of_all_workers_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    model = spec_of("raster").build()
    monkeypatch.setattr(speed, "_core", lambda: speed.Accelerator("CPU", 1, 2e9, 1e9))
    found = speed.speeds(model, torch.device("cpu"), speed.Execution(2, 3, "float32", "windows"), 10.0)
    tokens = 10.0 * cast(Any, model).layout.length
    share = pytest.approx(6 * parameters(model) * tokens / (2 * 3 * 1e9))
    assert found == {"windows_per_second": 10.0, "tokens_per_second": tokens, "mfu": share}
    codec = speed.speeds(spec_of("vq").build(), torch.device("cpu"), speed.Execution(1, 1, "float32"), 5.0)
    assert codec == {"items_per_second": 5.0}, "a tokenizer has no tokens to predict"
