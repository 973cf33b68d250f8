"""Published sizes of NPP on LlamaGen (arXiv:2412.15321; pytttttt/LlamaGen-NPP)."""

from __future__ import annotations

from dataclasses import replace

from tokenloom.models.core.published import Size
from tokenloom.models.zoo.published import llamagen

_SEGMENT = 1 / 300  # one epoch of warm-up in each segment


def _size(of: Size, fid: float) -> Size:
    assert of.training is not None
    train = of.training.settings
    # Each segment of the curriculum warms up, holds, and falls over its last fifth to a tenth of the rate.
    optimizer = replace(train.optimizer, warmup=_SEGMENT, hold=0.8, schedule="linear", final=0.1, restarts=(0.5,))
    settings = replace(train, optimizer=optimizer)
    departs = ("the last fifth is one of the steps after the warm-up",)
    return replace(
        of,
        published=of.name,
        checkpoints=(f"c2i_{of.name}_256.pt",),
        headline=f"FID {fid}",
        training=replace(of.training, settings=settings, departs=of.training.departs + departs),
    )


_FID = {"B": 4.47, "L": 2.76, "XL": 2.65, "XXL": 2.55}
SIZES = tuple(_size(size, _FID[size.name]) for size in llamagen.SIZES if size.name in _FID)
