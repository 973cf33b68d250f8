"""Measures of samples, of codes and of features of any network: pure functions on arrays.

Shapes: N generated rows, M real rows, D feature dimensions, K classes or codes.
Everything is computed in float64 on the CPU; nothing here reads files or keeps state.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_ROWS = 1024  # rows of a distance matrix that are held at once


def moments(feature_ND: NDArray) -> tuple[Array, Array]:
    """Mean (D,) and unbiased covariance (D, D) of features; needs at least two rows."""
    x = _rows(feature_ND, "features", least=2)
    return x.mean(axis=0), np.atleast_2d(np.cov(x, rowvar=False))


class Moments:
    """Mean and unbiased covariance of features that come in blocks, from sums in float64; memory does not grow with the rows."""

    def __init__(self) -> None:
        self.rows = 0
        self._sum: Array | None = None
        self._outer: Array | None = None

    def add(self, feature_ND: NDArray) -> None:
        """Count a block of rows (N, D)."""
        x = _rows(feature_ND, "features")
        self.rows += len(x)
        self._sum = x.sum(axis=0) if self._sum is None else self._sum + x.sum(axis=0)
        self._outer = x.T @ x if self._outer is None else self._outer + x.T @ x

    @property
    def moments(self) -> tuple[Array, Array]:
        """Mean (D,) and covariance (D, D)."""
        if self._sum is None or self._outer is None or self.rows < 2:
            raise ValueError(f"features: {self.rows} rows, at least 2 are needed")
        mean = self._sum / self.rows
        return mean, (self._outer - self.rows * np.outer(mean, mean)) / (self.rows - 1)


def frechet_distance(mu_1: NDArray, sigma_1: NDArray, mu_2: NDArray, sigma_2: NDArray) -> float:
    """Fréchet distance of two Gaussians: ``|mu_1 - mu_2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))``.

    Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule", equation 6 (from Dowson & Landau 1982).
    ``tr (S1 S2)^(1/2)`` is taken as ``tr (S1^(1/2) S2 S1^(1/2))^(1/2)``: that matrix is symmetric, so a singular or
    nearly singular covariance needs neither an offset nor the real part of a complex root.
    """
    return _FrechetTo(mu_1, sigma_1)(mu_2, sigma_2)


class _FrechetTo:
    """Fréchet distances to one Gaussian, whose root is taken once."""

    def __init__(self, mu: NDArray, sigma: NDArray) -> None:
        self.mu, self.sigma = np.asarray(mu, np.float64), np.atleast_2d(np.asarray(sigma, np.float64))
        value, vector = np.linalg.eigh((self.sigma + self.sigma.T) / 2)
        self.root = (vector * np.sqrt(np.clip(value, 0, None))) @ vector.T

    def __call__(self, mu: NDArray, sigma: NDArray) -> float:
        other, s = np.asarray(mu, np.float64), np.atleast_2d(np.asarray(sigma, np.float64))
        if self.mu.shape != other.shape or self.sigma.shape != s.shape:
            raise ValueError(f"moments of different size: {self.mu.shape}, {self.sigma.shape} and {other.shape}, {s.shape}")
        inner = self.root @ s @ self.root
        trace = np.sqrt(np.clip(np.linalg.eigvalsh((inner + inner.T) / 2), 0, None)).sum()
        return float(max(0.0, ((self.mu - other) ** 2).sum() + np.trace(self.sigma) + np.trace(s) - 2 * trace))


def frechet_at_infinity(mu: NDArray, sigma: NDArray, fake_ND: NDArray, points: int = 15, seed: int = 0) -> float:
    """The Fréchet distance to infinitely many samples: the limit of a line through those of ``points`` numbers of samples, over 1 / N.

    Chong & Forsyth 2020, "Effectively Unbiased FID and Inception Score and where to find them", section 4: the distance of N samples
    exceeds its limit by a term that falls with 1 / N.  Numbers of samples are even steps from a tenth of them (theirs: 5,000 of 50,000) to
    all; each takes a random part.
    """
    fake = np.asarray(fake_ND)
    least = max(2, len(fake) // 10)
    counts = np.unique(np.linspace(least, len(fake), points).astype(int))
    if len(counts) < 2:
        raise ValueError(f"{len(fake)} samples are too few for a limit")
    to, draw = _FrechetTo(mu, sigma), np.random.default_rng(seed)
    values = [to(*moments(fake[draw.choice(len(fake), n, replace=False)])) for n in counts]
    _, limit = np.polyfit(1 / counts, values, 1)
    return float(limit)


def frechet_interval(
    mu: NDArray, sigma: NDArray, fake_ND: NDArray, resamples: int, share: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Bounds of the Fréchet distance of this number of samples that hold the given share, by the bootstrap over the samples.

    Efron 1979, "Bootstrap Methods: Another Look at the Jackknife".  A resample holds fewer different samples and so has a larger distance;
    the spread of resamples is therefore taken around the distance itself, not around their mean.
    """
    fake, to, draw = _rows(fake_ND, "fake", least=2), _FrechetTo(mu, sigma), np.random.default_rng(seed)
    found = []
    for _ in range(resamples):
        times = np.bincount(draw.integers(len(fake), size=len(fake)), minlength=len(fake)).astype(np.float64)
        mean = times @ fake / len(fake)
        found.append(to(mean, (fake * times[:, None]).T @ fake / (len(fake) - 1) - len(fake) / (len(fake) - 1) * np.outer(mean, mean)))
    value, spread = to(*moments(fake)), np.asarray(found) - np.mean(found)
    low, high = np.quantile(spread, [(1 - share) / 2, (1 + share) / 2])
    return float(max(0.0, value + low)), float(value + high)


@dataclass(frozen=True)
class Estimate:
    """A mean and the standard deviation of its blocks."""

    mean: float
    deviation: float


#: torch-fidelity's seed of subsets and of the order of samples; its numbers are those of these draws.
PUBLISHED_SEED = 2020


def kernel_distance(
    real_MD: NDArray, fake_ND: NDArray, blocks: int = 10, size: int = 1000, seed: int | np.random.RandomState = 0
) -> Estimate:
    """Kernel distance: unbiased squared MMD with the kernel ``(x.y / D + 1)^3``, averaged over random blocks.

    Bińkowski et al. 2018, "Demystifying MMD GANs", section 4 (KID); the unbiased estimator is Gretton et al. 2012,
    equation 3.  Blocks hold ``size`` rows of either set, fewer where a set is smaller.  Given ``RandomState(2020)`` as the seed, the
    generated set first and 100 blocks, it is the number of torch-fidelity.
    """
    real, fake = _rows(real_MD, "real", least=2), _rows(fake_ND, "fake", least=2)
    n = min(size, len(real), len(fake))
    rng = np.random.default_rng(seed) if isinstance(seed, int) else seed
    values = [_mmd(real[rng.choice(len(real), n, replace=False)], fake[rng.choice(len(fake), n, replace=False)]) for _ in range(blocks)]
    return Estimate(float(np.mean(values)), float(np.std(values)))


def _mmd(x: Array, y: Array) -> float:
    n, d = x.shape
    xx, yy, xy = ((a @ b.T / d + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    within = (xx.sum() - np.trace(xx) + yy.sum() - np.trace(yy)) / (n * (n - 1))
    return float(within - 2 * xy.mean())


def inception_score(probability_NK: NDArray, splits: int = 10, order: NDArray[np.int64] | None = None) -> Estimate:
    """``exp(E_x KL(p(y|x) || p(y)))`` over ``splits`` equal parts (interleaved, so that sorted classes do no harm).

    Salimans et al. 2016, "Improved Techniques for Training GANs", section 4.  Between 1 and K.  Parts of an ``order`` (N,) are cut
    one after the other; with ``RandomState(2020).permutation(N)`` it is the number of torch-fidelity.
    """
    p = _rows(probability_NK, "probabilities")
    splits = min(splits, len(p))
    cuts = [len(p) * i // splits for i in range(splits + 1)]
    scores = []
    for i in range(splits):
        part = np.clip(p[i::splits] if order is None else p[order[cuts[i] : cuts[i + 1]]], 1e-300, None)
        scores.append(np.exp((part * (np.log(part) - np.log(part.mean(axis=0)))).sum(axis=1).mean()))
    return Estimate(float(np.mean(scores)), float(np.std(scores)))


def precision_recall(real_MD: NDArray, fake_ND: NDArray, k: int = 3) -> tuple[float, float]:
    """Share of generated rows on the manifold of the real ones, and the reverse.

    Kynkäänniemi et al. 2019, "Improved Precision and Recall Metric for Assessing Generative Models", equations 1-2:
    a manifold is the union of balls around its points, each reaching to the point's k-th nearest neighbour.
    """
    real, fake = _rows(real_MD, "real", least=k + 1), _rows(fake_ND, "fake", least=k + 1)
    radius_M, radius_N = radii(real, k), radii(fake, k)
    on_real, on_fake = [], []
    for block in _distances(fake, real):  # (rows of fake, M)
        on_real.append((block <= radius_M[None]).any(axis=1))
    for block in _distances(real, fake):
        on_fake.append((block <= radius_N[None]).any(axis=1))
    return float(np.concatenate(on_real).mean()), float(np.concatenate(on_fake).mean())


def density_coverage(real_MD: NDArray, fake_ND: NDArray, k: int = 5) -> tuple[float, float]:
    """Density (unbounded, 1 in expectation for equal distributions) and coverage (in [0, 1]).

    Naeem et al. 2020, "Reliable Fidelity and Diversity Metrics for Generative Models", equations 4 and 6; balls around
    the real points only, so that an outlier among the samples cannot inflate the manifold.
    """
    real, fake = _rows(real_MD, "real", least=k + 1), _rows(fake_ND, "fake")
    radius_M = radii(real, k)
    inside, covered = 0, []
    for start, block in zip(range(0, len(real), _ROWS), _distances(real, fake)):
        hit = block < radius_M[start : start + len(block), None]
        inside += int(hit.sum())
        covered.append(hit.any(axis=1))
    return inside / (k * len(fake)), float(np.concatenate(covered).mean())


def radii(x_ND: NDArray, k: int) -> Array:
    """Distance of every row to its k-th nearest other row: (N,)."""
    x = _rows(x_ND, "features", least=k + 1)
    result = []
    for start, block in zip(range(0, len(x), _ROWS), _distances(x, x)):
        block[np.arange(len(block)), np.arange(start, start + len(block))] = np.inf  # not its own neighbour
        result.append(np.partition(block, k - 1, axis=1)[:, k - 1])
    return np.concatenate(result)


def nearest(query_ND: NDArray, base_MD: NDArray) -> tuple[Array, NDArray[np.int64]]:
    """Euclidean distance to, and index of, the nearest row of ``base`` for every query: (N,), (N,)."""
    query, base = _rows(query_ND, "query"), _rows(base_MD, "base")
    square_M = (base**2).sum(axis=1)
    index = np.concatenate([np.argmin(square_M - 2 * query[i : i + _ROWS] @ base.T, axis=1) for i in range(0, len(query), _ROWS)])
    # the expanded square cancels badly near zero, where copies are: measure the chosen pair itself
    return np.sqrt(((query - base[index]) ** 2).sum(axis=1)), index


def memorisation_ratio(sample_ND: NDArray, held_out_MD: NDArray, train_TD: NDArray) -> float:
    """Median distance of samples to their nearest training row over that of held-out rows; below 1 leans on copies.

    The median form of the nearest-neighbour test of Meehan et al. 2020, "A Non-Parametric Test to Detect
    Data-Copying in Generative Models".
    """
    held_out = float(np.median(nearest(held_out_MD, train_TD)[0]))
    sample = float(np.median(nearest(sample_ND, train_TD)[0]))
    return sample / held_out if held_out > 0 else float(sample > 0)


def usage(count_K: NDArray) -> float:
    """Share of the codes that occur at all."""
    return float((np.asarray(count_K) > 0).mean())


def perplexity(count_K: NDArray) -> float:
    """``exp`` of the entropy of the codes' frequencies: 1 is collapse, K is perfectly even use."""
    count = np.asarray(count_K, np.float64)
    p = count[count > 0] / max(count.sum(), 1e-300)
    return float(np.exp(-(p * np.log(p)).sum())) if len(p) else 0.0


def _distances(x: Array, y: Array) -> Iterator[Array]:
    from scipy.spatial.distance import cdist  # differences, not the expanded square: equal rows are at distance 0 exactly

    for start in range(0, len(x), _ROWS):
        yield cdist(x[start : start + _ROWS], y)


def _rows(value: NDArray, what: str, least: int = 1) -> Array:
    x = np.asarray(value, np.float64)
    if x.ndim != 2:
        x = x.reshape(len(x), -1)
    if len(x) < least:
        raise ValueError(f"{what}: {len(x)} rows, at least {least} are needed")
    if not np.isfinite(x).all():
        raise ValueError(f"{what}: values that are not finite")
    return x
