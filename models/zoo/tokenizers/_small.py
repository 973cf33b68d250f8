"""Nets and losses of tokenizers of small images, shared by the recipes of this folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from tokenloom.models.parts.adversarial.base import Discriminator
from tokenloom.models.parts.adversarial.loss import R1, Adversarial, LeCam
from tokenloom.models.parts.adversarial.patch import Blurring, PatchDiscriminator, PatchGAN
from tokenloom.models.parts.adversarial.stylegan import StyleGAN2
from tokenloom.models.parts.losses import LogitLaplace, Perceptual, Pixels
from tokenloom.models.parts.nets.conv import Geometry
from tokenloom.models.parts.nets.magvit import Magvit
from tokenloom.models.parts.quantizers.codebook import EMA, Codebook, Revival
from tokenloom.models.parts.quantizers.kmeans import KMeans
from tokenloom.models.parts.quantizers.vq import VQ

#: Arguments with which such a recipe is small enough for the contract tests.
TINY: dict[str, Any] = {"channels": 8, "multipliers": [1, 2], "patch": 2}


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Arguments of a recipe: the losses of an autoencoder.

    ``pixels`` weighs the squared (l2) or absolute (l1) error; ``adversarial`` the discriminator's loss (0 is off), from optimizer step
    ``adversarial_start`` on; ``perceptual`` is a file of LPIPS-VGG weights, off when empty.  The ``judge`` is a small patch
    discriminator, or PatchGAN, the blurring one or StyleGAN's (of images of ``judge_side`` pixels) as published; ``verdict`` is its
    loss, ``deceit`` that of deceiving it; ``lecam`` and ``r1`` are the weights of those penalties; ``perceptual_weight`` and
    ``laplace`` those of LPIPS and of the logit-Laplace loss.
    """

    pixels: float = 4.0
    adversarial: float = 0.0
    adversarial_start: int = 0
    perceptual: str = ""
    reconstruction: Literal["l2", "l1"] = "l2"
    judge: Literal["small", "patchgan", "blurring", "stylegan"] = "small"
    balance: Literal["adaptive", "constant"] = "adaptive"
    deceit: Literal["logit", "non_saturating"] = "logit"
    lecam: float = 0.0
    verdict: Literal["hinge", "vanilla"] = "hinge"
    r1: float = 0.0
    judge_side: int = 256
    perceptual_weight: float = 1.0
    laplace: float = 0.0

    def losses(self, channels: int | None = None) -> dict[str, Any]:
        """The fields of ``Autoencoder.Config``; ``channels`` is the width of the discriminator's first layer."""
        return {
            "pixels": Pixels(norm=self.reconstruction, weight=self.pixels),
            "perceptual": Perceptual.Config(weights=self.perceptual, weight=self.perceptual_weight) if self.perceptual else None,
            "logit_laplace": LogitLaplace(weight=self.laplace) if self.laplace else None,
            "adversarial": self._adversarial(max(8, channels or 48)) if self.adversarial else None,
        }

    def _adversarial(self, channels: int) -> Adversarial.Config:
        judges: dict[str, Discriminator] = {
            "small": PatchDiscriminator.Config(channels=channels),
            "patchgan": PatchGAN.Config(),
            "blurring": Blurring.Config(),
        }
        if self.judge == "stylegan":
            judges["stylegan"] = StyleGAN2.Config(side=self.judge_side)
        return Adversarial.Config(
            weight=self.adversarial,
            start=self.adversarial_start,
            balance=self.balance,
            discriminator=judges[self.judge],
            loss=self.verdict,
            generator=self.deceit,
            r1=R1(gamma=self.r1) if self.r1 else None,
            lecam=LeCam(weight=self.lecam) if self.lecam else None,
        )


@dataclass(frozen=True, kw_only=True)
class Levels(Losses):
    """Arguments of a recipe: the levels of a convolutional net, and its losses.

    The grid is the image size over ``patch * 2 ** (len(multipliers) - 1)``.  ``stem`` channels at the full resolution begin the
    convolutions that lead to a ``patch`` larger than 1 (0: one convolution cuts patches, and their grid shows).
    """

    channels: int = 48
    multipliers: tuple[int, ...] = (1, 1)
    patch: int = 4
    blocks: int = 1
    stem: int = 8

    @property
    def stem_of_patch(self) -> int:
        """The stem's channels; none where there is no patch to lead to."""
        return self.stem if self.patch > 1 else 0

    def losses(self, channels: int | None = None) -> dict[str, Any]:
        """The same, with a discriminator by default as wide as the convolutions."""
        return super().losses(channels or self.channels)


@dataclass(frozen=True, kw_only=True)
class Small(Levels):
    """The same for VQGAN's convolutions; ``attention`` lists the levels that have it.

    ``decoder_…`` is the decoder's own (0, empty or none: as the encoder's); ``middle`` what stands at the lowest resolution;
    ``latent`` channels leave the encoder (0: as many as its first level has).
    """

    attention: tuple[int, ...] = ()
    decoder_blocks: int = 0
    decoder_multipliers: tuple[int, ...] = ()
    decoder_attention: tuple[int, ...] | None = None
    middle: Literal["attention", "blocks", "none"] = "none"
    norm_groups: int = 8
    resample: Literal["conv", "pool"] = "conv"
    latent: int = 0

    def net(self) -> Geometry:
        """The encoder's and decoder's geometry."""
        return Geometry(
            channels=self.channels,
            multipliers=self.multipliers,
            patch=self.patch,
            encoder_blocks=self.blocks,
            decoder_blocks=self.decoder_blocks or self.blocks,
            attention=self.attention,
            middle=self.middle,
            norm_groups=self.norm_groups,
            decoder_multipliers=self.decoder_multipliers,
            decoder_attention=self.decoder_attention,
            resample=self.resample,
            stem=self.stem_of_patch,
        )

    def magvit(self, levels: Literal["adaptive", "none"] = "adaptive") -> Magvit:
        """The net of Open-MAGVIT2 with these widths, levels and blocks; ``levels`` of its decoder have such norms."""
        shape: dict[str, Any] = {"channels": self.channels, "multipliers": self.multipliers, "blocks": self.blocks}
        return Magvit(norm_groups=self.norm_groups, levels=levels, **shape)

    @property
    def out(self) -> int:
        """Channels that leave the encoder."""
        return self.latent or self.channels


#: Arguments of VQGAN's convolutions as published (arXiv:2012.09841), for a net of so many levels; LlamaGen's and VAR's have attention at
#: the lowest one.
def published(levels: int) -> dict[str, Any]:
    """Arguments of the published geometry, of which widths and levels differ from one model to the other."""
    return {"patch": 1, "blocks": 2, "decoder_blocks": 3, "attention": [levels - 1], "middle": "attention", "norm_groups": 32}


def codebook(codes: int, dim: int, metric: Literal["l2", "cosine"], update: Literal["averages", "learned"]) -> Codebook.Config:
    """A codebook of moving averages, whose codes out of use are revived, or one that is learned, as published."""
    if update == "learned":
        return Codebook.Config(codes=codes, dim=dim, metric=metric)
    return Codebook.Config(codes=codes, dim=dim, metric=metric, update=EMA(), revival=Revival(threshold=0.2))


def averaged(codes: int, dim: int, beta: float, decay: float) -> VQ.Config:
    """One of several codebooks of a position: moving averages from a k-means start, codes out of use revived."""
    codebook = Codebook.Config(codes=codes, dim=dim, update=EMA(decay=decay), start=KMeans(), revival=Revival(threshold=0.2))
    return VQ.Config(codebook=codebook, beta=beta)


#: Defaults of the recipes' arguments.
LOSSES, LEVELS, SMALL = Losses(), Levels(), Small()
