"""How the items of a training are varied from step to step: values of its settings, drawn by key from (seed, step, row).

The draws are made for the global batch and cut to the rows at hand, so that any number of workers sees the same items and a resumed
run repeats them.  A *crop* is of the item at a size relative to that of the signal: ``scale`` 1.125 is an item whose shorter side is
1.125 times the signal's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from tokenloom.models.core.config import ConfigError, Identity

Resample = Literal["bicubic", "lanczos", "bilinear"]
#: Largest enlargement that a crop may ask for.
_LARGEST = 4.0


@dataclass(frozen=True, kw_only=True)
class RandomCrop:
    """The item with its shorter side at a drawn whole number of pixels between two scales, and a crop anywhere in it.

    One scale twice is the crop of VAR (arXiv:2404.02905, 1.125); two are ``random_crop_arr`` of guided diffusion (arXiv:2105.05233).
    """

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "allow_inf_nan": False}

    scale: Identity[tuple[float, float]] = (1.125, 1.125)
    resample: Identity[Resample] = "bicubic"

    def __post_init__(self) -> None:
        _check_interval("random_crop.scale", self.scale, 1.0, _LARGEST)


@dataclass(frozen=True, kw_only=True)
class RandomResizedCrop:
    """A crop of a drawn share of the area and a drawn aspect ratio, resized to the signal (arXiv:1409.4842, section 6)."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "allow_inf_nan": False}

    area: Identity[tuple[float, float]] = (0.08, 1.0)
    ratio: Identity[tuple[float, float]] = (3 / 4, 4 / 3)
    resample: Identity[Resample] = "bilinear"

    def __post_init__(self) -> None:
        _check_interval("random_resized_crop.area", self.area, 1e-3, 1.0)
        _check_interval("random_resized_crop.ratio", self.ratio, 0.1, 10.0)


@dataclass(frozen=True, kw_only=True)
class TenCrop:
    """One of ten: corners and centre of the centred square at a scale, each also mirrored (LlamaGen, arXiv:2406.06525: 1.1)."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "allow_inf_nan": False}

    scale: Identity[float] = 1.1
    resample: Identity[Resample] = "bicubic"

    def __post_init__(self) -> None:
        _check_interval("ten_crop.scale", (self.scale, self.scale), 1.0, _LARGEST)


@dataclass(frozen=True, kw_only=True)
class Colour:
    """Factors of brightness, contrast and saturation, each drawn between 1 - x and 1 + x, applied in a drawn order."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "allow_inf_nan": False}

    brightness: Identity[float] = 0.0
    contrast: Identity[float] = 0.0
    saturation: Identity[float] = 0.0

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"augment.colour.{name}={getattr(self, name)}: must be in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """At most one crop, then mirroring with a probability, then colour."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "allow_inf_nan": False}

    random_crop: Identity[RandomCrop | None] = None
    random_resized_crop: Identity[RandomResizedCrop | None] = None
    ten_crop: Identity[TenCrop | None] = None
    flip: Identity[float] = 0.0
    colour: Identity[Colour | None] = None

    def __post_init__(self) -> None:
        given = [name for name in ("random_crop", "random_resized_crop", "ten_crop") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ConfigError(f"augment.{given[0]} and augment.{given[1]}: an item has one crop; give one of them")
        if not 0 <= self.flip <= 1:
            raise ConfigError(f"augment.flip={self.flip}: a probability, from 0 to 1")

    @property
    def crop(self) -> RandomCrop | RandomResizedCrop | TenCrop | None:
        """The crop, if there is one."""
        return self.random_crop or self.random_resized_crop or self.ten_crop

    @property
    def changes(self) -> bool:
        """Whether any item may change at all."""
        return self.crop is not None or self.flip > 0 or (self.colour is not None and self.colour != Colour())


def _check_interval(name: str, pair: tuple[float, float], least: float, most: float) -> None:
    low, high = pair
    if not least <= low <= high <= most:
        raise ConfigError(f"augment.{name}={list(pair)}: two numbers from {least:g} to {most:g}, the smaller one first")
