"""Nets and losses of tokenizers of small images, shared by the recipes of this folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokenloom.models.parts.losses import Adversarial, Perceptual, Pixels
from tokenloom.models.parts.nets.conv import Geometry
from tokenloom.models.parts.nets.discriminator import PatchDiscriminator

#: Arguments with which such a recipe is small enough for the contract tests.
TINY: dict[str, Any] = {"channels": 8, "multipliers": [1, 2], "patch": 2}


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Arguments of a recipe: the losses of an autoencoder.

    ``pixels`` weighs the squared error; ``adversarial`` the discriminator's loss (0 is off), from optimizer step
    ``adversarial_start`` on; ``perceptual`` is a file of LPIPS-VGG weights, off when empty.
    """

    pixels: float = 4.0
    adversarial: float = 0.0
    adversarial_start: int = 0
    perceptual: str = ""

    def losses(self, channels: int | None = None) -> dict[str, Any]:
        """The fields of ``Autoencoder.Config``; ``channels`` is the width of the discriminator's first layer."""
        discriminator = PatchDiscriminator.Config(channels=max(8, channels or 48))
        return {
            "pixels": Pixels(norm="l2", weight=self.pixels),
            "perceptual": Perceptual.Config(weights=self.perceptual) if self.perceptual else None,
            "adversarial": Adversarial.Config(weight=self.adversarial, start=self.adversarial_start, discriminator=discriminator)
            if self.adversarial
            else None,
        }


@dataclass(frozen=True, kw_only=True)
class Levels(Losses):
    """Arguments of a recipe: the levels of a convolutional net, and its losses.

    The grid is the image size over ``patch * 2 ** (len(multipliers) - 1)``.
    """

    channels: int = 48
    multipliers: tuple[int, ...] = (1, 1)
    patch: int = 4
    blocks: int = 1

    def losses(self, channels: int | None = None) -> dict[str, Any]:
        """The same, with a discriminator as wide as the convolutions if not told otherwise."""
        return super().losses(channels or self.channels)


@dataclass(frozen=True, kw_only=True)
class Small(Levels):
    """The same for VQGAN's convolutions; ``attention`` lists the levels that have it."""

    attention: tuple[int, ...] = ()

    def net(self) -> Geometry:
        """The encoder's and decoder's geometry, with nothing in the middle."""
        return Geometry(
            channels=self.channels,
            multipliers=self.multipliers,
            patch=self.patch,
            encoder_blocks=self.blocks,
            decoder_blocks=self.blocks,
            attention=self.attention,
            middle="none",
            norm_groups=8,
        )


#: Defaults of the recipes' arguments.
LOSSES, LEVELS, SMALL = Losses(), Levels(), Small()
