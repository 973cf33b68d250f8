"""Stored images as those of a batch: decoded, and varied by a crop, a mirror image, colour; whole numbers of Pillow and numpy alone.

H W C rows, columns and channels of a stored image uint8, which may be larger than the signal.  ``u`` are the row's own uniform numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenloom.models.core.augmentation import Augmentation, Colour, RandomCrop, RandomResizedCrop, Resample, TenCrop
from tokenloom.tasks.modalities.image.decode import decode

Pixels = NDArray[np.uint8]
_ATTEMPTS = 10  # at a crop of a drawn aspect ratio, before the centre is taken
#: Uniform numbers of a row, and where those of each part begin; fixed, as the draws are part of what a training is.
DRAWS = 40
_CROP, _FLIP, _COLOUR = 0, 32, 34


def centred(image_HWC: Pixels, shape: tuple[int, int]) -> Pixels:
    """The middle of an image that is at least this large."""
    high, wide = image_HWC.shape[:2]
    top, left = (high - shape[0]) // 2, (wide - shape[1]) // 2
    return image_HWC[top : top + shape[0], left : left + shape[1]]


def several(
    stored: NDArray[np.uint8] | Sequence[bytes],
    shape: tuple[int, int] | None,
    augmentation: Augmentation | None,
    u_BN: NDArray[np.float32] | None,
    pool: Executor | None,
) -> Pixels:
    """Images (B, H, W, C) of decoded ones (B, …) or of encoded ones, at the signal's ``shape`` (None: as they are stored).

    Args:
        u_BN: uniform numbers of each row (B, DRAWS); needed with an ``augmentation``.
        pool: shares the rows out.

    Raises:
        ValueError: an item that cannot be decoded.
    """
    if isinstance(stored, np.ndarray):
        rows, columns = shape or stored.shape[1:3]
        if augmentation is None or (augmentation.crop is None and augmentation.colour is None):
            top, left = (stored.shape[1] - rows) // 2, (stored.shape[2] - columns) // 2
            made = stored[:, top : top + rows, left : left + columns]
            if augmentation is not None and u_BN is not None:
                turned = u_BN[:, _FLIP] < augmentation.flip
                made[turned] = made[turned, :, ::-1]
            return made
    first = stored[0] if isinstance(stored, np.ndarray) else decode(stored[0]) if len(stored) else np.zeros((0, 0, 1), np.uint8)
    rows, columns = shape or first.shape[:2]
    made = np.empty((len(stored), rows, columns, first.shape[2]), np.uint8)

    def one(row: int) -> None:
        item = stored[row]
        image = item if isinstance(item, np.ndarray) else first if row == 0 else decode(item)
        if augmentation is None or u_BN is None:
            made[row] = centred(image, (rows, columns))
        else:
            made[row] = augmented(image, (rows, columns), augmentation, u_BN[row])

    for _ in map(one, range(len(stored))) if pool is None else pool.map(one, range(len(stored))):
        pass
    return made


def augmented(image_HWC: Pixels, shape: tuple[int, int], augmentation: Augmentation, u: NDArray[np.float32]) -> Pixels:
    """One image at the signal's rows and columns, varied by its row's numbers ``u`` (DRAWS,)."""
    crop, at = augmentation.crop, u[_CROP:]
    if isinstance(crop, RandomCrop):
        image_HWC = _random(image_HWC, shape, crop, at)
    elif isinstance(crop, RandomResizedCrop):
        image_HWC = _random_resized(image_HWC, shape, crop, at)
    elif isinstance(crop, TenCrop):
        image_HWC = _one_of_ten(image_HWC, shape, crop, at)
    else:
        image_HWC = centred(image_HWC, shape)
    if u[_FLIP] < augmentation.flip:
        image_HWC = image_HWC[:, ::-1]
    if augmentation.colour is not None:
        image_HWC = _coloured(image_HWC, augmentation.colour, u[_COLOUR:])
    return image_HWC


def _whole(u: float, count: int) -> int:
    """A whole number below ``count``."""
    return min(int(u * count), count - 1)


def _random(image_HWC: Pixels, shape: tuple[int, int], crop: RandomCrop, u: NDArray[np.float32]) -> Pixels:
    low, high = crop.scale
    side = min(shape)
    if low == high:
        wanted = round(low * side)
    else:  # whole numbers between both, as random_crop_arr draws them
        least, most = math.ceil(low * side), math.ceil(high * side)
        wanted = least + _whole(u[0], most - least + 1)
    image_HWC = _covering(image_HWC, shape, wanted / side, crop.resample)
    top, left = (_whole(u[1 + i], image_HWC.shape[i] - shape[i] + 1) for i in (0, 1))
    return image_HWC[top : top + shape[0], left : left + shape[1]]


def _random_resized(image_HWC: Pixels, shape: tuple[int, int], crop: RandomResizedCrop, u: NDArray[np.float32]) -> Pixels:
    high, wide = image_HWC.shape[:2]
    low_log, high_log = math.log(crop.ratio[0]), math.log(crop.ratio[1])
    for attempt in range(_ATTEMPTS):
        area = high * wide * (crop.area[0] + float(u[2 + 2 * attempt]) * (crop.area[1] - crop.area[0]))
        ratio = math.exp(low_log + float(u[3 + 2 * attempt]) * (high_log - low_log))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= wide and 0 < h <= high:
            top, left = _whole(u[0], high - h + 1), _whole(u[1], wide - w + 1)
            break
    else:  # the largest one in the middle whose ratio is allowed
        inside = min(max(wide / high, crop.ratio[0]), crop.ratio[1])
        w, h = min(wide, round(high * inside)), min(high, round(wide / inside))
        top, left = (high - h) // 2, (wide - w) // 2
    return _resized(image_HWC[top : top + h, left : left + w], shape, crop.resample)


def _one_of_ten(image_HWC: Pixels, shape: tuple[int, int], crop: TenCrop, u: NDArray[np.float32]) -> Pixels:
    grown = (int(shape[0] * crop.scale), int(shape[1] * crop.scale))
    image_HWC = centred(_covering(image_HWC, shape, grown[0] / shape[0], crop.resample), grown)
    down, right = grown[0] - shape[0], grown[1] - shape[1]
    places = ((0, 0), (0, right), (down, 0), (down, right), (down // 2, right // 2))
    view = _whole(u[0], 10)
    top, left = places[view % 5]
    image_HWC = image_HWC[top : top + shape[0], left : left + shape[1]]
    return image_HWC[:, ::-1] if view >= 5 else image_HWC


def _covering(image_HWC: Pixels, shape: tuple[int, int], scale: float, resample: Resample) -> Pixels:
    """The image resized, with its own aspect ratio, until it just covers the signal's shape times ``scale``."""
    high, wide = image_HWC.shape[:2]
    wanted = (round(shape[0] * scale), round(shape[1] * scale))
    factor = max(wanted[0] / high, wanted[1] / wide)
    return _resized(image_HWC, (max(wanted[0], round(high * factor)), max(wanted[1], round(wide * factor))), resample)


def _resized(image_HWC: Pixels, shape: tuple[int, int], resample: Resample) -> Pixels:
    if image_HWC.shape[:2] == shape:
        return image_HWC
    from PIL import Image

    made = _pillow(image_HWC).resize((shape[1], shape[0]), Image.Resampling[resample.upper()])
    return np.asarray(made, np.uint8).reshape(*shape, image_HWC.shape[2])


def _coloured(image_HWC: Pixels, colour: Colour, u: NDArray[np.float32]) -> Pixels:
    from PIL import ImageEnhance

    image = _pillow(image_HWC)
    steps = (("Brightness", colour.brightness), ("Contrast", colour.contrast), ("Color", colour.saturation))
    for i in np.argsort(u[3:6], kind="stable").tolist():
        name, most = steps[i]
        if most > 0 and not (name == "Color" and image_HWC.shape[2] == 1):  # grey has no saturation
            image = getattr(ImageEnhance, name)(image).enhance(1 - most + 2 * most * float(u[i]))
    return np.asarray(image, np.uint8).reshape(image_HWC.shape)


def _pillow(image_HWC: Pixels) -> Any:
    from PIL import Image

    return Image.fromarray(np.ascontiguousarray(image_HWC[..., 0] if image_HWC.shape[2] == 1 else image_HWC))
