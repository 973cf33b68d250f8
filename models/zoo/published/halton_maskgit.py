"""Published sizes of Halton-MaskGIT (arXiv:2503.17076; llvictorll/Halton-MaskGIT)."""

from __future__ import annotations

from tokenloom.models.core.published import Size, Training, grid
from tokenloom.models.core.settings import OptimizerSettings, TrainSettings
from tokenloom.models.zoo.published import codecs

TRAINING = Training(
    settings=TrainSettings(
        steps=1_500_000,
        batch=256,
        precision="bfloat16",
        optimizer=OptimizerSettings(
            lr=1e-4,
            betas=(0.9, 0.999),
            weight_decay=0.03,
            exempt=(),
            warmup=2500 / 1_500_000,
            hold=0.9,
            schedule="cosine",
            final=0.01,
        ),
    ),
    lr_batch=256,
    augmentation=("centre crop",),
    departs=("steps are the readme's (the released configuration says 1,000,000)", "no dropout of attention weights"),
)
#: Weight of guidance of the published evaluation, where it is told.
_GUIDANCE = {"tiny": 1.5, "small": 1.0, "base": 0.7, "large": 0.5}
#: (depth, width, heads), parameters at 256 and 384 pixels, FID at both.
_TABLE: dict[str, tuple[tuple[int, int, int], tuple[int, int], tuple[float | None, float | None]]] = {
    "tiny": ((6, 384, 6), (23_031_425, 23_154_305), (10.2, None)),
    "small": ((12, 512, 6), (69_344_769, 69_508_609), (6.4, 6.11)),
    "base": ((12, 768, 12), (142_224_641, 142_470_401), (4.17, 4.15)),
    "large": ((24, 1024, 16), (479_656_961, 479_984_641), (None, 2.59)),
    "xlarge": ((28, 1152, 16), (692_118_401, 692_487_041), (None, None)),
}


def _size(name: str, image: int) -> Size:
    (depth, width, heads), parameters, fids = _TABLE[name]
    large = image == 384
    fid = fids[large]
    return Size(
        name=f"{name}-{image}",
        args={"depth": depth, "width": width, "heads": heads, "multiple_of": 256, "extra": 1}
        | ({"head_width": width // heads} if width % heads else {})
        | ({"guidance": _GUIDANCE[name]} if fid else {}),
        parameters=parameters[large],
        layout=grid(image // 16, 16384),
        image=image,
        codec=codecs.LLAMAGEN,
        checkpoints=(f"ImageNet_{image}_{name}.pth", "vq_ds16_c2i.pt") if fid else (),
        headline=f"FID {fid}" if fid else "",
        training=TRAINING if fid else None,
    )


SIZES = tuple(_size(name, image) for name in _TABLE for image in (256, 384))
