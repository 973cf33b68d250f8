"""Fully sharded training: the numbers of replicated training, whole checkpoints under the same names, resume across both.

``python test_fsdp.py FOLDER NAME…`` is the worker side: two processes that train generators of the zoo, sharded.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from safetensors.torch import load_file, save_file
from torch import distributed

from tokenloom.flows.guard import end_with_parent
from tokenloom.models.core import registry
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Method
from tokenloom.models.core.settings import ExecutionSettings, OptimizerSettings, TrainSettings
from tokenloom.tasks.data.batches import pieces, rows_of
from tokenloom.tasks.data.loader import share
from tokenloom.tasks.training.parallel import Group, launch
from tokenloom.tasks.training.sharding import ShardedState, check_sharded
from tokenloom.tasks.training.states import state_of
from tokenloom.tasks.training.train_state import TrainState

GENERATORS = [name for name in registry.names() if registry.get(name).kind == "generator"]
#: One of each kind of net, feed and head; `make test-all` takes the whole zoo.
QUICK = ("var", "mvar", "infinity", "hmar", "arpg", "coarse_to_fine", "open_magvit2", "tokenbridge_ar", "titok_uvitbert", "vq_ddm")
SHARDED = ExecutionSettings(workers=2, sharding="fsdp", device="cpu")
SETTINGS = TrainSettings(steps=8, batch=zoo.ROWS - 1, ema=0.5, optimizer=OptimizerSettings(lr=3e-3, warmup=0.0, weight_decay=0.5, clip=0.1))
CPU = torch.device("cpu")


def one_step(state: TrainState, group: Group) -> list[float]:
    """One step of every phase on this worker's rows of an uneven global batch: losses and gradient norms."""
    batch, total = rows_of(zoo.batch_of(state.model), 0, SETTINGS.batch), SETTINGS.batch
    start, stop = share(total, group.rank, group.world)
    numbers = []
    for phase in state.phases:
        phase.clear()
        parts = state.losses(
            rows_of(batch, start, stop), phase.phase, Draws(0, state.step, SETTINGS.steps, start, stop, total, stream=phase.phase)
        )
        (parts["loss"] * ((stop - start) / total)).backward()
        phase.fit_tail(100)  # more than it starts with, after the gradients are there
        phase.tail[99] += parts["loss"].detach() * ((stop - start) / total)
        phase.reduce(group.sum)
        numbers += [float(phase.tail[99]), float(phase.clip())]
        phase.step(state.step, SETTINGS.steps)
    state.follow()
    state.step += 1
    return numbers


def built(name: str) -> Method:
    return zoo.build(name, seed=3).double().train()


def worker(folder: str, names: list[str], rank: int, world: int) -> None:
    """Two steps sharded, the state to a file; a third step after a whole state was taken back."""
    end_with_parent()
    torch.set_num_threads(1)
    group, found = Group(rank, world), {}
    for name in names:
        state = state_of(built(name), SETTINGS, SHARDED, CPU, world)
        numbers = [one_step(state, group) for _ in range(2)]
        tensors = state.tensors()
        if rank == 0:
            save_file({k: v.contiguous() for k, v in tensors.items()}, f"{folder}/{name}.safetensors")
            with state.exported():  # alone: no other worker takes part
                state.model.losses(zoo.batch_of(state.model), state.model.phases[0], Draws.whole(0, 7, zoo.ROWS, 8))
        else:
            with state.exported():
                pass
        again = state_of(built(name), SETTINGS, SHARDED, CPU, world)
        again.restore(tensors, 2)
        numbers.append(one_step(again, group))
        sizes = [(p.to_local().numel(), p.numel()) for p in state.model.parameters()]
        held = [group.gather(sum(mine for mine, _ in sizes)), sum(whole for _, whole in sizes)]
        found[name] = {"numbers": numbers, "third": one_step(state, group), "held": held}
    if rank == 0:
        Path(folder, "found.json").write_text(json.dumps(found))
    distributed.barrier()


@pytest.fixture(scope="module")
def sharded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes found, on the generators of the tests that were asked for."""
    names = [item.callspec.params["name"] for item in request.session.items if "sharded" in getattr(item, "fixturenames", ())]
    folder = tmp_path_factory.mktemp("fsdp")
    # Said, because PYTHONSAFEPATH, which our own command line sets, keeps a script's folder out of the path.
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1] / "support")}
    done = subprocess.run([sys.executable, __file__, str(folder), *names], capture_output=True, text=True, timeout=500, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.long) for name in GENERATORS])
def test_a_generator_trains_sharded_as_it_trains_whole(name: str, sharded: Path) -> None:
    found: dict[str, Any] = json.loads((sharded / "found.json").read_text())[name]
    whole = TrainState(built(name), SETTINGS)
    numbers = [one_step(whole, Group()) for _ in range(2)]
    held = load_file(sharded / f"{name}.safetensors")
    assert held.keys() == whole.tensors().keys()
    for key, value in whole.tensors().items():
        torch.testing.assert_close(held[key], value, atol=1e-9, rtol=1e-7, msg=lambda m, k=key: f"{k}: {m}")
    numbers.append(one_step(whole, Group()))
    np.testing.assert_allclose(found["numbers"], numbers, rtol=1e-8, err_msg="sharded, whole")
    assert found["third"] == found["numbers"][2], "a state that was taken back goes on to the same bits"
    parts, total = found["held"]
    assert sum(parts) == total, "each number is held once"
    assert max(parts) <= 0.75 * total, "no worker holds most of them"  # what has one row (a start token) is not cut


def test_what_cannot_be_sharded_is_refused() -> None:
    model = built("raster")
    check_sharded(model, compiled=False)
    with pytest.raises(ConfigError, match=r"sharding='fsdp' with compile=true"):
        check_sharded(model, compiled=True)
    model.scale = torch.nn.Parameter(torch.ones(()))
    with pytest.raises(ConfigError, match=r"parameters without dimensions \(scale\)"):
        check_sharded(model, compiled=False)
    del model.scale
    model.phases = ("main", "discriminator")
    with pytest.raises(ConfigError, match="trains in the phases"):
        check_sharded(model, compiled=False)


def test_a_tokenizer_stays_whole_and_so_does_what_one_worker_has() -> None:
    assert type(state_of(built("vq_ste"), SETTINGS, SHARDED, CPU, 2)) is TrainState
    assert type(state_of(built("raster"), SETTINGS, SHARDED, CPU, 1)) is TrainState


@pytest.mark.parametrize(("batch", "micro", "workers"), [(7, 2, 2), (7, 0, 2), (64, 10, 3), (5, 1, 2), (64, 100, 2)])
def test_all_workers_cut_their_share_into_as_many_pieces(batch: int, micro: int, workers: int) -> None:
    count = ShardedState.passes(None, batch, micro, workers)  # type: ignore[arg-type]
    for rank in range(workers):
        start, stop = share(batch, rank, workers)
        cut = list(pieces(rows_of(zoo.batch_of(built("raster"), batch), start, stop), micro, count))
        assert len(cut) == count
        assert [first for first, _, _ in cut] == [0, *(last for _, last, _ in cut[:-1])]
        assert cut[-1][1] == stop - start
        sizes = [piece.rows for _, _, piece in cut]
        assert min(sizes) >= 1
        assert not micro or max(sizes) <= micro + 1


if __name__ == "__main__":
    torch.set_num_threads(1)
    launch(2, worker, sys.argv[1], sys.argv[2:])
