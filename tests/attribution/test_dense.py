"""Dense vectors survive FAISS under our ids, score as an exact product, and bad rows are refused."""

import gc

import numpy as np
import pytest

from attribution.dense import (
    LOST_BY_CODES,
    MIN_RECALL,
    NEIGHBOURS,
    Approximate,
    Setting,
    ShardVectors,
    build_index,
    fill,
    measure,
    recall,
    sample_size,
    shape_of,
    train,
    tune,
)


def unit_rows(rows: int, dim: int = 6) -> np.ndarray:
    vectors = np.random.default_rng(0).normal(size=(rows, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def written(data: bytes, tmp_path) -> str:
    (tmp_path / "shard.faiss").write_bytes(data)
    return str(tmp_path / "shard.faiss")


def test_vectors_and_ids_read_back_bit_by_bit_in_order(tmp_path):
    vectors, ids = unit_rows(5), np.array([7, 2**40, 0, 9, 3])
    found = ShardVectors(written(build_index(vectors, ids), tmp_path))
    np.testing.assert_array_equal(found.vectors, vectors)
    np.testing.assert_array_equal(found.ids, ids)
    assert found.vectors.dtype == np.float32


def test_vectors_outlive_the_object_that_opened_them(tmp_path):
    vectors = unit_rows(50_000)  # large enough to be unmapped, where nothing held the index
    path = written(build_index(vectors, np.arange(50_000)), tmp_path)
    held = ShardVectors(path).vectors[100:]
    gc.collect()
    np.testing.assert_array_equal(held, vectors[100:])


def test_product_with_the_stored_vectors_is_the_exact_inner_product(tmp_path):
    vectors = unit_rows(30)
    found = ShardVectors(written(build_index(vectors, np.arange(30)), tmp_path))
    brute = [[sum(float(a) * float(b) for a, b in zip(q, v, strict=True)) for v in vectors] for q in vectors[:3]]
    np.testing.assert_allclose(vectors[:3] @ found.vectors.T, brute, rtol=1e-5, atol=1e-6)


def test_a_query_has_its_products_with_rows_of_its_own(tmp_path):
    vectors = unit_rows(30)
    found = ShardVectors(written(build_index(vectors, np.arange(30)), tmp_path))
    rows = np.array([[3, -1, 29], [0, 3, -1]])
    products = found.products(vectors[[5, 7]].astype(np.float64), rows)
    brute = [[float(vectors[5] @ vectors[3]), -np.inf, float(vectors[5] @ vectors[29])]]
    brute.append([float(vectors[7] @ vectors[0]), float(vectors[7] @ vectors[3]), -np.inf])
    np.testing.assert_allclose(products, brute, rtol=1e-5, atol=1e-6)
    assert found.products(vectors[[7]], rows[1:, 1:2])[0, 0] == products[1, 1]
    assert found.products(vectors[:2], np.empty((2, 0))).shape == (2, 0)


def test_doubles_and_strided_rows_are_stored_as_the_same_floats(tmp_path):
    vectors = np.asfortranarray(unit_rows(10)[::2].astype(np.float64))
    found = ShardVectors(written(build_index(vectors, np.arange(5, dtype=np.int32)), tmp_path))
    np.testing.assert_array_equal(found.vectors, vectors.astype(np.float32))


def test_same_vectors_give_same_bytes():
    assert build_index(unit_rows(5), np.arange(5)) == build_index(unit_rows(5), np.arange(5))


def test_duplicate_ids_are_refused():
    with pytest.raises(ValueError, match="passage ids must be unique: FAISS accepts duplicates silently"):
        build_index(unit_rows(3), np.array([1, 2, 1]))


@pytest.mark.parametrize(("factor", "found"), [(2.0, "1.0000 to 2.0000"), (0.0, "0.0000 to 1.0000"), (np.nan, "nan")])
def test_a_row_that_is_not_of_unit_norm_is_refused_with_the_norms_found(factor, found):
    vectors = unit_rows(3)
    vectors[1] *= factor
    with pytest.raises(ValueError, match=f"vectors must have unit norm, found {found}"):
        build_index(vectors, np.arange(3))


def code_bytes(dim: int) -> int:
    """Half a byte for every 3 numbers, or the most of a divisor of `dim` above."""
    return {16: 2, 32: 4}[dim]


def approximate_over(vectors: np.ndarray, cuts: list[int], folder, ids: np.ndarray, nprobe: int) -> Approximate:
    trained = train(vectors[:: max(1, len(vectors) // 640)], seed=0)
    assert shape_of(trained) == (len(vectors[:: max(1, len(vectors) // 640)]) // 64, code_bytes(vectors.shape[1]) + 8)
    files = []
    for number, pair in enumerate(zip(np.split(vectors, cuts), np.split(ids, cuts), strict=True)):
        (folder / f"{number}.faiss").write_bytes(fill(trained, [pair]))
        files.append(str(folder / f"{number}.faiss"))
    return Approximate(files, Setting(nprobe, (1000, 3000)))


def test_the_parts_propose_the_exact_best_under_their_ids(tmp_path):
    turned = np.linalg.qr(np.random.default_rng(1).normal(size=(32, 32)))[0][:4]
    vectors, ids = (unit_rows(2000, 4) @ turned).astype(np.float32), np.arange(2000) + 2**40
    index = approximate_over(vectors, [700, 700, 1500], tmp_path, ids, nprobe=100)
    queries = vectors[::100]
    exact = ids[np.argsort(-(queries @ vectors.T), axis=1)[:, :10]]
    found = index.search(queries, 200)
    assert found.shape == (len(queries), 200)
    assert recall(found, exact) >= 0.95  # all lists are visited: what is lost is lost by the codes
    assert recall(found[:, :10], exact) < recall(found, exact)


def test_one_part_or_three_propose_the_same(tmp_path):
    vectors, ids = unit_rows(1000, 16), np.arange(1000)
    (tmp_path / "one").mkdir(), (tmp_path / "three").mkdir()
    one = approximate_over(vectors, [], tmp_path / "one", ids, 3).search(vectors[:20], 1000)
    three = approximate_over(vectors, [100, 900], tmp_path / "three", ids, 3).search(vectors[:20], 1000)
    np.testing.assert_array_equal(np.sort(one, axis=1), np.sort(three, axis=1))


def test_a_part_filled_from_several_shards_is_that_of_their_rows_together(tmp_path):
    vectors, ids, trained = unit_rows(300, 16), np.arange(300), train(unit_rows(300, 16), 0)
    halves = [(vectors[:100], ids[:100]), (vectors[100:], ids[100:])]
    assert fill(trained, halves) == fill(trained, [(vectors, ids)])


def test_few_lists_visited_find_less_and_missing_places_are_minus_one(tmp_path):
    vectors, ids = unit_rows(1000, 16), np.arange(1000)
    found = approximate_over(vectors, [500], tmp_path, ids, nprobe=1).search(vectors[:5], 1000)
    assert (found == -1).any() and found.max() < 1000


def test_training_is_the_same_for_the_same_sample_and_seed():
    vectors = unit_rows(400, 16)
    assert train(vectors, 0) == train(vectors, 0) != train(vectors, 1)


def test_the_sample_grows_with_the_corpus_up_to_its_limit():
    assert sample_size(200_000) == 64 * 447 and sample_size(1_000_000) == 64_000
    assert sample_size(10**9) == 2**18 and sample_size(50) == 50


def test_tuning_visits_and_proposes_no_more_than_the_recall_needs(tmp_path):
    vectors, ids = unit_rows(2000, 16), np.arange(2000)
    parts = approximate_over(vectors, [900], tmp_path, ids, 1).parts
    exact = np.argsort(-(vectors[:50] @ vectors.T), axis=1)[:, 1 : NEIGHBOURS + 1]
    setting = tune(parts, 10, vectors[:50], exact)
    found = measure(Approximate(parts, setting), vectors[:50], exact)
    assert found[0] >= MIN_RECALL and 10 < setting.proposed[0] < setting.proposed[1] < 2000
    everything = Approximate(parts, Setting(setting.nprobe, (2000, 2000))).search(vectors[:50], 2000)
    for value, k in zip(found, (10, NEIGHBOURS), strict=True):
        assert value >= recall(everything, exact[:, :k]) - LOST_BY_CODES
    fewer = Setting(setting.nprobe, (setting.proposed[0] // 2, setting.proposed[1] // 2))
    assert all(a < b for a, b in zip(measure(Approximate(parts, fewer), vectors[:50], exact), found, strict=True))
    less = Approximate(parts, Setting(int(setting.nprobe / 1.5), (2000, 2000))).search(vectors[:50], 2000)
    assert recall(less, exact[:, :10]) < MIN_RECALL + LOST_BY_CODES
    assert tune(parts, 10, vectors[:50], exact + 5000).nprobe == 10


def test_as_many_are_proposed_as_a_power_of_the_answers_size_through_both_measured_ones():
    setting = Setting(8, (100, 400))
    assert setting.proposals(10) == 100 and setting.proposals(100) == 400
    assert setting.proposals(1000) == 1600 and setting.proposals(1) == 100
    assert Setting(8, (100, 100)).proposals(5000) == 5000


def test_recall_is_the_mean_share_of_the_exact_best():
    assert recall(np.array([[1, 2, 9], [4, 5, -1]]), np.array([[1, 2], [5, 6]])) == (1.0 + 0.5) / 2
