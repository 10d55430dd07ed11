"""Dense vectors in FAISS under our own int64 passage ids: exact per shard, and over all shards an approximate index.

Each shard's unit vectors are kept exactly; while the index is small the scores are their products with the queries.
From `APPROXIMATE_FROM` vectors on, an inverted file with product-quantised residuals (IVF-PQ: Jégou et al. 2011,
"Product quantization for nearest neighbor search") proposes `OVERFETCH` times as many passages as are asked for, and
the exact vectors score those. It is trained once on a sample, filled shard by shard in parallel and merged on disk.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import faiss
import numpy as np
from faiss.contrib.ondisk import merge_ondisk

APPROXIMATE_FROM = 200_000
SAMPLE = 2**18  # vectors that it is trained on at most: 400 MB at 384 dimensions
PER_LIST = 39  # FAISS asks for so many training vectors a list
SUBVECTOR = 8  # numbers that one byte stands for: 1/32 of float32
OVERFETCH = 10
MIN_RECALL = 0.97  # that nprobe is chosen for, on vectors of the corpus


def build_index(vectors: np.ndarray, ids: np.ndarray) -> bytes:
    """A FAISS index of unit `vectors` `[rows, dim]` under `ids` `[rows]`, serialised. Raises ValueError for a bad row.

    IDMap2 stands over Flat only: over IVF a removal corrupts the ids (faiss issue 4535).
    """
    if len(np.unique(ids)) != len(ids):
        raise ValueError("passage ids must be unique: FAISS accepts duplicates silently")
    norms = np.linalg.norm(vectors, axis=1)
    if not np.allclose(norms, 1.0, atol=1e-3):
        raise ValueError(f"vectors must have unit norm, found {norms.min():.4f} to {norms.max():.4f}")
    index = faiss.IndexIDMap2(faiss.IndexFlatIP(vectors.shape[1]))
    index.add_with_ids(np.ascontiguousarray(vectors, np.float32), ids.astype(np.int64))
    return faiss.serialize_index(index).tobytes()


class ShardVectors:
    """A shard's index, opened: `ids` `[rows]`, and `vectors` `[rows, dim]`, memory-mapped: a few of many are cheap.

    The vectors live as long as this object.
    """

    def __init__(self, path: str):
        self._index = faiss.read_index(path, faiss.IO_FLAG_MMAP_IFC)
        self.ids = faiss.vector_to_array(self._index.id_map)
        flat = faiss.downcast_index(self._index.index)
        self.vectors = faiss.rev_swig_ptr(flat.get_xb(), flat.ntotal * flat.d).reshape(flat.ntotal, flat.d)


def sample_size(num_vectors: int) -> int:
    """How many vectors `train` wants of a corpus of so many."""
    return min(num_vectors, SAMPLE, PER_LIST * int(4 * np.sqrt(num_vectors)))


def train(sample: np.ndarray, seed: int) -> bytes:
    """An empty IVF-PQ index trained on unit vectors `[sample_size(N), dim]`, serialised.

    4 sqrt(N) lists, as far as the sample has 39 vectors for each; a byte for every 8 numbers (or the nearest divisor of
    dim below). The same sample gives the same bytes with the same number of threads.
    """
    rows, dim = sample.shape
    parts = max(part for part in range(1, max(1, dim // SUBVECTOR) + 1) if dim % part == 0)
    lists, coarse = max(1, rows // PER_LIST), faiss.IndexFlatIP(dim)
    index = faiss.IndexIVFPQ(coarse, dim, lists, parts, 8, faiss.METRIC_INNER_PRODUCT)
    index.cp.seed = index.pq.cp.seed = seed + 1  # 0 is drawn from the clock
    index.cp.spherical = True
    index.train(np.ascontiguousarray(sample, np.float32))
    return faiss.serialize_index(index).tobytes()


def fill(trained: bytes, vectors: np.ndarray, ids: np.ndarray) -> bytes:
    """One shard's vectors `[rows, dim]` in a copy of the trained index, under `ids` `[rows]`, serialised."""
    index = faiss.deserialize_index(np.frombuffer(trained, np.uint8))
    index.add_with_ids(np.ascontiguousarray(vectors, np.float32), ids.astype(np.int64))
    return faiss.serialize_index(index).tobytes()


def merge(trained: bytes, shards: list[str], folder: Path) -> list[str]:
    """Merges filled shards (paths) into `ivf.faiss` and its lists `ivf.ivfdata` in `folder`, without loading them.

    Returns the names of both files. The lists are found by their name beside the index, wherever it lies.
    """
    index = faiss.deserialize_index(np.frombuffer(trained, np.uint8))
    with _printing_to_stderr():
        merge_ondisk(index, shards, str(folder / "ivf.ivfdata"))
    faiss.write_index(index, str(folder / "ivf.faiss"))
    return ["ivf.faiss", "ivf.ivfdata"]


@contextmanager
def _printing_to_stderr() -> Iterator[None]:
    """FAISS tells about its files on the standard output, where results belong."""
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


class Approximate:
    """The merged index, opened for search; its lists are memory-mapped."""

    def __init__(self, path: str, nprobe: int):
        with _printing_to_stderr():
            self._index = faiss.read_index(path, faiss.IO_FLAG_ONDISK_SAME_DIR)
        self._index.nprobe = nprobe

    @property
    def num_lists(self) -> int:
        return self._index.nlist

    @property
    def code_bytes(self) -> int:
        """Bytes a vector, its id included."""
        return self._index.code_size + 8

    def search(self, queries: np.ndarray, k: int) -> np.ndarray:
        """`[queries, k * OVERFETCH]` ids of passages to score exactly, -1 where the lists visited held fewer."""
        return self.codes_only(queries, k * OVERFETCH)

    def codes_only(self, queries: np.ndarray, k: int) -> np.ndarray:
        """`[queries, k]` ids by the codes' own scores, which nothing rescored."""
        return self._index.search(np.ascontiguousarray(queries, np.float32), k)[1]


def recall(found: np.ndarray, exact: np.ndarray) -> float:
    """Mean share of each row of `exact` `[queries, k]` that stands in the same row of `found` `[queries, any]`."""
    return float(np.mean([np.isin(e, f).mean() for f, e in zip(found, exact, strict=True)]))
