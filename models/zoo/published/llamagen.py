"""Published sizes of LlamaGen (arXiv:2406.06525; FoundationVision/LlamaGen, peizesun/llamagen_t2i)."""

from __future__ import annotations

from dataclasses import replace

from tokenloom.models.core.published import Size, Training, grid
from tokenloom.models.core.settings import OptimizerSettings, TrainSettings
from tokenloom.models.zoo.published import codecs

#: The scripts' defaults; the documentation does not state them per size.
TRAINING = Training(
    settings=TrainSettings(
        epochs=300,
        batch=256,
        precision="bfloat16",
        optimizer=OptimizerSettings(lr=1e-4, exempt=("vectors",), warmup=0.0, schedule="constant"),
    ),
    lr_batch=256,
    augmentation=("ten crops of images enlarged by 1.1, one drawn a step", "the same by 1.05, each set for half of the steps"),
    departs=("one set of ten crops, by 1.1", "all ten crops of an image are rows, drawn without return, instead of one a step"),
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
        codec=codecs.LLAMAGEN,
        checkpoints=(f"c2i_{name}_{image}.pt", "vq_ds16_c2i.pt") if fid else (),
        headline=f"FID {fid}" if fid else "",
        training=TRAINING,
    )


def _of_text(image: int) -> Size:
    """The model of texts: XL on features of flan-t5-xl; its parameters are counted without the null text, which is not trained."""
    return Size(
        name="XL-t2i" if image == 256 else f"XL-t2i-{image}",
        published=f"XL-t2i-{image}",
        args=dict(zip(("depth", "width", "heads"), _TABLE["XL"][0])) | {"multiple_of": 256, "text": 2048},
        parameters=777_678_080,
        layout=grid(image // 16, 16384),
        image=image,
        codec=codecs.LLAMAGEN,
        checkpoints=("t2i_XL_stage1_256.pt" if image == 256 else "t2i_XL_stage2_512.pt", "vq_ds16_t2i.pt"),
        training=replace(TRAINING, augmentation=(), departs=("the batch and the length of the real training are not told",)),
    )


SIZES = (*(_size(name, image) for name in _TABLE for image in (256, 384)), _of_text(256), _of_text(512))
