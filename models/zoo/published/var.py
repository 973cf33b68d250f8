"""Published sizes of VAR (arXiv:2404.02905; FoundationVision/VAR)."""

from __future__ import annotations

from tokenloom.models.core.layout import TokenLayout
from tokenloom.models.core.published import Size, Training

SCALES_256 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
SCALES_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)


def _size(
    depth: int,
    parameters: int,
    fid: float,
    *,
    epochs: int,
    lr: float,
    final: float,
    decay: float,
    gamma: float,
    batch: int = 768,
    image: int = 256,
) -> Size:
    scales = SCALES_256 if image == 256 else SCALES_512
    return Size(
        name=f"d{depth}",
        published=f"d{depth}" if image == 256 else f"d{depth}-{image}",
        args={"depth": depth, "gamma": gamma} | ({"adaln": "shared"} if image == 512 else {}),
        parameters=parameters,
        layout=TokenLayout(grids=tuple((n, n) for n in scales), vocabulary=4096),
        image=image,
        codec=("var_vq", {"scales": list(scales), "codes": 4096, "dim": 32}),
        checkpoints=(f"var_d{depth}.pth", "vae_ch160v4096z32.pth"),
        headline=f"FID {fid}",
        training=Training(
            batch=batch,
            epochs=epochs,
            lr=lr,
            lr_batch=batch,
            betas=(0.9, 0.95),
            weight_decay=0.05,
            weight_decay_end=decay,
            exempt=("vectors", "position", "temperature", "norm.offset"),
            clip=2.0,
            warmup=epochs / 50,
            schedule="linear",
            hold=0.05,
            final=final,
            precision="float16",
            augmentation=("resize 1.125", "random crop"),
        ),
    )


SIZES = (
    _size(16, 310_283_520, 3.55, epochs=200, lr=3e-4, final=0.1, decay=0.05, gamma=1e-3),
    _size(20, 600_917_136, 2.95, epochs=250, lr=3e-4, final=0.1, decay=0.05, gamma=1e-3),
    _size(24, 1_033_399_360, 2.33, epochs=350, lr=2.4e-4, final=0.01, decay=0.05, gamma=1e-4),
    _size(30, 2_010_020_356, 1.97, epochs=350, lr=3.2e-4, final=0.01, decay=0.08, gamma=1e-5, batch=1024),
    _size(36, 2_353_893_904, 2.63, epochs=350, lr=2.4e-4, final=0.01, decay=0.08, gamma=5e-6, image=512),
)
