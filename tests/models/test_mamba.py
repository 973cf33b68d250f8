"""State spaces held to an independent implementation: weights, inputs and outputs of the mixers of transformers 4.46.3, in plain torch."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tokenloom.models.core.protocols import TokenLayout
from tokenloom.models.parts.nets.mamba import Selective
from tokenloom.models.parts.nets.mamba2 import Dual
from tokenloom.models.parts.nets.sequence import Mixer
from tokenloom.models.zoo.generators.aim.norm import RMSAdaLN
from tokenloom.models.zoo.generators.aim.recipe import aim

GOLDEN = load_file(str(Path(__file__).parents[1] / "fixtures" / "mamba.safetensors"))
#: The reference's names to ours; those of the plain mixer, then those of Mamba-2.
NAMES = {
    "mamba": {
        "in_proj.weight": "enter.weight",
        "conv1d.weight": "conv.weight",
        "conv1d.bias": "conv.bias",
        "x_proj.weight": "coefficients.weight",
        "dt_proj.weight": "step.weight",
        "dt_proj.bias": "step_bias",
        "A_log": "log_rate",
        "D": "skip",
        "out_proj.weight": "out.weight",
    },
    "mamba2": {
        "in_proj.weight": "enter.weight",
        "conv1d.weight": "conv.weight",
        "conv1d.bias": "conv.bias",
        "dt_bias": "step_bias",
        "A_log": "log_rate",
        "D": "skip",
        "norm.weight": "norm.weight",
        "out_proj.weight": "out.weight",
    },
}
MIXERS: dict[str, Mixer.Config] = {
    "mamba": Selective.Config(states=4, rank=3),
    "mamba2": Dual.Config(states=8, head_width=8, chunk=4),
}


def loaded(name: str) -> Mixer:
    mixer = MIXERS[name].build(16)
    own: dict[str, Tensor] = dict(mixer.state_dict())
    assert set(own) == set(NAMES[name].values())
    mixer.load_state_dict({mine: GOLDEN[f"{name}.{theirs}"].view_as(own[mine]) for theirs, mine in NAMES[name].items()}, strict=True)
    return mixer.eval()


@pytest.mark.parametrize("name", MIXERS)
@torch.no_grad()
def test_a_mixer_gives_the_reference_s_numbers(name: str) -> None:
    mixer, x, y = loaded(name), GOLDEN["x"], GOLDEN[f"{name}.y"]
    torch.testing.assert_close(mixer(x), y, atol=2e-5, rtol=1e-4)
    state = mixer.state(len(x), x)
    steps = [mixer(x[:, :3], state), *(mixer(x[:, t : t + 1], state) for t in range(3, x.shape[1]))]
    torch.testing.assert_close(torch.cat(steps, 1), y, atol=2e-5, rtol=1e-4)


def test_the_recorded_numbers_are_those_of_a_plain_recurrence() -> None:
    spec = importlib.util.spec_from_file_location("make_mamba", Path(__file__).parents[1] / "fixtures" / "make_mamba.py")
    assert spec is not None
    assert spec.loader is not None
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    for name, value in maker.outputs({key: tensor.numpy() for key, tensor in GOLDEN.items()}).items():
        torch.testing.assert_close(torch.from_numpy(value).float(), GOLDEN[name], atol=2e-5, rtol=1e-4)


def test_the_table_of_embeddings_is_the_output_map() -> None:
    layout = TokenLayout(grids=((2, 2),), vocabulary=7)
    model = aim(depth=1, width=16, states=2, head_width=8).build(layout, 2)
    assert not [name for name, _ in model.named_parameters() if name.startswith("head.")]
    h = torch.randn(1, 1, 16)
    torch.testing.assert_close(model.head.logits(h), h @ model.feed.table.books[0].weight.T)


@torch.no_grad()
def test_blocks_have_maps_of_their_own_or_take_turns() -> None:
    steer = torch.randn(3, 1, 16, generator=torch.Generator().manual_seed(0))
    own, groups = (RMSAdaLN.Config(maps=maps).build(16, 4, 1) for maps in (0, 2))
    assert (len(own.maps), len(groups.maps)) == (4, 2)
    for norm in (own, groups):
        norm.initialise()
        for linear in norm.maps:
            torch.nn.init.zeros_(linear.bias)  # type: ignore[arg-type]  # as the net has them
    gate = own.modulate(1, steer, own.shared(steer))[0]
    assert gate is not None
    assert float(gate[0].abs().max()) == 0  # blocks start as identities
    assert groups.offset is not None
    groups.offset.weight.zero_()
    found = [groups.modulate(i, steer, groups.shared(steer))[0][0] for i in range(4)]  # type: ignore[index]
    assert torch.equal(found[0], found[2])
    assert not torch.allclose(found[0], found[1])
