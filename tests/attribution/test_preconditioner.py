"""Adam's scales: the formula by hand; on a rank-one V both sides together are V^-1/4."""

import numpy as np
import pytest

from attribution.preconditioner import factor, scales


def adam_scales(v: np.ndarray, step: int, beta2: float, eps: float) -> tuple[np.ndarray, np.ndarray]:
    return scales(factor(v, step, beta2), eps)


def test_scales_are_row_and_column_means_to_the_minus_quarter():
    second_moment = np.array([[1.0, 2.0, 3.0], [5.0, 7.0, 6.0]])
    rows, columns = adam_scales(second_moment, step=3, beta2=0.9, eps=0.0)
    c = 1 / (1 - 0.9**3)
    expected_rows = [(c * (1 + 2 + 3) / 3) ** -0.25, (c * (5 + 7 + 6) / 3) ** -0.25]
    mean = (1 + 2 + 3 + 5 + 7 + 6) / 6
    expected_columns = [((1 + 5) / 2 / mean) ** -0.25, ((2 + 7) / 2 / mean) ** -0.25, ((3 + 6) / 2 / mean) ** -0.25]
    np.testing.assert_allclose(rows, expected_rows, rtol=1e-14)
    np.testing.assert_allclose(columns, expected_columns, rtol=1e-14)


def test_two_features_together_divide_by_the_root_of_a_rank_one_second_moment():
    rng = np.random.default_rng(0)
    v = np.outer(rng.random(5) + 0.1, rng.random(7) + 0.1)
    rows, columns = adam_scales(v, step=10, beta2=0.99, eps=0.0)
    both = np.outer(rows, columns) ** 2  # one factor for the query's feature, one for the example's
    np.testing.assert_allclose(both, (v / (1 - 0.99**10)) ** -0.5, rtol=1e-12)


def test_bias_correction_makes_the_first_step_a_single_squared_gradient():
    gradient = np.outer([1.0, 2.0], [3.0, 1.0, 0.5])
    rows, columns = adam_scales((1 - 0.99) * gradient**2, step=1, beta2=0.99, eps=0.0)
    np.testing.assert_allclose(np.outer(rows, columns) ** 2, 1 / np.abs(gradient), rtol=1e-10)


def test_a_row_or_column_without_gradient_gives_a_large_finite_number():
    v = np.ones((3, 4), dtype=np.float32) * 1e-6
    v[1] = 0.0
    v[:, 2] = 0.0
    rows, columns = adam_scales(v, step=5, beta2=0.99, eps=1e-8)
    assert np.isfinite(rows).all() and np.isfinite(columns).all()
    assert rows[1] == pytest.approx((1e-8**2) ** -0.25)
    assert rows[1] > 100 * rows[0] and columns[2] > 100 * columns[0]


def test_all_zero_second_moments_are_the_plain_gradient_over_eps():
    rows, columns = adam_scales(np.zeros((2, 3)), step=1, beta2=0.99, eps=1e-8)
    np.testing.assert_allclose(np.outer(rows, columns) ** 2, np.full((2, 3), 1 / 1e-8), rtol=1e-12)
