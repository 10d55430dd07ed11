"""Dense vectors survive FAISS under our ids, score as an exact product, and bad rows are refused."""

import numpy as np
import pytest

from attribution.dense import build_index, open_index


def unit_rows(rows: int, dim: int = 6) -> np.ndarray:
    vectors = np.random.default_rng(0).normal(size=(rows, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def written(data: bytes, tmp_path) -> str:
    (tmp_path / "shard.faiss").write_bytes(data)
    return str(tmp_path / "shard.faiss")


def test_vectors_and_ids_read_back_bit_by_bit_in_order(tmp_path):
    vectors, ids = unit_rows(5), np.array([7, 2**40, 0, 9, 3])
    found, found_ids = open_index(written(build_index(vectors, ids), tmp_path))
    np.testing.assert_array_equal(found, vectors)
    np.testing.assert_array_equal(found_ids, ids)
    assert found.dtype == np.float32


def test_product_with_the_stored_vectors_is_the_exact_inner_product(tmp_path):
    vectors = unit_rows(30)
    found, _ = open_index(written(build_index(vectors, np.arange(30)), tmp_path))
    brute = [[sum(float(a) * float(b) for a, b in zip(q, v, strict=True)) for v in vectors] for q in vectors[:3]]
    np.testing.assert_allclose(vectors[:3] @ found.T, brute, rtol=1e-5, atol=1e-6)


def test_doubles_and_strided_rows_are_stored_as_the_same_floats(tmp_path):
    vectors = np.asfortranarray(unit_rows(10)[::2].astype(np.float64))
    found, _ = open_index(written(build_index(vectors, np.arange(5, dtype=np.int32)), tmp_path))
    np.testing.assert_array_equal(found, vectors.astype(np.float32))


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
