"""The multi-scale binary quantizer of Infinity and its self-correction (FoundationVision/Infinity, MIT, arXiv:2412.04431)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from tokenloom.models.core.config import ConfigError
from tokenloom.models.parts.quantizers.grids import pair
from tokenloom.models.parts.quantizers.multiscale_bsq import MultiScaleBSQ
from tokenloom.models.parts.quantizers.patched import Patched
from tokenloom.models.parts.quantizers.self_correction import corrected, flipped
from tokenloom.models.pretrained.names import Ignore, NameMap
from tokenloom.models.pretrained.options import Options, inert, only, used

FAMILY = "infinity_bsq"

#: Grids of 1 megapixel by height over width, as released; smaller images use the first of them.  Wide ones are tall ones turned.
GRIDS: dict[float, tuple[tuple[int, int], ...]] = {
    1.0: tuple((s, s) for s in (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64)),
    1.25: ((1, 1), (2, 2), (3, 3), *((5 * s, 4 * s) for s in (1, 2, 3, 4, 5, 6, 7, 9, 11, 14))),
    1.333: ((1, 1), (2, 2), *((4 * s, 3 * s) for s in (1, 2, 3, 4, 5, 6, 7, 9, 12, 15, 18))),
    1.5: ((1, 1), (2, 2), *((3 * s, 2 * s) for s in (1, 2, 3, 5, 7, 9, 11, 13, 16, 21, 26))),
    1.75: ((1, 1), (2, 2), (3, 3), (7, 4), (11, 6), *((7 * s, 4 * s) for s in (2, 3, 4, 5, 6, 8, 10, 12))),
    2.0: ((1, 1), (2, 2), *((2 * s, s) for s in (2, 3, 5, 8, 11, 15, 19, 23, 30, 37, 45))),
    2.5: ((1, 1), (2, 2), *((5 * s, 2 * s) for s in (1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 20))),
    3.0: ((1, 1), (2, 2), *((3 * s, s) for s in (2, 3, 5, 7, 9, 12, 15, 18, 24, 30, 37))),
}
SHAPES = GRIDS | {int(1000 / ratio) / 1000: tuple((w, h) for h, w in grids) for ratio, grids in GRIDS.items()}
#: Number of scales by the name of the image size in megapixels.
COUNTS = {"0.06M": 7, "0.25M": 10, "0.60M": 12, "1M": 13}


def scales(pn: str, h_div_w: float = 1.0) -> tuple[tuple[int, int], ...]:
    """Grids (rows, columns) of a released schedule.

    Args:
        pn: size of the images, a key of ``COUNTS``.
        h_div_w: height over width, a key of ``SHAPES``.

    Raises:
        ConfigError: there is no such schedule.
    """
    if pn not in COUNTS:
        raise ConfigError(f"pn={pn!r}: the released schedules are {', '.join(COUNTS)}")
    if h_div_w not in SHAPES:
        raise ConfigError(f"h_div_w={h_div_w}: the released shapes are {', '.join(str(r) for r in sorted(SHAPES))}")
    return SHAPES[h_div_w][: COUNTS[pn]]


OPTIONS = Options(
    dim=used("bits"),
    h_div_w=used("height over width of the images", *sorted(SHAPES), default=1.0),
    pn=used("size of the images in megapixels", *COUNTS),
    noise_apply_layers=used("scales whose bits are flipped"),
    noise_apply_strength=inert("the recorded draws have it"),
    noise_apply_requant=only(1, why="released so: later scales code what the flipped bits leave over"),
    apply_spatial_patchify=used("four cells are one token of the generator", 0, 1, default=0),
    seed=inert("draws are recorded"),
    kind=inert("of the recording"),
)


def config(info: Mapping[str, Any]) -> MultiScaleBSQ.Config:
    """Our config for ``info["config"]``; the released code has no loss of the quantizer."""
    c = OPTIONS.read(info)
    grids, side = scales(c["pn"], c["h_div_w"]), 2 if c["apply_spatial_patchify"] else 1
    return MultiScaleBSQ.Config(bits=c["dim"], scales=tuple((side * h, side * w) for h, w in grids), beta=0.0, entropy=None)


def build(info: Mapping[str, Any]) -> MultiScaleBSQ:
    """The quantizer; it has no weights."""
    settings = config(info)
    return cast(MultiScaleBSQ, settings.build(pair(settings.scales[-1])))


def names(info: Mapping[str, Any]) -> NameMap:
    """Constants only."""
    return NameMap(Ignore("quantizer.lfq.mask"))


def outputs(model: MultiScaleBSQ, info: Mapping[str, Any], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every number that the fixture records: bits, sums, inputs of a generator with and without flips, and the closest decision."""
    c, z = OPTIONS.read(info), inputs["z"]
    quantized = model(z)
    bits = model.split(quantized.ids)
    flips = [flipped(inputs[f"bsc_uniform_{s}"].flatten(1, 3), inputs[f"bsc_strength_{s}"]) for s in range(c["noise_apply_layers"])]
    tokens = _tokens(model) if c["apply_spatial_patchify"] else lambda data, first: data
    plain, mended = corrected(model, z, []), corrected(model, z, flips)
    return {
        "quantized_out": quantized.z,
        "bits": quantized.ids,
        "losses": torch.stack([quantized.losses["commitment"]] * len(model.scales)),
        "var_inputs": model.next_inputs(quantized.ids, "area"),
        "codes_last_scale": model.code(bits[-1], len(bits) - 1),
        "bsc_x_BLC_wo_prefix": tokens(model.next_inputs(mended[0]), 1),
        "bsc_gt_bits": tokens(mended[1], 0),
        "plain_x_BLC_wo_prefix": tokens(model.next_inputs(plain[0]), 1),
        "plain_gt_bits": tokens(plain[1], 0),
        "min_abs_value_at_a_sign_decision": torch.stack([_closest(model, z, given) for given in (quantized.ids, mended[0])]).min(),
    }


def _tokens(model: MultiScaleBSQ) -> Callable[[Tensor, int], Tensor]:
    """Cells (B, L, D) of the scales from the given one on, as the generator's tokens of 2 x 2 cells, (B, L / 4, 4 D)."""
    patched = Patched(Patched.Config(bits=model.config.bits, scales=model.config.scales, beta=0.0, entropy=None))

    def folded(data_BLD: Tensor, first: int) -> Tensor:
        sizes = model.scales[first:]
        parts = data_BLD.split([h * w for h, w in sizes], 1)
        return torch.cat([patched.unfold(part.float(), size) for part, size in zip(parts, sizes)], 1).to(data_BLD.dtype)

    return folded


def _closest(model: MultiScaleBSQ, z_BDHW: Tensor, bit_BLD: Tensor) -> Tensor:
    """The least absolute value whose sign is taken where ``bit_BLD`` is what the scales add up to; upstream of all that it quantizes."""
    rests = [z_BDHW - f for f in [model.start(len(z_BDHW)), *model.partial(bit_BLD)[:-1]]]
    return torch.stack([model.direction(rest, scale).abs().min() for scale, rest in enumerate(rests)]).min()
