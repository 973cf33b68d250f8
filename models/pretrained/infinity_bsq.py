"""The multi-scale binary quantizer of Infinity and its self-correction (FoundationVision/Infinity, MIT, arXiv:2412.04431)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tokenloom.models.parts.quantizers.multiscale_bsq import MultiScaleBSQ
from tokenloom.models.parts.quantizers.self_correction import SelfCorrection, corrected, flipped
from tokenloom.models.pretrained.names import Ignore, NameMap

FAMILY = "infinity_bsq"

#: Sides of the square grids by name of the schedule, as released.
SCALES = {"0.06M": (1, 2, 4, 6, 8, 12, 16)}


def config(info: Mapping[str, Any]) -> MultiScaleBSQ.Config:
    """Our config for ``info["config"]``; the released code has no loss of the quantizer."""
    c = info["config"]
    if c["h_div_w"] != 1.0 or c["pn"] not in SCALES:
        raise ValueError(f"h_div_w={c['h_div_w']}, pn={c['pn']!r}: only square schedules of {sorted(SCALES)}")
    return MultiScaleBSQ.Config(bits=c["dim"], scales=SCALES[c["pn"]], beta=0.0, entropy=None)


def correction(info: Mapping[str, Any]) -> SelfCorrection:
    """Self-correction of these settings."""
    c = info["config"]
    return SelfCorrection(strength=c["noise_apply_strength"], scales=c["noise_apply_layers"])


def build(info: Mapping[str, Any]) -> MultiScaleBSQ:
    """The quantizer; it has no weights."""
    settings = config(info)
    return settings.build((settings.scales[-1],) * 2)


def names(info: Mapping[str, Any]) -> NameMap:
    """Constants only."""
    return NameMap(Ignore("quantizer.lfq.mask"))


def outputs(model: MultiScaleBSQ, info: Mapping[str, Any], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every number that the fixture records: bits, sums, inputs of a generator with and without flips, and the closest decision."""
    z = inputs["z"]
    quantized = model(z)
    bits = model.split(quantized.ids)
    rests = [z - f for f in [model.start(len(z)), *model.partial(quantized.ids)[:-1]]]
    closest = torch.stack([model.direction(rest, scale).abs().min() for scale, rest in enumerate(rests)]).min()
    flips = [flipped(inputs[f"bsc_uniform_{s}"].flatten(1, 3), inputs[f"bsc_strength_{s}"]) for s in range(correction(info).scales)]
    plain, mended = corrected(model, z, []), corrected(model, z, flips)
    return {
        "quantized_out": quantized.z,
        "bits": quantized.ids,
        "losses": torch.stack([quantized.losses["commitment"]] * len(model.scales)),
        "var_inputs": model.next_inputs(quantized.ids, "area"),
        "codes_last_scale": model.code(bits[-1], len(bits) - 1),
        "bsc_x_BLC_wo_prefix": model.next_inputs(mended[0]),
        "bsc_gt_bits": mended[1],
        "plain_x_BLC_wo_prefix": model.next_inputs(plain[0]),
        "plain_gt_bits": plain[1],
        "min_abs_value_at_a_sign_decision": closest,
    }
