"""Published sizes of HMAR (arXiv:2506.04421; NVlabs/HMAR)."""

from __future__ import annotations

from dataclasses import replace

from tokenloom.models.core.published import Size, Training
from tokenloom.models.zoo.published import codecs, var

#: Dial: parameters of both towers, and epochs and batch of the next-scale model (the masked part takes a hundred epochs more),
#: and the sampler's guidance and top-k.
_TABLE = {
    16: (467_691_904, 200, 768, 1.7, 1000),
    20: (845_517_872, 250, 768, 1.9, 950),
    24: (1_384_328_960, 350, 768, 2.1, 900),
    30: (2_556_324_212, 350, 1024, 1.6, 650),
}
_MASKED = 100


def _training(depth: int, epochs: int, batch: int) -> Training:
    """VAR's schedule twice, one after the other: of the next-scale model and of its second tower."""
    found, total = var.training(depth, epochs, batch), epochs + _MASKED
    settings = found.settings
    # The warm-up is a fiftieth of the epochs of a part.
    optimizer = replace(settings.optimizer, warmup=epochs / 50 / total, restarts=(epochs / total,))
    departs = (*found.departs, "the second part warms up for as many steps as the first")
    return replace(found, settings=replace(settings, epochs=total, optimizer=optimizer), departs=departs)


def _size(depth: int) -> Size:
    parameters, epochs, batch, guidance, top_k = _TABLE[depth]
    return Size(
        name=f"d{depth}",
        args={
            **{"depth": depth, "gamma": var.gamma(depth), "start": epochs / (epochs + _MASKED)},
            **{"guidance": guidance, "top_k": top_k},
        },
        parameters=parameters,
        layout=var.layout(var.SCALES_256, 4096),
        codec=codecs.var(var.SCALES_256),
        checkpoints=(f"hmar-d{depth}.pth", "vae_ch160v4096z32.pth"),
        training=_training(depth, epochs, batch),
    )


SIZES = tuple(_size(depth) for depth in _TABLE)
