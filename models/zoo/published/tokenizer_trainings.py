"""Published trainings of tokenizers, and the losses that belong to them; each side has an optimizer of its own."""

from __future__ import annotations

from typing import Any

from tokenloom.models.core.augmentation import Augmentation, RandomCrop
from tokenloom.models.core.published import Training
from tokenloom.models.core.settings import OptimizerSettings, TrainSettings

LPIPS = "without the perceptual loss unless the run names its weights (args.perceptual)"
_MEAN = "the cross-entropy of deceiving the discriminator is that of each logit, not of an image's mean"
CEILING = "the adaptive weight of the adversarial loss is at most one (published: 10,000)"
_FIRST = "the tokenizer takes its step before the discriminator"


def adam(
    betas: tuple[float, float], drops: tuple[tuple[float, float], ...] = (), clip: float = 0.0, lr: float = 1e-4, **more: Any
) -> OptimizerSettings:
    """Adam without weight decay or warm-up, of either side."""
    plain: dict[str, Any] = {"kind": "adam", "weight_decay": 0.0, "warmup": 0.0, "schedule": "drops" if drops else "constant"}
    return OptimizerSettings(lr=lr, betas=betas, clip=clip, drops=drops, **plain | more)


def _sides(optimizer: OptimizerSettings, **settings: Any) -> TrainSettings:
    """Both sides under the same optimizer, the discriminator's resting until it begins."""
    return TrainSettings(optimizer=optimizer, phases={"discriminator": optimizer}, **settings)


#: LlamaGen's (arXiv:2406.06525).
LLAMAGEN_LOSSES = {"pixels": 1.0, "adversarial": 0.5, "adversarial_start": 20_000, "balance": "constant", "judge": "patchgan"}
LLAMAGEN = Training(
    settings=_sides(
        adam((0.9, 0.95), clip=1.0),
        epochs=40,
        batch=128,
        precision="bfloat16",
        augment=Augmentation(random_crop=RandomCrop(scale=(1.0, 1.25)), flip=0.5),
    ),
    augmentation=("random crop of 0.8 to 1.0 of the shorter side", "flip"),
    departs=(LPIPS,),
)

#: Of SEED-Voken: IBQ (arXiv:2412.02692) and Open-MAGVIT2 (arXiv:2409.04410).
SEED_VOKEN_LOSSES = {
    **{"pixels": 1.0, "reconstruction": "l1", "adversarial": 0.1, "balance": "constant", "judge": "patchgan"},
    **{"deceit": "non_saturating", "lecam": 0.05},
}


def seed_voken(epochs: int, *drops: int) -> Training:
    """So many epochs, the learning rate times 0.1 after each of ``drops``."""
    shares = tuple((epoch / epochs, 0.1**number) for number, epoch in enumerate(drops, 1))
    return Training(
        settings=_sides(
            adam((0.5, 0.9), shares),
            epochs=epochs,
            batch=256,
            precision="bfloat16",
            ema=0.999,
            augment=Augmentation(random_crop=RandomCrop(scale=(1.0, 1.0), resample="bilinear")),
        ),
        augmentation=("resize", "random crop"),
        departs=(LPIPS, _MEAN, _FIRST),
    )


#: SimVQ (arXiv:2411.02038).
SIMVQ_LOSSES = {"pixels": 1.0, "reconstruction": "l1", "adversarial": 0.1, "balance": "constant", "judge": "patchgan"}
SIMVQ = Training(
    settings=_sides(adam((0.5, 0.9)), epochs=50, batch=64, precision="bfloat16"),
    unknown=("ema",),
    departs=(LPIPS, "half precision is bfloat16", "neither a schedule nor crops are told"),
)

#: VQGAN (arXiv:2012.09841) and latent diffusion (arXiv:2112.10752): the learning rate is 4.5e-6 for each image of the global batch.
_PER_IMAGE = 4.5e-6
_CROP = Augmentation(random_crop=RandomCrop(scale=(1.0, 1.0), resample="bilinear"))


def compvis_losses(weight: float, start: int) -> dict[str, Any]:
    """The absolute error, and PatchGAN's hinge loss by the ratio of gradients, from a step on."""
    return {"pixels": 1.0, "reconstruction": "l1", "adversarial": weight, "adversarial_start": start, "judge": "patchgan"}


def compvis(steps: int | None, *departs: str) -> Training:
    """Of so many steps (None: nobody says how many); how many accelerators, and so the batch, is not told."""
    settings = _sides(adam((0.5, 0.9), lr=_PER_IMAGE), steps=steps or 1, batch=1, augment=_CROP)
    unknown = ("batch",) if steps else ("batch", "steps")
    return Training(
        settings=settings, lr_batch=1, unknown=unknown, augmentation=("resize", "random crop"), departs=(LPIPS, CEILING, *departs)
    )


_LOGVAR = "the deviation of the reconstruction is not learned", "trained on OpenImages, from 384 pixels"
KL = {name: compvis(steps, *_LOGVAR) for name, steps in (("f4", 176_991), ("f8", 246_803), ("f16", 442_998), ("f32", 406_763))}
#: MAR's KL-16 (arXiv:2406.11838): the recipe of latent diffusion's, on ImageNet (an answer of the authors).
MAR_KL = Training(
    settings=_sides(adam((0.5, 0.9)), epochs=50, batch=256, augment=_CROP),
    departs=(LPIPS, CEILING, _LOGVAR[0], "average and crops are not told"),
)

#: MaskGIT's VQGAN (arXiv:2202.04200).
MASKGIT_LOSSES = {
    **{"pixels": 1.0, "adversarial": 0.1, "balance": "constant", "judge": "stylegan", "deceit": "non_saturating"},
    **{"verdict": "vanilla", "r1": 10.0},
}
MASKGIT = Training(
    settings=_sides(adam((0.0, 0.99)), steps=1_000_000, batch=256),
    departs=("without the perceptual loss on a classifier's features", "without the entropy loss of the codebook"),
)

#: BSQ-ViT (arXiv:2406.07548): the learning rate is 4e-7 for each image of the global batch.
_BSQ_ADAM = OptimizerSettings(
    lr=4e-7, betas=(0.9, 0.99), weight_decay=1e-4, clip=0.0, warmup=5_000 / 1_000_000, schedule="cosine", final=0.5
)
BSQ = Training(
    settings=_sides(_BSQ_ADAM, steps=1_000_000, batch=1, precision="bfloat16", ema=0.999, augment=_CROP),
    lr_batch=1,
    unknown=("batch",),
    augmentation=("resize", "random crop"),
    departs=(
        LPIPS,
        "the codebook's loss has its last weight from the start (published: falls from three times it)",
    ),
)

#: TiTok's two stages (arXiv:2406.07550): a million steps on the base's codes, then half a million on pixels.
_TITOK_STEPS, _TITOK_FIRST = 1_500_000, 1_000_000
TITOK_LOSSES = {
    **{"stage2": 1 - _TITOK_FIRST / _TITOK_STEPS, "pixels": 1.0, "adversarial": 0.01, "adversarial_start": _TITOK_FIRST + 20_000},
    **{"balance": "constant", "judge": "blurring", "lecam": 0.001},
}
_TITOK_ADAM: dict[str, Any] = {"lr": 1e-4, "weight_decay": 1e-4, "clip": 1.0, "schedule": "cosine", "final": 0.1}
TITOK = Training(
    settings=TrainSettings(
        steps=_TITOK_STEPS,
        batch=256,
        precision="bfloat16",
        ema=0.999,
        optimizer=OptimizerSettings(betas=(0.9, 0.99), warmup=0.01, restarts=(_TITOK_FIRST / _TITOK_STEPS,), **_TITOK_ADAM),
        phases={"discriminator": OptimizerSettings(betas=(0.9, 0.999), warmup=0.01, **_TITOK_ADAM)},
        augment=Augmentation(random_crop=RandomCrop(scale=(1.0, 1.0)), flip=0.5),
    ),
    augmentation=("resize to 256, bicubic", "random crop", "flip"),
    departs=(
        "without the ConvNeXt-S loss of the second stage",
        "the second stage keeps the first one's betas (published: 0.9 and 0.999)",
        "half precision is bfloat16",
    ),
)
