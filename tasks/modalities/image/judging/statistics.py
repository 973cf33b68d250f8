"""What samples are compared with: statistics and features of real images, of a split or of a reference file in ADM's form.

Shapes: N images, D features, S features by position.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.evaluation.metrics import Moments
from tokenloom.tasks.modalities.image.judging.network import Network, Seen

Pair = tuple[NDArray, NDArray]


@dataclass(frozen=True)
class Statistics:
    """Mean and covariance of features (D,), (D, D), those of the features by position, and the features (N, D) and class
    probabilities (N, K) themselves, where they were kept."""

    moments: Pair
    spatial: Pair | None
    feature: Callable[[], NDArray]
    probability: Callable[[], NDArray]

    @classmethod
    def streamed(cls, blocks: Iterable[Seen], keep: bool = True) -> Statistics:
        """Of what a network tells of images block by block: sums in float64, and only if they are to be kept the features.

        Raises:
            ValueError: fewer than two images.
        """
        of_features, of_positions, features, probabilities = Moments(), Moments(), list[NDArray](), list[NDArray]()
        for seen in blocks:
            of_features.add(seen.feature)
            if keep:
                features.append(seen.feature)
                probabilities.append(seen.probability)
            if seen.spatial is not None:
                of_positions.add(seen.spatial)
        spatial = of_positions.moments if of_positions.rows else None
        return cls(of_features.moments, spatial, lambda: np.concatenate(features), lambda: np.concatenate(probabilities))

    @classmethod
    def read(cls, path: Path, network: Network) -> Statistics:
        """A reference file: ``mu`` and ``sigma``, perhaps ``mu_s`` and ``sigma_s``, and perhaps images ``arr_0`` (N, H, W, 3) uint8.

        Raises:
            ConfigError: not such a file.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                given = {name: file[name] for name in ("mu", "sigma", "mu_s", "sigma_s") if name in file}
                images = "arr_0" in file
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise ConfigError(f"evaluate.reference={str(path)!r}: not a reference file of plain arrays (.npz): {error}") from error
        for mean, covariance in (("mu", "sigma"), ("mu_s", "sigma_s")):
            width = given[mean].shape[-1:] if mean in given else ()
            if (mean in given) != (covariance in given) or (mean in given and given[covariance].shape != width * 2):
                raise ConfigError(
                    f"evaluate.reference={str(path)!r}: {mean} and {covariance} have to be a mean (D,) and a covariance (D, D)"
                )

        def features() -> NDArray:
            if not images:
                raise ConfigError(f"evaluate.reference={str(path)!r}: holds no images (arr_0), which kid and precision_recall need")
            with np.load(path, allow_pickle=False) as file:
                return network.see(file["arr_0"]).feature

        if "mu" not in given:
            if not images:
                raise ConfigError(f"evaluate.reference={str(path)!r}: holds neither mu and sigma nor images (arr_0)")
            with np.load(path, allow_pickle=False) as file:
                return cls.streamed(network.blocks(file["arr_0"]))
        spatial = (given["mu_s"], given["sigma_s"]) if "mu_s" in given else None
        return cls((given["mu"], given["sigma"]), spatial, features, features)
