"""Published sizes of LlamaGen (arXiv:2406.06525; FoundationVision/LlamaGen, peizesun/llamagen_t2i)."""

from __future__ import annotations

from tokenloom.models.core.published import Size, Training, grid

#: The scripts' defaults; the documentation does not state them per size.
TRAINING = Training(
    batch=256,
    epochs=300,
    lr=1e-4,
    lr_batch=256,
    betas=(0.9, 0.95),
    weight_decay=0.05,
    exempt=("vectors",),
    clip=1.0,
    schedule="constant",
    precision="bfloat16",
    augmentation=("ten-crop 1.1", "ten-crop 1.05"),
)
#: Dial: (depth, width, heads), parameters, FID at 256 and at 384 pixels where weights were released.
_TABLE: dict[str, tuple[tuple[int, int, int], int, float | None, float | None]] = {
    "B": ((12, 768, 12), 110_888_448, 5.46, 6.09),
    "L": ((24, 1024, 16), 342_910_976, 3.80, 3.07),
    "XL": ((36, 1280, 20), 774_699_520, None, 2.62),
    "XXL": ((48, 1536, 24), 1_410_972_672, None, 2.34),
    "3B": ((24, 3200, 32), 3_096_659_200, None, 2.18),
    "1B": ((22, 2048, 32), 1_199_616_000, None, None),
}


def _size(name: str, image: int) -> Size:
    (depth, width, heads), parameters, *fids = _TABLE[name]
    fid = fids[image == 384]
    return Size(
        name=name if image == 256 else f"{name}-384",
        published=f"{name}-c2i-{image}",
        args={"depth": depth, "width": width, "heads": heads, "multiple_of": 256},
        parameters=parameters,
        layout=grid(image // 16, 16384),
        image=image,
        codec=("vq", {"codes": 16384}),
        checkpoints=(f"c2i_{name}_{image}.pt", "vq_ds16_c2i.pt") if fid else (),
        headline=f"FID {fid}" if fid else "",
        training=TRAINING,
    )


SIZES = tuple(_size(name, image) for name in _TABLE for image in (256, 384))
