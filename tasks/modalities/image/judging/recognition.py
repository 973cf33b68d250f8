"""Recognition: the share of samples that a support vector machine trained on real images takes for their class.

An RBF-kernel SVM on the leading principal components of the pixels, trained twice: the second time on shifted copies of
the first one's support vectors (DeCoste & Schölkopf 2002, "Training Invariant Support Vector Machines", section 2.2).
Grey images may be straightened first (sheared until their second moments stand upright); whether that helps is decided
on a part of the training images, never on the held-out ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LIMIT = 8000  # training images; the SVM's time grows with their square
COMPONENTS = 50
_SHIFTS = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))


@dataclass(frozen=True)
class Recogniser:
    """A fitted SVM with its preparation of images."""

    straighten: bool
    projection: Any
    machine: Any

    def predict(self, image_NHWC: NDArray[np.uint8]) -> NDArray[np.int64]:
        """The class of every image: (N,)."""
        return np.asarray(self.machine.predict(self.projection.transform(_flat(_prepared(image_NHWC, self.straighten)))), np.int64)

    def accuracy(self, image_NHWC: NDArray[np.uint8], label_N: NDArray[np.int64]) -> float:
        """Share of images recognised as their class; all classes are as heavy as they are frequent."""
        return float((self.predict(image_NHWC) == label_N).mean())


def train(image_NHWC: NDArray[np.uint8], label_N: NDArray[np.int64], seed: int = 0) -> Recogniser:
    """Fit the SVM on real images; at most ``LIMIT`` of them, drawn by ``seed``. Needs at least two classes."""
    order = np.random.default_rng(seed).permutation(len(label_N))[:LIMIT]
    image, label = image_NHWC[order], label_N[order]
    options = (False, True) if image.shape[3] == 1 and len(np.unique(label)) > 1 else (False,)
    cut = len(order) * 3 // 4
    if len(options) > 1 and set(label[cut:]) <= set(label[:cut]) and len(np.unique(label[:cut])) > 1:
        straighten = max(options, key=lambda s: _fit(image[:cut], label[:cut], s, virtual=False).accuracy(image[cut:], label[cut:]))
    else:
        straighten = False
    return _fit(image, label, straighten, virtual=True)


def _fit(image: NDArray[np.uint8], label: NDArray[np.int64], straighten: bool, virtual: bool) -> Recogniser:
    from sklearn.decomposition import PCA
    from sklearn.svm import SVC

    prepared = _prepared(image, straighten)
    components = min(COMPONENTS, len(image) - 1, prepared[0].size)
    projection = PCA(components, svd_solver="covariance_eigh").fit(_flat(prepared))
    x = projection.transform(_flat(prepared))
    # the width that scikit-learn calls "scale", of the unshifted images also for the second machine
    machine = SVC(C=10, gamma=1 / (x.shape[1] * max(x.var(), 1e-12))).fit(x, label)
    if virtual:
        support = machine.support_
        shifted = np.concatenate([np.roll(prepared[support], by, axis=(1, 2)) for by in _SHIFTS])
        machine = SVC(C=10, gamma=machine.gamma).fit(projection.transform(_flat(shifted)), np.tile(label[support], len(_SHIFTS)))
    return Recogniser(straighten, projection, machine)


def _flat(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return x.reshape(len(x), -1)


def _prepared(image_NHWC: NDArray[np.uint8], straighten: bool) -> NDArray[np.float64]:
    x = image_NHWC.astype(np.float64) / 255
    return np.stack([_upright(one[..., 0]) for one in x])[..., None] if straighten and len(x) else x


def _upright(image_HW: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centre of mass to the middle, then a shear that takes the covariance of rows and columns away."""
    from scipy.ndimage import affine_transform

    mass = image_HW.sum()
    if mass <= 0:
        return image_HW
    y, x = np.indices(image_HW.shape)
    cy, cx = (y * image_HW).sum() / mass, (x * image_HW).sum() / mass
    var_y = (image_HW * (y - cy) ** 2).sum() / mass
    slope = (image_HW * (x - cx) * (y - cy)).sum() / mass / max(var_y, 1e-9)
    shear = np.array([[1.0, 0.0], [slope, 1.0]])
    middle = (np.array(image_HW.shape) - 1) / 2
    return affine_transform(image_HW, shear, np.array([cy, cx]) - shear @ middle, order=1)
