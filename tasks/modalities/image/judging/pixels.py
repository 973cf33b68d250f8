"""How close reconstructed images are to their originals, value by value.

Shapes: N images, H W C rows, columns, channels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def psnr(x_NHWC: NDArray, y_NHWC: NDArray, data_range: float = 255.0) -> float:
    """Mean over images of the peak signal-to-noise ratio in dB; an exact image counts as 100 dB."""
    x, y = _pair(x_NHWC, y_NHWC)
    mse = ((x - y) ** 2).reshape(len(x), -1).mean(axis=1)
    return float(np.minimum(100.0, 10 * np.log10(data_range**2 / np.maximum(mse, 1e-300))).mean())


def ssim(x_NHWC: NDArray, y_NHWC: NDArray, data_range: float = 255.0) -> float:
    """Mean structural similarity over images and channels, window inside the image only.

    Wang et al. 2004, "Image Quality Assessment: From Error Visibility to Structural Similarity", equation 13 with
    K1 = 0.01, K2 = 0.03 and the paper's 11 x 11 Gaussian window of sigma 1.5.
    """
    x, y = _pair(x_NHWC, y_NHWC)
    if min(x.shape[1:3]) < 11:
        raise ValueError(f"images of {x.shape[1]}x{x.shape[2]}: SSIM's window needs 11x11 pixels")
    c_1, c_2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    mu_x, mu_y = _window(x), _window(y)
    var_x, var_y, cov = _window(x * x) - mu_x**2, _window(y * y) - mu_y**2, _window(x * y) - mu_x * mu_y
    value = (2 * mu_x * mu_y + c_1) * (2 * cov + c_2) / ((mu_x**2 + mu_y**2 + c_1) * (var_x + var_y + c_2))
    return float(value.mean())


def _window(x_NHWC: Array) -> Array:
    weight = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    weight /= weight.sum()
    for axis in (1, 2):
        x_NHWC = np.lib.stride_tricks.sliding_window_view(x_NHWC, 11, axis=axis) @ weight
    return x_NHWC


def detail(x_NHWC: NDArray, y_NHWC: NDArray) -> float:
    """Signal-to-noise ratio of the fine detail of ``y`` against the original ``x`` in dB, over all images together; at most 100.

    Detail is what an image has more than its blurred self (sigma 1.5): the lowest level of a Laplacian pyramid (Burt & Adelson
    1983, "The Laplacian Pyramid as a Compact Image Code") at full resolution.  An image without any of the original's detail has
    0 dB, however right it is otherwise, and one with made-up detail in its place has less.
    """
    return decibels(*detail_powers(x_NHWC, y_NHWC))


def detail_powers(x_NHWC: NDArray, y_NHWC: NDArray) -> tuple[float, float]:
    """Sums of squares of the original's detail and of what ``y`` has wrong of it, which add up over images."""
    x, y = _pair(x_NHWC, y_NHWC)
    return float((_detail(x) ** 2).sum()), float((_detail(x - y) ** 2).sum())


def decibels(signal: float, noise: float) -> float:
    """Ratio of two powers in dB, within 100 either way."""
    if signal <= 0:
        return 100.0 if noise <= 0 else -100.0
    return float(np.clip(10 * np.log10(signal / max(noise, 1e-300)), -100.0, 100.0))


def _detail(x_NHWC: Array) -> Array:
    from scipy.ndimage import gaussian_filter

    return x_NHWC - gaussian_filter(x_NHWC, (0, 1.5, 1.5, 0), mode="reflect")


def _pair(x: NDArray, y: NDArray) -> tuple[Array, Array]:
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if a.shape != b.shape or a.ndim != 4:
        raise ValueError(f"images of shapes {a.shape} and {b.shape}: both must be (N, H, W, C)")
    return a, b
