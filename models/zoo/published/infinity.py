"""Published sizes of Infinity (arXiv:2412.04431; FoundationVision/Infinity)."""

from __future__ import annotations

from tokenloom.models.core.layout import TokenLayout
from tokenloom.models.core.published import Size, Training
from tokenloom.models.core.settings import OptimizerSettings, TrainSettings

#: Sides of the scales of a square image of a million pixels.
SIDES = (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64)
#: The released script's; its batch is that of a toy run, and no source says for how long the released models trained.
TRAINING = Training(
    settings=TrainSettings(
        epochs=1,
        batch=256,
        precision="bfloat16",
        optimizer=OptimizerSettings(
            lr=6e-3,
            betas=(0.9, 0.97),
            weight_decay=0.005,
            exempt=("vectors", "position", "temperature", "net.norm.offset", "null_text", "pool.start"),
            clip=5.0,
            warmup=0.0,
            schedule="constant",
        ),
    ),
    lr_batch=256,
    unknown=("epochs", "batch"),
)
#: Rows of the table of scales, and the rounding of the MLPs.
_OFFICIAL = {"scale_rows": 15, "multiple_of": 256}
_ROWS = (
    ("125M", 12, 768, 8, 125_185_696, 0.1),
    ("layer16", 16, 1152, 12, 361_633_792, 0.1),
    ("1B", 24, 1536, 16, 940_944_832, 0.1),
    ("layer32", 32, 2080, 20, 2_256_694_912, 0.1),
    ("layer40", 40, 2688, 24, 4_716_421_888, 0.1),
    ("layer48", 48, 3360, 28, 8_767_198_528, 0.1),
    ("2B", 32, 2048, 16, 2_204_564_032, 0.1),
    ("8B", 40, 3584, 28, 8_375_791_824, 0.1),
    ("20B", 58, 4608, 36, 19_952_199_784, 0.25),
)


def _size(name: str, depth: int, width: int, heads: int, parameters: int, drop_path: float) -> Size:
    bits = 56 if name == "8B" else 32  # of 8B four latents of 14 bits a token
    return Size(
        name=name,
        args={"depth": depth, "width": width, "heads": heads, "text": 2048, "drop_path": drop_path, **_OFFICIAL},
        parameters=parameters,
        layout=TokenLayout(grids=tuple((n, n) for n in SIDES), vocabulary=2, codebooks=bits),
        image=1024,
        classes=1,
        codec=("infinity_bsq", {"bits": bits, "scales": list(SIDES)}),
        checkpoints=("infinity_2b_reg.pth", "infinity_vae_d32reg.pth") if name == "2B" else (),
        headline={"2B": "GenEval 0.69", "8B": "GenEval 0.79"}.get(name, ""),
        training=TRAINING,
    )


SIZES = tuple(_size(*row) for row in _ROWS)
