"""Rows of features on disk: a shard is a set of `.npy` files that start with its name.

    <stem>.npy         [rows, dim]     phi (float32), phi / norm * sqrt(dim) (float16) or phi / norm / scale (int8)
    <stem>.norms.npy   [rows] float32  norm of phi; 0: the row has no gradient and is zero
    <stem>.scales.npy  [rows, layers]  int8 only, float32: a layer's largest entry of phi / norm, over 127
    <stem>.widths.npy  [layers] int64  int8 only: numbers of each layer in a row

Rows are written and read at their places, never through a memory map, whose pages would count as resident: memory stays
within a few batches at any shard size.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np

from schemas.errors import ArtifactMismatch

Format = Literal["float32", "float16", "int8"]
DTYPES = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2"), "int8": np.dtype("i1")}
FLOAT = DTYPES["float32"]
LEVELS = 127  # of int8 on each side of 0
ENCODED_AT_ONCE = 64  # rows: int8 takes a few float32 copies of them, 14 MB each at a dim of 53,760


def bytes_per_row(widths: list[int], format: Format) -> int:
    """What a row takes on disk in all its files, without their headers (128 bytes a file)."""
    scales = len(widths) * FLOAT.itemsize if format == "int8" else 0
    return sum(widths) * DTYPES[format].itemsize + FLOAT.itemsize + scales


def encode(features: np.ndarray, widths: list[int], format: Format) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """(stored `[rows, dim]`, norms `[rows]`, scales `[rows, layers]` or None) of features `[rows, dim]`.

    float16: raw gradients may leave its range (6e-8 to 65,504) either way; entries of a row at norm sqrt(dim) are near
    1. A layer whose entries are 6e-5 of that or less loses digits all the same.
    int8: one scale a row would drown the layers with small gradients, which curvature makes large again, so each has
    its own. Scales are float32: the largest entries of a unit row of 53,760 are about 0.02, a scale 1.6e-4, and float16
    has its full digits only down to 6e-5; a row takes 1.6 % more so, instead of 0.8 %, for layers of 256.

    Raises ValueError where an entry, or a norm in float32, is not finite.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        exact = np.asarray(features, np.float32)
        norms = np.sqrt(np.einsum("ij,ij->i", exact, exact, dtype=np.float64)).astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(norms))
    if len(bad):
        raise ValueError(
            f"features: expected finite rows, found {len(bad)} of {len(norms)} that are not, the first is row {bad[0]} "
            "of those given; leave them out"
        )
    if format == "float32":
        return exact, norms, None
    unit = exact / np.where(norms > 0, norms, np.float32(1))[:, None]
    if format == "float16":
        return (unit * np.float32(np.sqrt(exact.shape[1]))).astype(np.float16), norms, None
    starts = np.cumsum([0, *widths[:-1]])
    scales = np.maximum.reduceat(np.abs(unit), starts, axis=1) / np.float32(LEVELS)
    unit /= np.repeat(np.where(scales > 0, scales, np.float32(1)), widths, axis=1)
    return np.clip(np.rint(unit), -LEVELS, LEVELS).astype(np.int8), norms, scales


def decode(
    stored: np.ndarray, norms: np.ndarray, scales: np.ndarray | None = None, widths: list[int] | None = None
) -> np.ndarray:
    """phi `[rows, dim]` float32, not at unit norm, from what `encode` gave."""
    features = stored.astype(np.float32, copy=False)
    if stored.dtype == np.float16:
        features *= (norms / np.float32(np.sqrt(stored.shape[1])))[:, None]
    elif scales is not None and widths is not None:
        factors, stop = scales * norms[:, None], 0
        for layer, width in enumerate(widths):  # np.repeat of the factors would be a second block of this size
            features[:, stop : stop + width] *= factors[:, layer, None]
            stop += width
    return features


class _Rows:
    """An `.npy` file of zeros, made at its full size, that rows are put into at their places."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype):
        self.file = open(path, "wb")  # noqa: SIM115, closed by the writer
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self.file, header)
        self.start, self.dtype = self.file.tell(), dtype
        self.row_bytes = dtype.itemsize * int(np.prod(shape[1:]))
        self.size = self.start + shape[0] * self.row_bytes
        self.file.truncate(self.size)

    def put(self, positions: list[int], rows: np.ndarray) -> None:
        for position, row in zip(positions, rows, strict=True):
            self.file.seek(self.start + position * self.row_bytes)
            self.file.write(row.astype(self.dtype, copy=False).tobytes())

    def close(self) -> None:
        self.file.flush()
        size = os.fstat(self.file.fileno()).st_size
        self.file.close()
        assert size == self.size, (self.file.name, size, self.size)


class RowWriter:
    """Writes the `rows` rows of the shard `stem` in `folder`, each at most once and in any order.

    Use as a context manager. Rows never written are zero, with norm 0. The bytes do not depend on the order of writes.
    """

    def __init__(self, folder: Path, stem: str, rows: int, widths: list[int], format: Format):
        self.folder, self.stem, self.rows, self.widths, self.format = Path(folder), stem, rows, list(widths), format
        self._written = np.zeros(rows, dtype=bool)

    def __enter__(self) -> "RowWriter":
        self._files = [self._file("", (sum(self.widths),), DTYPES[self.format]), self._file(".norms", (), FLOAT)]
        if self.format == "int8":
            self._files.append(self._file(".scales", (len(self.widths),), FLOAT))
            np.save(self.folder / f"{self.stem}.widths.npy", np.array(self.widths, dtype="<i8"))
        return self

    def _file(self, part: str, row: tuple[int, ...], dtype: np.dtype) -> _Rows:
        return _Rows(self.folder / f"{self.stem}{part}.npy", (self.rows, *row), dtype)

    def write(self, positions: list[int], features: np.ndarray) -> None:
        """Puts features `[len(positions), dim]` at `positions`. Raises ValueError where one is not finite."""
        assert features.shape == (len(positions), sum(self.widths)), (features.shape, len(positions), sum(self.widths))
        assert all(0 <= position < self.rows for position in positions), (positions, self.rows)
        assert len(set(positions)) == len(positions) and not self._written[positions].any(), "a row is written once"
        for start in range(0, len(positions), ENCODED_AT_ONCE):
            part = slice(start, start + ENCODED_AT_ONCE)
            encoded = encode(features[part], self.widths, self.format)
            for file, rows in zip(self._files, encoded, strict=False):  # only int8 has scales, and a file for them
                file.put(positions[part], rows)
        self._written[positions] = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files:
            file.close()


class _Stored:
    """An `.npy` file that is read a range of rows at a time."""

    def __init__(self, path: str):
        self.path = path
        with open(path, "rb") as file:
            np.lib.format.read_magic(file)
            self.shape, _, self.dtype = np.lib.format.read_array_header_1_0(file)
            self.start = file.tell()
        if self.dtype not in DTYPES.values():
            raise ArtifactMismatch(f"{path}: expected {' or '.join(DTYPES)}, found {self.dtype}; index again")
        size, found = self.start + int(np.prod(self.shape)) * self.dtype.itemsize, os.path.getsize(path)
        if size != found:
            raise ArtifactMismatch(f"{path}: expected {size} bytes, found {found}; it was cut short, index again")

    def read(self, start: int, stop: int) -> np.ndarray:
        row = int(np.prod(self.shape[1:]))
        offset = self.start + start * row * self.dtype.itemsize
        found = np.fromfile(self.path, self.dtype, (stop - start) * row, offset=offset)
        return found.reshape(stop - start, *self.shape[1:])


def copy_rows(source: str, target: Path, rows: np.ndarray) -> None:
    """Writes the rows `rows`, sorted, of one `.npy` file of a shard to another, as they are."""
    stored, done = _Stored(source), 0
    file = _Rows(target, (len(rows), *stored.shape[1:]), stored.dtype)
    for start in range(0, stored.shape[0], 1024):
        inside = rows[(rows >= start) & (rows < start + 1024)] - start
        block = stored.read(start, min(start + 1024, stored.shape[0]))
        file.put(list(range(done, done + len(inside))), block[inside])
        done += len(inside)
    file.close()


class RowReader:
    """Reads the shard whose files start with `stem`: `rows`, `dim` and `norms` `[rows]` float32 at once.

    `locate` gives the local path of a file, for those that lie elsewhere. Raises ArtifactMismatch where the files do
    not belong together or one is cut short.
    """

    def __init__(self, stem: str | Path, locate: Callable[[str], str] = str):
        self._stored = _Stored(locate(f"{stem}.npy"))
        self.rows, self.dim = self._stored.shape
        norms = _Stored(locate(f"{stem}.norms.npy"))
        self._scales = self._widths = None
        expected = {norms.path: (norms.shape, (self.rows,))}
        if self._stored.dtype == DTYPES["int8"]:
            self._scales = _Stored(locate(f"{stem}.scales.npy"))
            self._widths = np.load(locate(f"{stem}.widths.npy")).tolist()
            expected[self._scales.path] = (self._scales.shape, (self.rows, len(self._widths)))
            expected[self._stored.path] = (self._stored.shape, (self.rows, sum(self._widths)))
        for path, (found, shape) in expected.items():
            if found != shape:
                raise ArtifactMismatch(f"{path}: expected the shape {shape} of its shard, found {found}; index again")
        self.norms = norms.read(0, self.rows)

    def blocks(self, size: int = 1024) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, features `[at most size, dim]` float32, not at unit norm) of all rows in order."""
        for start in range(0, self.rows, size):
            stop = min(start + size, self.rows)
            scales = self._scales.read(start, stop) if self._scales else None
            yield start, decode(self._stored.read(start, stop), self.norms[start:stop], scales, self._widths)
