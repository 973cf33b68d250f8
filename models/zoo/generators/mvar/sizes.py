"""Published sizes of M-VAR (arXiv:2411.10433; OliverRensu/MVAR)."""

from __future__ import annotations

from tokenloom.models.core.published import Size
from tokenloom.models.zoo.published import codecs, var

#: Depth: parameters, epochs and batch of training (None: not stated), FID where one is reported.
_TABLE: dict[int, tuple[int, tuple[int, int] | None, float | None]] = {
    12: (198_435_568, (200, 768), None),
    16: (464_157_184, (200, 768), None),
    20: (900_528_736, (250, 768), None),
    24: (1_550_067_136, (350, 768), None),
    30: (3_017_065_756, (350, 1024), None),
    32: (3_658_707_968, None, 1.78),
}


def _size(depth: int) -> Size:
    parameters, training, fid = _TABLE[depth]
    plain = {"attention": "scaled"} if depth in (16, 20) else {}  # as the documentation asks for
    return Size(
        name=f"d{depth}",
        args={"depth": depth, "gamma": var.gamma(depth)} | plain,
        parameters=parameters,
        layout=var.layout(var.SCALES_256, 4096),
        codec=codecs.var(var.SCALES_256),
        checkpoints=(f"d{depth}.pth", "vae_ch160v4096z32.pth"),
        headline=f"FID {fid}" if fid else "",
        training=var.training(depth, *training) if training else None,
    )


SIZES = tuple(_size(depth) for depth in _TABLE)
