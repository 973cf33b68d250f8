"""Every measure against an answer known beforehand."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
from scipy import linalg, ndimage

from tokenloom.tasks.evaluation import metrics
from tokenloom.tasks.modalities.image.judging import pixels


def normal(rows: int, dims: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, dims))


def test_frechet_of_a_set_with_itself_is_zero():
    mu, sigma = metrics.moments(normal(300, 12))
    assert metrics.frechet_distance(mu, sigma, mu, sigma) == pytest.approx(0, abs=1e-9)


def test_frechet_of_diagonal_gaussians_is_the_closed_form():
    a, b = np.array([1.0, 4.0, 9.0]), np.array([4.0, 4.0, 1.0])
    expected = 3 * 2.0**2 + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert metrics.frechet_distance(np.zeros(3), np.diag(a), np.full(3, 2.0), np.diag(b)) == pytest.approx(expected, rel=1e-12)


def test_frechet_agrees_with_the_matrix_root_of_scipy():
    m1, s1 = metrics.moments(normal(200, 8, 1) @ normal(8, 8, 2))
    m2, s2 = metrics.moments(normal(200, 8, 3) + 0.5)
    expected = ((m1 - m2) ** 2).sum() + np.trace(s1 + s2 - 2 * np.real(linalg.sqrtm(s1 @ s2)))
    assert metrics.frechet_distance(m1, s1, m2, s2) == pytest.approx(expected, rel=1e-8)


def test_frechet_of_singular_covariances_is_finite():
    few, more = normal(5, 40, 1), normal(6, 40, 2)  # rank 4 and 5 in 40 dimensions
    value = metrics.frechet_distance(*metrics.moments(few), *metrics.moments(more))
    assert np.isfinite(value)
    assert value > 0


def test_frechet_refuses_different_sizes():
    with pytest.raises(ValueError, match="different size"):
        metrics.frechet_distance(np.zeros(2), np.eye(2), np.zeros(3), np.eye(3))


def test_kernel_distance_is_the_naive_estimator():
    x, y = normal(7, 3, 1), normal(7, 3, 2) + 1

    def k(a, b):
        return (a @ b / 3 + 1) ** 3

    pairs = [(i, j) for i in range(7) for j in range(7) if i != j]
    naive = np.mean([k(x[i], x[j]) + k(y[i], y[j]) for i, j in pairs]) - 2 * np.mean([k(a, b) for a in x for b in y])
    assert metrics.kernel_distance(x, y, blocks=1).mean == pytest.approx(naive, rel=1e-10)


def test_kernel_distance_is_unbiased_and_seeded():
    same = metrics.kernel_distance(normal(2000, 4, 1), normal(2000, 4, 2), blocks=40, size=200, seed=3)
    apart = metrics.kernel_distance(normal(2000, 4, 1), normal(2000, 4, 2) + 0.5, blocks=40, size=200, seed=3)
    assert abs(same.mean) < 3 * same.deviation / np.sqrt(40) + 0.02
    assert apart.mean > 20 * abs(same.mean)
    assert same == metrics.kernel_distance(normal(2000, 4, 1), normal(2000, 4, 2), blocks=40, size=200, seed=3)


def test_inception_score_reaches_both_ends():
    sure = np.eye(5)[np.repeat(np.arange(5), 20)]
    assert metrics.inception_score(sure).mean == pytest.approx(5)
    assert metrics.inception_score(np.full((30, 5), 0.2)).mean == pytest.approx(1)


def test_precision_recall_of_hand_made_manifolds():
    real = np.array([[0.0], [1.0], [2.0], [10.0], [11.0], [12.0]])  # two modes; k=1 balls have radius 1
    fake = np.array([[0.5], [1.5], [1.0], [50.0]])  # one mode well, one outlier; radii 0.5, 0.5, 0.5, 48.5
    precision, recall = metrics.precision_recall(real, fake, k=1)
    assert precision == 0.75
    # the outlier's ball reaches down to 1.5 and takes in 2, 10, 11, 12; 1 is a sample itself; 0 is inside [0, 1]
    assert recall == 1.0
    precision, recall = metrics.precision_recall(real, fake[:3], k=1)
    assert (precision, recall) == (1.0, 0.5)


def test_precision_recall_of_equal_and_of_distant_sets():
    x = normal(50, 3)
    assert metrics.precision_recall(x, x, k=3) == (1.0, 1.0)
    assert metrics.precision_recall(x, x + 1000, k=3) == (0.0, 0.0)


def test_precision_recall_agrees_with_sklearn_neighbours():
    from sklearn.neighbors import NearestNeighbors

    real, fake, k = normal(120, 5, 1), normal(90, 5, 2) * 0.7 + 0.4, 3

    def share_inside(base, query):
        radius = NearestNeighbors(n_neighbors=k + 1).fit(base).kneighbors(base)[0][:, k]
        return np.mean([(np.linalg.norm(base - q, axis=1) <= radius).any() for q in query])

    expected = (share_inside(real, fake), share_inside(fake, real))
    assert metrics.precision_recall(real, fake, k) == pytest.approx(expected, abs=1e-12)
    assert 0 < expected[1] < expected[0] < 1


def test_density_coverage_of_a_hand_made_manifold():
    real = np.array([[0.0], [1.0], [10.0], [11.0]])  # k=1 radii are 1
    fake = np.array([[0.5], [0.4], [0.6]])  # each inside the balls of 0 and 1
    assert metrics.density_coverage(real, fake, k=1) == (2.0, 0.5)


def test_density_is_one_and_coverage_known_for_equal_distributions():
    density, coverage = metrics.density_coverage(normal(1500, 6, 1), normal(1500, 6, 2), k=5)
    assert density == pytest.approx(1, abs=0.1)
    assert coverage == pytest.approx(1 - 0.5**5, abs=0.02)  # Naeem et al., equation 9: about 1 - 2^-k for equal sizes


def test_results_do_not_depend_on_the_block_of_rows(monkeypatch):
    real, fake = normal(70, 4, 1), normal(60, 4, 2)
    whole = (*metrics.precision_recall(real, fake), *metrics.density_coverage(real, fake))
    monkeypatch.setattr(metrics, "_ROWS", 16)
    assert (*metrics.precision_recall(real, fake), *metrics.density_coverage(real, fake)) == whole


def test_nearest_finds_an_exact_copy():
    base = normal(200, 30, 1)
    distance, index = metrics.nearest(base[[17, 3]], base)
    assert distance.tolist() == [0.0, 0.0]
    assert index.tolist() == [17, 3]


def test_memorisation_ratio_tells_copies_from_new_samples():
    train, held_out = normal(400, 10, 1), normal(100, 10, 2)
    assert metrics.memorisation_ratio(train[:50] + 1e-3, held_out, train) < 0.01
    assert metrics.memorisation_ratio(normal(100, 10, 3), held_out, train) == pytest.approx(1, abs=0.15)


def test_psnr_of_a_known_error():
    x = np.zeros((2, 4, 4, 1))
    assert pixels.psnr(x, x + 16) == pytest.approx(20 * np.log10(255 / 16))
    assert pixels.psnr(x, x) == 100


def test_ssim_agrees_with_a_gaussian_filter_of_scipy():
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 255, (1, 20, 24, 1))
    y = np.clip(x + rng.normal(0, 30, x.shape), 0, 255)

    def blur(a):
        return ndimage.gaussian_filter(a, 1.5, truncate=3.5)

    a, b = x[0, ..., 0], y[0, ..., 0]
    ma, mb = blur(a), blur(b)
    va, vb, cab = blur(a * a) - ma**2, blur(b * b) - mb**2, blur(a * b) - ma * mb
    c1, c2 = 2.55**2, 7.65**2
    whole = (2 * ma * mb + c1) * (2 * cab + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    assert pixels.ssim(x, y) == pytest.approx(whole[5:-5, 5:-5].mean(), rel=1e-10)
    assert pixels.ssim(x, x) == pytest.approx(1)


def test_ssim_refuses_images_smaller_than_its_window():
    with pytest.raises(ValueError, match="11x11"):
        pixels.ssim(np.zeros((1, 8, 8, 1)), np.zeros((1, 8, 8, 1)))


def test_usage_and_perplexity():
    assert metrics.usage(np.array([4, 0, 0, 4])) == 0.5
    assert metrics.perplexity(np.array([4, 0, 0, 4])) == pytest.approx(2)
    assert metrics.perplexity(np.full(64, 3)) == pytest.approx(64)
    assert metrics.perplexity(np.zeros(4)) == 0


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        metrics.moments(np.array([[1.0], [np.nan]]))


def test_the_distance_at_infinity_is_that_without_the_bias_of_few_samples():
    random = np.random.default_rng(0)
    fake, dim = random.standard_normal((4000, 16)), 16
    near = metrics.frechet_distance(np.zeros(dim), np.eye(dim), *metrics.moments(fake[:400]))
    limits = [metrics.frechet_at_infinity(np.zeros(dim), np.eye(dim), fake[:400], seed=seed) for seed in range(5)]
    assert near > 0.1, "samples of the very same distribution, and far from it"
    assert abs(np.mean(limits)) < 0.5 * near
    with (
        mock.patch.object(metrics, "moments", side_effect=lambda part: (len(part), 0)),
        mock.patch.object(metrics, "_FrechetTo", return_value=lambda n, _: 0.25 + 3 / n),
    ):
        assert metrics.frechet_at_infinity(np.zeros(1), np.eye(1), np.zeros((1000, 1))) == pytest.approx(0.25)


def test_the_interval_holds_the_distance_and_narrows_with_the_samples():
    random, dim = np.random.default_rng(1), 4
    fake = random.standard_normal((2000, dim)) + 0.3
    widths = []
    for rows in (125, 2000):
        low, high = metrics.frechet_interval(np.zeros(dim), np.eye(dim), fake[:rows], 60)
        value = metrics.frechet_distance(np.zeros(dim), np.eye(dim), *metrics.moments(fake[:rows]))
        assert low < value < high
        widths.append(high - low)
    assert widths[1] < 0.5 * widths[0], "a quarter in expectation"
    assert metrics.frechet_interval(np.zeros(dim), np.eye(dim), fake[:50], 5) == metrics.frechet_interval(
        np.zeros(dim), np.eye(dim), fake[:50], 5
    )
