"""Rows of features on disk: they come back, whatever their order and scale, and rank as they did."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from attribution.curvature import SecondMoment, Whitener
from attribution.feature_rows import RowReader, RowWriter, bytes_per_row, decode, encode
from attribution.tracin import unit
from schemas.errors import ArtifactMismatch

WIDTHS = [16, 64, 4, 36]
FORMATS = ["float32", "float16", "int8"]


def gradients(rows: int, seed: int = 0, widths: list[int] = WIDTHS, tokens: int = 3) -> np.ndarray:
    """Rows with the tails that gradients have: each layer a sum over tokens of products of Gaussians."""
    rng = np.random.default_rng(seed)
    layers = [(rng.normal(size=(rows, tokens, w)) * rng.normal(size=(rows, tokens, w))).sum(1) for w in widths]
    return np.concatenate(layers, axis=1).astype(np.float32)


def write(
    folder: Path, features: np.ndarray, format: str, widths: list[int] = WIDTHS, stem: str = "00000-00000"
) -> Path:
    with RowWriter(folder, stem, len(features), widths, format) as writer:
        writer.write(list(range(len(features))), features)
    return folder / stem


def read(stem: Path, size: int = 1024) -> np.ndarray:
    reader = RowReader(stem)
    found = np.zeros((reader.rows, reader.dim), dtype=np.float32)
    for start, rows in reader.blocks(size):
        assert rows.dtype == np.float32
        found[start : start + len(rows)] = rows
    return found


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (unit(a.astype(np.float64)) * unit(b.astype(np.float64))).sum(axis=1)


def test_float32_rows_come_back_exactly(tmp_path):
    features = gradients(20)
    np.testing.assert_array_equal(read(write(tmp_path, features, "float32")), features)


def test_float16_keeps_three_digits_of_each_entry(tmp_path):
    features = gradients(20)
    found = read(write(tmp_path, features, "float16"))
    scale = np.linalg.norm(features, axis=1, keepdims=True) / np.sqrt(sum(WIDTHS))
    assert (np.abs(found - features) <= 1e-3 * np.maximum(np.abs(features), scale)).all()


def test_int8_keeps_the_direction_of_a_row(tmp_path):
    features = gradients(200)
    assert cosines(read(write(tmp_path, features, "int8")), features).min() > 0.9999


def test_int8_is_off_by_at_most_half_a_step_of_its_layer():
    rng = np.random.default_rng(0)
    features = rng.standard_t(3, size=(50, sum(WIDTHS))).astype(np.float32)
    found = decode(*encode(features, WIDTHS, "int8"), WIDTHS)
    for layer in np.split(np.arange(sum(WIDTHS)), np.cumsum(WIDTHS)[:-1]):
        step = np.abs(features[:, layer]).max(axis=1, keepdims=True) / 127
        assert (np.abs(found - features)[:, layer] <= 0.501 * step).all()


@pytest.mark.parametrize("format", FORMATS)
def test_norms_are_those_of_the_rows_before_storage(tmp_path, format):
    features = gradients(20)
    reader = RowReader(write(tmp_path, features, format))
    assert (reader.rows, reader.dim, reader.norms.dtype) == (20, sum(WIDTHS), np.float32)
    np.testing.assert_allclose(reader.norms, np.linalg.norm(features.astype(np.float64), axis=1), rtol=1e-7)


@pytest.mark.parametrize("format", FORMATS)
def test_the_order_of_writes_does_not_change_a_byte(tmp_path, format):
    features = gradients(200)
    write(tmp_path, features, format, stem="in-order")
    shuffled = np.random.default_rng(1).permutation(200)
    with RowWriter(tmp_path, "shuffled", 200, WIDTHS, format) as writer:
        for positions in np.array_split(shuffled, 7):
            writer.write(positions.tolist(), features[positions])
    parts = [file.name.removeprefix("in-order") for file in tmp_path.glob("in-order.*")]
    assert sorted(parts) == sorted([".npy", ".norms.npy", *([".scales.npy", ".widths.npy"] * (format == "int8"))])
    for part in parts:
        assert (tmp_path / f"in-order{part}").read_bytes() == (tmp_path / f"shuffled{part}").read_bytes()


@pytest.mark.parametrize("format", FORMATS)
def test_rows_never_written_and_rows_without_a_gradient_are_zero(tmp_path, format):
    features = gradients(6)
    features[4] = 0
    with RowWriter(tmp_path, "shard", 6, WIDTHS, format) as writer:
        writer.write([5, 4, 0], features[[5, 4, 0]])
        writer.write([], features[:0])
    found, norms = read(tmp_path / "shard"), RowReader(tmp_path / "shard").norms
    assert not found[1:5].any() and found[[0, 5]].any(axis=1).all()
    assert norms[1:5].tolist() == [0] * 4 and norms[[0, 5]].all()


@pytest.mark.parametrize("format", FORMATS)
def test_a_shard_without_rows_is_read_as_one(tmp_path, format):
    stem = write(tmp_path, gradients(0), format)
    assert RowReader(stem).rows == 0 and list(RowReader(stem).blocks()) == []


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("norm", [1e-30, 1e-12, 1e12, 1e30])
def test_rows_of_any_norm_survive(tmp_path, format, norm):
    features = gradients(10)
    scaled = (features * (norm / np.linalg.norm(features, axis=1, keepdims=True))).astype(np.float32)
    stem = write(tmp_path, scaled, format)
    assert cosines(read(stem), scaled).min() > 0.9999
    np.testing.assert_allclose(RowReader(stem).norms, norm, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(read(stem).astype(np.float64), axis=1), norm, rtol=1e-3)


def test_int8_keeps_the_precision_of_a_layer_a_million_times_weaker(tmp_path):
    features = gradients(50)
    features[:, :16] *= 1e-6
    found = read(write(tmp_path, features, "int8"))
    for columns in (slice(0, 16), slice(16, 80), slice(80, 84), slice(84, 120)):
        assert cosines(found[:, columns], features[:, columns]).min() > 0.9995


def test_one_scale_a_row_would_have_drowned_that_layer():
    features = gradients(50)
    features[:, :16] *= 1e-6
    found = decode(*encode(features, [120], "int8"), [120])
    assert not found[:, :16].any()


@pytest.mark.parametrize("size", [1, 7, 20, 1024])
@pytest.mark.parametrize("format", FORMATS)
def test_blocks_of_any_size_give_the_same_rows_in_order(tmp_path, format, size):
    stem = write(tmp_path, gradients(20), format)
    np.testing.assert_array_equal(read(stem, size), read(stem))
    assert [start for start, _ in RowReader(stem).blocks(size)] == list(range(0, 20, size))


def test_files_are_plain_npy_in_the_formats_units(tmp_path):
    features = gradients(5)
    for format in FORMATS:
        write(tmp_path, features, format, stem=format)
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    np.testing.assert_array_equal(np.load(tmp_path / "float32.npy"), features)
    half = np.load(tmp_path / "float16.npy")
    assert half.dtype == np.float16
    np.testing.assert_allclose(half, features / norms * np.sqrt(120), rtol=1e-3, atol=1e-6)
    levels, scales = np.load(tmp_path / "int8.npy"), np.load(tmp_path / "int8.scales.npy")
    assert levels.dtype == np.int8 and scales.shape == (5, 4)
    assert np.load(tmp_path / "int8.widths.npy").tolist() == WIDTHS
    largest = np.abs(features / norms)[:, 16:80].max(axis=1)
    np.testing.assert_allclose(scales[:, 1], largest / 127, rtol=1e-6)
    assert (np.abs(levels[:, 16:80]).max(axis=1) == 127).all()


@pytest.mark.parametrize("format", FORMATS)
def test_bytes_per_row_are_what_the_files_take(tmp_path, format):
    write(tmp_path, gradients(1), format, stem="one")
    write(tmp_path, gradients(501), format, stem="many")
    sizes = {stem: sum(file.stat().st_size for file in tmp_path.glob(f"{stem}.*")) for stem in ("one", "many")}
    assert (sizes["many"] - sizes["one"]) / 500 == bytes_per_row(WIDTHS, format)
    headers = 128 * 2 + (format == "int8") * (128 * 2 + 8 * len(WIDTHS))
    assert sizes["one"] == headers + bytes_per_row(WIDTHS, format)


def test_bytes_per_row_by_hand():
    widths = [256] * 210
    assert bytes_per_row(widths, "float32") == 4 * 53_760 + 4
    assert bytes_per_row(widths, "float16") == 2 * 53_760 + 4
    assert bytes_per_row(widths, "int8") == 53_760 + 4 + 4 * 210


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_a_row_that_is_not_finite_is_refused(tmp_path, format, bad):
    features = gradients(4)
    features[2, 3:5] = bad  # two of 3e38 have a norm beyond float32
    with RowWriter(tmp_path, "shard", 4, WIDTHS, format) as writer:
        with pytest.raises(ValueError, match="expected finite rows, found 1 of 4 that are not, the first is row 2"):
            writer.write([0, 1, 2, 3], features)
        writer.write([0, 1, 3], features[[0, 1, 3]])
    assert not read(tmp_path / "shard")[2].any()


@pytest.mark.parametrize("positions", [[0, 0], [1, 2], [-1, 0], [0, 3]])
def test_a_place_that_is_taken_or_not_there_is_our_own_mistake(tmp_path, positions):
    with RowWriter(tmp_path, "shard", 3, WIDTHS, "int8") as writer:
        writer.write([1], gradients(1))
        with pytest.raises(AssertionError):
            writer.write(positions, gradients(2))


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    stem = write(tmp_path, gradients(5), "int8")
    whole = (tmp_path / "00000-00000.npy").read_bytes()
    (tmp_path / "00000-00000.npy").write_bytes(whole[:-1])
    with pytest.raises(ArtifactMismatch, match=f"expected {len(whole)} bytes, found {len(whole) - 1}"):
        RowReader(stem)
    write(tmp_path, gradients(6), "int8", stem="other")
    for part, shape in (("", "120"), (".norms", "5"), (".scales", "5, 4")):
        write(tmp_path, gradients(5), "int8")
        other = np.load(tmp_path / f"other{part}.npy")
        np.save(tmp_path / f"00000-00000{part}.npy", other[:5, 1:] if part == "" else other)
        with pytest.raises(ArtifactMismatch, match=f"expected the shape .*{shape}"):
            RowReader(stem)
    np.save(tmp_path / "00000-00000.npy", np.zeros((5, 120)))
    with pytest.raises(ArtifactMismatch, match="expected float32 or float16 or int8, found float64"):
        RowReader(stem)


def test_each_file_is_read_where_locate_says(tmp_path):
    features = gradients(5)
    write(tmp_path, features, "int8", stem="shard")
    for file in list(tmp_path.iterdir()):  # a cache of an object store has a folder a file
        (tmp_path / file.stem).mkdir()
        file.rename(tmp_path / file.stem / file.name)
    reader = RowReader("bucket/shard", lambda path: str(tmp_path / Path(path).stem / Path(path).name))
    assert cosines(next(reader.blocks())[1], features).min() > 0.9999


@pytest.mark.parametrize("format", FORMATS)
def test_memory_does_not_grow_with_the_shard(tmp_path, format):
    features, widths = gradients(100, widths=[1000]), [1000]  # 0.4 MB, in a shard of 20 MB as float32
    tracemalloc.start()
    with RowWriter(tmp_path, "shard", 5000, widths, format) as writer:
        for start in range(0, 5000, 100):
            writer.write(list(range(start, start + 100)), features)
    for _start, rows in RowReader(tmp_path / "shard").blocks(100):
        assert rows.shape == (100, 1000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3e6


@pytest.mark.parametrize("whitened", [False, True])
@pytest.mark.parametrize("format", ["float16", "int8"])
def test_storage_changes_at_most_two_percent_of_the_best_ten(format, whitened):
    rng = np.random.default_rng(3)
    widths = [64] * 40
    features = rng.standard_t(3, size=(2000, sum(widths)))
    features *= np.repeat(np.exp(2 * rng.normal(size=40)), widths)  # and layers of very unlike gradients
    features = features.astype(np.float32)
    noise = features.std(axis=0) * rng.standard_t(3, size=(100, sum(widths)))
    queries = (features[rng.integers(0, 2000, (100, 5))].mean(axis=1) + 0.5 * noise).astype(np.float32)
    moment = SecondMoment.zero(widths)
    moment.add(features)
    whitener = Whitener(moment.mean())

    def best(rows: np.ndarray) -> list[set[int]]:
        q, r = (whitener.apply(queries), whitener.apply(rows)) if whitened else (queries, rows)
        return [set(top) for top in np.argsort(-unit(q) @ unit(r).T, axis=1, kind="stable")[:, :10].tolist()]

    stored = decode(*encode(features, widths, format), widths)
    changed = [len(exact - found) / 10 for exact, found in zip(best(features), best(stored), strict=True)]
    assert np.mean(changed) <= 0.02
