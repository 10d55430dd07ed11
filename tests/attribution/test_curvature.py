"""Curvature: formulas by hand, moments that merge, whitening that no basis changes, what is refused."""

import numpy as np
import pytest

from attribution.curvature import SecondMoment, Whitener, inverse_root, mix

WIDTHS = [4, 6, 2]


def features(rows: int, seed: int = 0, dim: int = sum(WIDTHS)) -> np.ndarray:
    """Correlated rows `[rows, dim]`."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(rows, dim)) @ (np.eye(dim) + 0.3 * rng.normal(size=(dim, dim)))).astype(np.float32)


def moment_of(rows: np.ndarray, widths: list[int] | None = None) -> SecondMoment:
    moment = SecondMoment.zero(widths or WIDTHS)
    moment.add(rows)
    return moment


def with_eigenvalues(*layers: list[float], count: int = 5) -> SecondMoment:
    """A moment whose means are diagonal."""
    return SecondMoment([count * np.diag(np.array(layer, dtype=float)) for layer in layers], count)


def assert_same(a: SecondMoment, b: SecondMoment, rtol: float) -> None:
    assert a.count == b.count and a.widths == b.widths
    for x, y in zip(a.blocks, b.blocks, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=rtol * np.abs(y).max())


def test_second_moment_is_the_mean_of_outer_products_in_each_layer():
    moment = moment_of(np.array([[1, 2, 3], [0, -1, 4]]), [2, 1])
    assert moment.count == 2
    first, second = moment.mean()
    np.testing.assert_array_equal(first, [[(1 * 1 + 0) / 2, (1 * 2 + 0) / 2], [(2 * 1 + 0) / 2, (2 * 2 + 1 * 1) / 2]])
    np.testing.assert_array_equal(second, [[(3 * 3 + 4 * 4) / 2]])


def test_the_mean_of_no_rows_is_zero():
    moment = moment_of(np.zeros((0, 3)), [2, 1])
    assert moment.count == 0 and [mean.tolist() for mean in moment.mean()] == [[[0, 0], [0, 0]], [[0]]]


def test_sums_keep_in_float64_what_float32_would_lose():
    moment = moment_of(np.array([[4096.0]]), [1])  # its square is 2^24, where float32 counts in steps of 2
    for _ in range(3):
        moment.add(np.array([[1.0]]))
    assert moment.blocks[0].item() == 2**24 + 3


@pytest.mark.parametrize("block", [1, 3, 20, 64])
def test_blocks_of_any_size_give_the_same_moments(block):
    rows = features(20)
    moment = SecondMoment.zero(WIDTHS)
    moment.add(rows, block=block)
    assert_same(moment, moment_of(rows), 1e-6)
    for mean, start, stop in zip(moment.mean(), (0, 4, 10), (4, 10, 12), strict=True):
        exact = rows[:, start:stop].astype(np.float64)
        np.testing.assert_allclose(mean, exact.T @ exact / 20, atol=1e-6 * np.abs(mean).max())


def test_merge_is_associative_and_does_not_depend_on_the_order():
    a, b, c = (moment_of(features(n, seed=n)) for n in (3, 5, 8))
    assert_same(a.merge(b).merge(c), a.merge(b.merge(c)), 1e-14)
    assert_same(a.merge(b).merge(c), c.merge(a).merge(b), 1e-14)
    assert_same(a.merge(SecondMoment.zero(WIDTHS)), a, 0)


@pytest.mark.parametrize("shards", [1, 2, 7])
def test_merged_shards_equal_the_whole_corpus(shards):
    rows = features(40)
    merged = SecondMoment.zero(WIDTHS)
    for part in np.array_split(rows, shards):
        merged = merged.merge(moment_of(part))
    assert_same(merged, moment_of(rows), 1e-6)


def test_moments_of_other_layers_are_not_merged():
    with pytest.raises(AssertionError):
        SecondMoment.zero([2, 1]).merge(SecondMoment.zero([1, 2]))


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_a_row_without_a_finite_gradient_is_our_own_mistake(bad):
    rows = features(3)
    rows[1] = bad
    with pytest.raises(AssertionError, match="must not reach the curvature"):
        moment_of(rows)


def test_saved_moments_come_back_with_seven_digits_at_any_count(tmp_path):
    moment = moment_of(features(9))
    for factor in (1, 10**9):  # sums of a large corpus
        large = SecondMoment([block * factor for block in moment.blocks], moment.count * factor)
        large.save(tmp_path / "moment.safetensors")
        found = SecondMoment.load(tmp_path / "moment.safetensors")
        assert_same(found, large, 1e-7)
        assert all(block.dtype == np.float64 for block in found.blocks)


def test_more_than_ten_layers_keep_their_order_in_a_file(tmp_path):
    moment = with_eigenvalues(*[[i] for i in range(1, 13)], count=2)
    moment.save(tmp_path / "moment.safetensors")
    assert_same(SecondMoment.load(tmp_path / "moment.safetensors"), moment, 0)


def test_the_same_moments_are_the_same_bytes(tmp_path):
    for name in "ab":
        moment_of(features(9)).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_lambda_makes_the_pooled_spectra_cross_at_component_k():
    train = with_eigenvalues([1, 9], [4, 0.5], count=50)
    query = with_eigenvalues([2, 1], [0.1, 6], count=3)
    matrices, weight = mix(train, query, share=0.5)  # k = 2 of 4: 9, [4], 1, 0.5 and 6, [2], 1, 0.1
    assert weight == pytest.approx(4 / (2 + 4))
    np.testing.assert_allclose(matrices[0], np.diag([2 / 3 * 2 + 1 / 3 * 1, 2 / 3 * 1 + 1 / 3 * 9]))
    np.testing.assert_allclose(matrices[1], np.diag([2 / 3 * 0.1 + 1 / 3 * 4, 2 / 3 * 6 + 1 / 3 * 0.5]))
    assert weight * 2 == pytest.approx((1 - weight) * 4)


def test_k_is_at_least_the_first_component():
    assert mix(with_eigenvalues([1, 9]), with_eigenvalues([2, 1]), share=0.015)[1] == pytest.approx(9 / (2 + 9))


def test_k_goes_no_further_than_the_rank_of_a_few_queries():
    rng = np.random.default_rng(0)
    train, query = (moment_of(rng.normal(size=(n, 128)), [64, 64]) for n in (500, 3))
    matrices, weight = mix(train, query, share=0.5)  # k = 64 of 128, but three queries have rank 3 in either layer

    def spectrum(moment: SecondMoment) -> np.ndarray:
        return np.sort(np.concatenate([np.linalg.eigvalsh(mean) for mean in moment.mean()]))[::-1]

    s_train, s_query = spectrum(train), spectrum(query)
    assert s_query[5] > 1 and s_query[6] < 1e-5
    assert weight == pytest.approx(s_train[5] / (s_query[5] + s_train[5]))
    assert 0 < weight < 0.5
    np.testing.assert_allclose(matrices[0], weight * query.mean()[0] + (1 - weight) * train.mean()[0])


def test_rounding_of_a_strong_layer_is_no_component_beside_a_weak_one():
    rng = np.random.default_rng(1)
    one = np.concatenate([1e4 * rng.normal(size=(1, 64)), rng.normal(size=(1, 64))], axis=1)
    train = moment_of(rng.normal(size=(500, 128)), [64, 64])
    weak = one[0, 64:] @ one[0, 64:]  # the second of one query's two components, and 1e-8 of the first
    expected = np.sort(np.concatenate([np.linalg.eigvalsh(mean) for mean in train.mean()]))[-2]
    assert mix(train, moment_of(one, [64, 64]), share=0.5)[1] == pytest.approx(expected / (weak + expected), rel=1e-5)


@pytest.mark.parametrize("query", [None, SecondMoment.zero(WIDTHS)])
def test_without_queries_the_corpus_stands_alone(query):
    train = moment_of(features(30))
    matrices, weight = mix(train, query)
    assert weight == 0.0
    for found, mean in zip(matrices, train.mean(), strict=True):
        np.testing.assert_array_equal(found, mean)


def test_inverse_root_by_hand():
    matrix = np.array([[2.0, 1.0], [1.0, 2.0]])  # eigenvalues 3 along (1, 1) and 1 along (1, -1), mean 2
    plus, minus = (3 + 0.1 * 2) ** -0.5, (1 + 0.1 * 2) ** -0.5
    expected = [[(plus + minus) / 2, (plus - minus) / 2], [(plus - minus) / 2, (plus + minus) / 2]]
    np.testing.assert_allclose(inverse_root(matrix, 0.1), expected, rtol=1e-6)
    rows = np.array([[1.0, 1.0, 5.0], [1.0, -1.0, 0.0]])
    whitened = Whitener([matrix, np.array([[4.0]])], damping=0.1).apply(rows)
    np.testing.assert_allclose(whitened, [[plus, plus, 5 / 4.4**0.5], [minus, -minus, 0]], rtol=1e-6)


def test_whitening_the_rows_that_made_the_matrix_gives_the_identity():
    rows = features(300)
    whitened = Whitener(mix(moment_of(rows), None)[0], damping=0.0).apply(rows)
    for mean in moment_of(whitened).mean():
        np.testing.assert_allclose(mean, np.eye(len(mean)), atol=1e-4)


def test_a_change_of_basis_does_not_change_whitened_products():
    rng = np.random.default_rng(2)
    train, queries = features(300).astype(np.float64), features(10, seed=1).astype(np.float64)
    basis = np.zeros((12, 12))
    for start, stop in ((0, 4), (4, 10), (10, 12)):
        basis[start:stop, start:stop] = np.eye(stop - start) + 0.4 * rng.normal(size=(stop - start,) * 2)

    def products(change: np.ndarray) -> np.ndarray:
        matrices = mix(moment_of(train @ change), None)[0]
        weighted = [0.3 * q + 0.7 * t for q, t in zip(moment_of(queries @ change).mean(), matrices, strict=True)]
        whitener = Whitener(weighted, damping=0.0)
        return whitener.apply(queries @ change) @ whitener.apply(train @ change).T

    assert np.linalg.cond(basis) > 3
    plain = products(np.eye(12))
    np.testing.assert_allclose(products(basis), plain, atol=1e-4 * np.abs(plain).max())


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e6, 1e12])
def test_the_scale_of_a_layer_has_no_say(scale):
    rows, scales = features(50), np.repeat([scale, 1.0, 1 / scale], WIDTHS)
    scaled = (rows * scales).astype(np.float32)
    found = Whitener(moment_of(scaled).mean()).apply(scaled)
    np.testing.assert_allclose(found, Whitener(moment_of(rows).mean()).apply(rows), atol=1e-5)


def test_a_layer_without_curvature_maps_to_zero_and_leaves_the_others_alone():
    rows = features(30)
    rows[:, 4:10] = 0
    whitener = Whitener(moment_of(rows).mean())
    found = whitener.apply(features(5, seed=3))
    assert np.isfinite(found).all() and not found[:, 4:10].any()
    assert found[:, :4].all() and found[:, 10:].all()


def test_undamped_a_direction_that_no_row_has_maps_to_zero():
    rows = np.random.default_rng(4).normal(size=(3, 5)).astype(np.float32)  # rank 3 of 5: the rest is rounding
    whitener = Whitener(moment_of(rows, [5]).mean(), damping=0.0)
    outside = np.linalg.svd(rows)[2][3:]
    np.testing.assert_allclose(whitener.apply(outside), 0, atol=1e-4)
    np.testing.assert_allclose(whitener.apply(rows) @ whitener.apply(rows).T, 3 * np.eye(3), atol=1e-4)


def test_eigenvalues_that_rounding_made_negative_are_zero():
    matrix = np.diag([1.0, -1e-9])
    np.testing.assert_allclose(inverse_root(matrix, 0.0), np.diag([1.0, 0.0]), rtol=1e-6)
    np.testing.assert_allclose(inverse_root(matrix, 0.1), np.diag([1.05**-0.5, 0.05**-0.5]), rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused_with_their_layer(bad):
    moment = moment_of(features(30))
    moment.blocks[1][2, 3] = bad
    for use in (lambda: mix(moment_of(features(5)), moment), lambda: Whitener(moment.mean())):
        with pytest.raises(ValueError, match="curvature of layer 1: expected finite numbers, found 1 of 36"):
            use()


@pytest.mark.parametrize("block", [1, 4, 100])
def test_rows_are_whitened_alike_in_blocks_of_any_size(block):
    whitener = Whitener(moment_of(features(30)).mean())
    rows = features(10, seed=5)
    found = whitener.apply(rows, block=block)
    assert found.dtype == np.float32
    for layer, start, stop in zip(whitener.roots, (0, 4, 10), (4, 10, 12), strict=True):
        np.testing.assert_allclose(found[:, start:stop], rows[:, start:stop] @ layer, rtol=1e-4, atol=1e-6)


def test_a_saved_whitener_whitens_to_the_same_bits(tmp_path):
    whitener = Whitener(moment_of(features(30)).mean())
    for name in "ab":
        whitener.save(tmp_path / name)
    found, rows = Whitener.load(tmp_path / "a"), features(10, seed=6)
    assert found.widths == WIDTHS
    np.testing.assert_array_equal(found.apply(rows), whitener.apply(rows))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
