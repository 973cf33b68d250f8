"""Nets and losses of tokenizers of small images, shared by the recipes of this folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from models.parts.losses import Adversarial, Perceptual, Pixels
from models.parts.nets.conv import Geometry
from models.parts.nets.discriminator import PatchDiscriminator

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
class Small(Losses):
    """Arguments of a recipe: convolutions for small images, and their losses.

    The grid is the image size over ``patch * 2 ** (len(multipliers) - 1)``; ``attention`` lists the levels that have it.
    """

    channels: int = 48
    multipliers: tuple[int, ...] = (1, 1)
    patch: int = 4
    blocks: int = 1
    attention: tuple[int, ...] = ()

    def net(self) -> Geometry:
        """The encoder's and decoder's geometry, with nothing in the middle."""
        return small_conv(self.channels, self.multipliers, self.patch, self.blocks, self.attention)

    def losses(self, channels: int | None = None) -> dict[str, Any]:
        """The same, with a discriminator as wide as the convolutions if not told otherwise."""
        return super().losses(channels or self.channels)


#: Defaults of the recipes' arguments.
LOSSES, SMALL = Losses(), Small()


def small_conv(channels: int, multipliers: tuple[int, ...], patch: int, blocks: int = 1, attention: tuple[int, ...] = ()) -> Geometry:
    """Convolutions without attention in the middle; the grid is the image size over ``patch * 2 ** (len(multipliers) - 1)``."""
    return Geometry(
        channels=channels,
        multipliers=multipliers,
        patch=patch,
        encoder_blocks=blocks,
        decoder_blocks=blocks,
        attention=attention,
        middle="none",
        norm_groups=8,
    )


def small_losses(pixels: float = 4.0, adversarial: float = 0.0, start: int = 0, perceptual: str = "", channels: int = 48) -> dict[str, Any]:
    """The fields ``pixels``, ``perceptual`` and ``adversarial`` of an autoencoder.

    Args:
        pixels: weight of the squared error.
        adversarial: weight of the discriminator's loss, from optimizer step ``start`` on; 0 is off.
        perceptual: file of LPIPS-VGG weights; off when empty.
        channels: of the discriminator's first layer.
    """
    discriminator = PatchDiscriminator.Config(channels=max(8, channels))
    return {
        "pixels": Pixels(norm="l2", weight=pixels),
        "perceptual": Perceptual.Config(weights=perceptual) if perceptual else None,
        "adversarial": Adversarial.Config(weight=adversarial, start=start, discriminator=discriminator) if adversarial else None,
    }
