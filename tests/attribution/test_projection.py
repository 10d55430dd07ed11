"""The projection keeps inner products in the mean, depends on its key alone, and is pinned by its version."""

import numpy as np
import pytest

from attribution.projection import PROJECTION_VERSION, Projection, fitting_dim

SEEDS = 600
RECORDED = [0.07668893039226532, 0.485543817281723, -0.7658362984657288, -0.28668275475502014]


def test_inner_products_are_kept_in_the_mean_over_seeds():
    rng = np.random.default_rng(0)
    u, v = rng.normal(size=(2, 40))
    found = []
    for seed in range(SEEDS):
        p = Projection(dim=16, seed=seed).matrix("layer", "in", 40).astype(np.float64)
        found.append((p @ u) @ (p @ v))
    share = 40 * (40 - 16) / (16 * 39 * 42)  # of a subspace drawn uniformly; Gaussian entries have 1 / 16
    deviation = np.sqrt(share * (u @ u * (v @ v) + (1 - 2 / 40) * (u @ v) ** 2))
    assert np.std(found) == pytest.approx(deviation, rel=0.1)
    assert abs(np.mean(found) - u @ v) < 3 * deviation / np.sqrt(SEEDS)


def test_inner_products_of_gradients_are_kept_by_both_sides_together():
    rng = np.random.default_rng(1)
    g = rng.normal(size=(24, 40))
    h = g + rng.normal(size=(24, 40))
    found = []
    for seed in range(SEEDS):
        p = Projection(dim=16, seed=seed)
        left, right = p.matrix("layer", "out", 24).astype(np.float64), p.matrix("layer", "in", 40).astype(np.float64)
        found.append(np.sum((left @ g @ right.T) * (left @ h @ right.T)))
    assert np.mean(found) == pytest.approx(np.sum(g * h), abs=3 * np.std(found) / np.sqrt(SEEDS))
    assert np.std(found) / np.sqrt(SEEDS) < 0.05 * np.sum(g * h)  # the line above can tell


def test_rows_are_orthogonal_and_of_one_length():
    matrix = Projection(dim=6, seed=1).matrix("layer", "out", 15).astype(np.float64)
    np.testing.assert_allclose(matrix @ matrix.T, 15 / 6 * np.eye(6), atol=1e-6)


def test_a_side_not_longer_than_dim_is_left_as_it_is():
    np.testing.assert_array_equal(Projection(dim=16).matrix("m", "in", 16), np.eye(16))
    np.testing.assert_array_equal(Projection(dim=16).matrix("m", "in", 5), np.eye(5))
    assert Projection(dim=16).matrix("m", "in", 17).shape == (16, 17)


def test_matrix_depends_on_seed_module_side_and_nothing_else():
    matrix = Projection(seed=0).matrix("m", "in", 40)
    np.testing.assert_array_equal(Projection(seed=0).matrix("m", "in", 40), matrix)
    others = [
        Projection(seed=1).matrix("m", "in", 40),
        Projection(seed=0).matrix("n", "in", 40),
        Projection(seed=0).matrix("m", "out", 40),
    ]
    for other in others:
        assert abs(np.corrcoef(other.ravel(), matrix.ravel())[0, 1]) < 0.2


def test_entries_of_this_version_are_the_recorded_ones():
    # If this fails, stored features no longer match new queries: raise PROJECTION_VERSION.
    assert PROJECTION_VERSION == 2
    found = Projection(dim=4, seed=7).matrix("transformer.h.0.attn.c_attn", "out", 9)
    np.testing.assert_allclose(found[0, :4], RECORDED, rtol=1e-6)
    assert found.dtype == np.float32


def test_json_says_what_decides_the_projection():
    expected = {"kind": "two-sided orthonormal", "dim": 8, "seed": 3, "version": PROJECTION_VERSION}
    assert Projection(dim=8, seed=3).to_json() == expected


@pytest.mark.parametrize(
    ("layers", "dim"),
    [
        ([(768, 256), (256, 256), (1024, 256), (256, 1024)] * 4, 64),  # 16 x 64 x 64 = 65,536
        ([(768, 256), (256, 256), (1024, 256), (256, 1024)] * 5, 32),
        ([(576, 576)] * 210, 16),
        ([(4096, 4096)] * 1000, 16),  # at least
        ([(8, 32)] * 200, 256),  # no layer has more than its own 256
    ],
)
def test_fitting_dim_is_the_largest_that_makes_no_more_numbers_than_may_be(layers, dim):
    assert fitting_dim(layers) == dim
    assert fitting_dim(shape for shape in layers) == dim
