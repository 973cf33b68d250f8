"""Views of an image: the forms of it that are tokenized, each by its name; a token row's ``view`` is an index into the names.

Shapes: B rows, C channels, H W image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from tokenloom.models.core.config import ConfigError

#: Ten crops: four corners and the centre of the image enlarged by a tenth, each also mirrored.
CROPS = ("top_left", "top_right", "bottom_left", "bottom_right", "centre")
TEN_CROP = (*CROPS, *(f"{crop}_flip" for crop in CROPS))
KNOWN = ("plain", "flip", "ten_crop")
_ENLARGED = 1.1


def parse_views(views: Sequence[str]) -> tuple[str, ...]:
    """The names of all views: ``ten_crop`` stands for its ten; names that are there already stay.

    Raises:
        ConfigError: none, twice the same, or an unknown one.
    """
    names = tuple(name for view in views for name in (TEN_CROP if view == "ten_crop" else (view,)))
    known = {"plain", "flip", *TEN_CROP}
    if not names or len(set(names)) != len(names) or set(names) - known:
        raise ConfigError(f"views {list(views)}: give each of {', '.join(KNOWN)} at most once, and at least one")
    return names


def view_of(image_BCHW: Tensor, name: str) -> Tensor:
    """One view of images, of the same size; pixels outside of [-1, 1] do not arise."""
    crop = name.removesuffix("_flip")
    if crop in CROPS:
        rows, columns = image_BCHW.shape[-2:]
        high, wide = (max(side + 1, round(side * _ENLARGED)) for side in (rows, columns))
        down, right = high - rows, wide - columns
        grown = F.interpolate(image_BCHW, size=(high, wide), mode="bilinear", align_corners=False)
        top, left = {
            "top_left": (0, 0),
            "top_right": (0, right),
            "bottom_left": (down, 0),
            "bottom_right": (down, right),
            "centre": (down // 2, right // 2),
        }[crop]
        image_BCHW = grown[..., top : top + rows, left : left + columns]
    return image_BCHW.flip(-1) if name.endswith("flip") else image_BCHW
