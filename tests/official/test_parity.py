"""Official weights, official numbers: every fixture of two folders through the family of its name.

``parity_options`` holds the same families with other options of their constructors and samplers.  ``TOKENLOOM_PARITY`` names another
folder in place of both.  A fixture is NAME.json (settings, tensors) and
NAME.safetensors (``state*/…`` official weights, ``in/…``, ``out/…``).  Integers must be equal; floats within
2e-5 of the scale of the expected tensor, gradient norms within 1e-4.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tokenloom.models.parts import time
from tokenloom.models.pretrained import families
from tokenloom.models.pretrained.parity import load, official_state

OWN = Path(__file__).parents[1] / "fixtures"
FOLDERS = [Path(os.environ["TOKENLOOM_PARITY"])] if "TOKENLOOM_PARITY" in os.environ else [OWN / "parity", OWN / "parity_options"]
FIXTURES = [path for folder in FOLDERS for path in sorted(folder.glob("*.json"))]


def named(path: Path) -> str:
    return path.stem if path.parent == FOLDERS[0] else f"{path.stem}-options"


#: Fixtures whose own recorded noise (other kernels, weight noise of one part in 10^6) needs a wider bound, with it.
WIDER: dict[str, float] = {}
#: The one exemption from the bound: outputs with values rounded to bfloat16 inside, by fixture, with the output in float32 alone. Where a
#: value lies between two bfloat16 numbers, the last bit of a kernel's sum decides, and that differs from processor to processor.
BFLOAT16 = {name: {"logits_bf16_cross_attention": "logits_BLV"} for name in ("infinity", "infinity_patchify")}
#: Outputs left out, by fixture, with the reason.
LEFT_OUT: dict[str, dict[str, str]] = {}
#: Last bits in which the recording's ``exp`` left the correctly rounded frequencies of times, by fixture: how many there are, which one,
#: by how many units. The exact 13th lies 0.473 of a unit above the rounded one; kernels of other processors round others like it up.
#: Through times of 750, and the first step of DDIM, which divides by the root of a signal of 0.003, one unit moves samples by 5e-5.
EXPONENTIALS: dict[str, tuple[int, int, int]] = {"acdit_deep": (128, 13, 1)}


def recorded(count: int, entry: int, units: int, device: torch.device) -> torch.Tensor:
    """So many frequencies of times: float32 arguments as ever, ``exp`` rounded correctly, but for one entry."""
    rate = torch.exp((-math.log(10_000) * torch.arange(count, device=device) / count).double()).float()
    for _ in range(units):
        rate[entry] = torch.nextafter(rate[entry], rate.new_tensor(math.inf))
    return rate


def test_there_are_fixtures() -> None:
    assert all(list(folder.glob("*.json")) for folder in FOLDERS), f"no fixtures in one of {FOLDERS}"


@pytest.mark.parametrize("path", FIXTURES, ids=named)
def test_official_numbers(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = families().get(path.stem)
    if family is None:
        pytest.skip(f"family {path.stem!r} is not supported yet")
    info = json.loads(path.read_text())
    tensors = load_file(str(path.with_suffix(".safetensors")))
    inputs = {k[3:]: v for k, v in tensors.items() if k.startswith("in/")}
    expected = {k[4:]: v for k, v in tensors.items() if k.startswith("out/")}
    if path.stem in EXPONENTIALS:
        asked, entry, units = EXPONENTIALS[path.stem]

        def replayed(count: int, device: torch.device) -> torch.Tensor:
            assert count == asked
            return recorded(count, entry, units, device)

        monkeypatch.setattr(time, "frequencies", replayed)
    model = load(family, info, tensors)
    got = family.outputs(model, info, inputs)
    left_out = LEFT_OUT.get(path.stem, {})
    assert set(got) | set(left_out) == set(expected), "outputs not computed, or not in the fixture"
    exempt = BFLOAT16.get(path.stem, {})
    exact = expected.keys() - left_out.keys() - exempt.keys()
    wrong = [line for name in sorted(exact) if (line := difference(path.stem, name, got[name], expected[name]))]
    wrong += [line for name, plain in exempt.items() if (line := not_rounded_so(name, got[name], expected[name], got[plain]))]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", FIXTURES, ids=named)
def test_names_go_both_ways(path: Path) -> None:
    family = families().get(path.stem)
    if family is None:
        pytest.skip(f"family {path.stem!r} is not supported yet")
    info = json.loads(path.read_text())
    state = official_state(load_file(str(path.with_suffix(".safetensors"))))
    names = family.names(info)
    back = names.dump(names.load(state))
    assert set(back) <= set(state)
    assert all(torch.equal(back[k], state[k]) for k in back)


def difference(fixture: str, name: str, got: torch.Tensor, expected: torch.Tensor) -> str | None:
    """One line on how an output differs too much, or None."""
    if got.shape != expected.shape:
        return f"{name}: shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
    if not expected.is_floating_point():
        unequal = int((got != expected).sum())
        return f"{name}: {unequal} of {expected.numel()} integers differ" if unequal else None
    bound = max(WIDER.get(fixture, 0.0), 1e-4 if "grad_norm" in name else 2e-5) * max(1.0, float(expected.abs().max()))
    worst = float((got - expected).abs().max())
    return f"{name}: off by {worst:.3g}, bound {bound:.3g}" if not worst <= bound else None


def not_rounded_so(name: str, got: torch.Tensor, expected: torch.Tensor, plain: torch.Tensor) -> str | None:
    """One line on how an output with bfloat16 inside is no rounding of our own float32 output ``plain``, or None.

    It must lie within bfloat16's unit roundoff (2^-8) of the scale of ``plain``, and ours, rounded in the same places, must leave at most a
    quarter of the distance between them: single values may fall to the other side of a rounding, not most.
    """
    bound = 2.0**-8 * float(expected.abs().max())
    worst, left = float((expected - plain).abs().max()), float((got - expected).norm() / (expected - plain).norm())
    return f"{name}: off by {worst:.3g}, bound {bound:.3g}; {left:.2f} of it unexplained" if not (worst <= bound and left <= 0.25) else None
