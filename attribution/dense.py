"""Dense vectors in FAISS under our own int64 passage ids: exact per shard, and over all shards an approximate index.

Each shard's unit vectors are kept exactly; while the index is small the scores are their products with the queries.
From `APPROXIMATE_FROM` vectors on, an inverted file of product-quantised residuals proposes passages, and their exact
vectors score them (IVF-PQ: Jégou et al. 2011, "Product quantization for nearest neighbor search"; with 4-bit codes
whose tables fit into registers: André et al. 2015, "Cache locality is not enough"). It is trained once on a sample and
filled in parts of up to `PART` vectors, in parallel; a search goes through the parts one after another, so that none
needs more memory than a part.

8-bit codes of the same size were 9 times slower, took 20 times the training and found less (400,000 vectors of 384
numbers, docs/log.md).
"""

from collections.abc import Iterable

import faiss
import numpy as np

APPROXIMATE_FROM = 200_000
PART = 2**20  # vectors: 60 MB at 384 dimensions
PER_LIST = 64  # training vectors; FAISS asks for 39 at least
SAMPLE = 2**18  # vectors to train on at most: 400 MB at 384 dimensions
SUBVECTOR = 4  # numbers that 4 bits stand for: 1/32 of float32
PROPOSED = 1000  # passages a query at least
OVERFETCHES = (10, 30, 100, 300)  # times as many as asked for, the first that suffices
MIN_RECALL = 0.94  # that nprobe and the overfetch are chosen for, on vectors of the corpus; facts found 0.01 more


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
    """A shard's index, opened: `ids` `[rows]`, and `vectors` `[rows, dim]`, memory-mapped: a few of many are cheap."""

    def __init__(self, path: str):
        index = faiss.read_index(path, faiss.IO_FLAG_MMAP_IFC)
        self.ids = faiss.vector_to_array(index.id_map)
        self.vectors = np.asarray(_Mapped(index))


class _Mapped:
    """An index's vectors as numpy takes them: the array, and every view of it, keeps the index alive.

    FAISS' own array does not, and reading it after the index is gone ends the process.
    """

    def __init__(self, index: faiss.IndexIDMap2):
        flat = faiss.downcast_index(index.index)
        vectors = faiss.rev_swig_ptr(flat.get_xb(), flat.ntotal * flat.d).reshape(flat.ntotal, flat.d)
        self._index, self.__array_interface__ = index, vectors.__array_interface__


def sample_size(num_vectors: int) -> int:
    """How many vectors `train` wants of a corpus of so many."""
    return min(num_vectors, SAMPLE, PER_LIST * int(np.sqrt(num_vectors)))


def train(sample: np.ndarray, seed: int) -> bytes:
    """An empty index trained on unit vectors `[sample_size(N), dim]`, serialised.

    It has sqrt(N) lists, as far as the sample has 64 vectors for each, and half a byte for every 4 numbers (or the
    nearest divisor of dim above). The same sample and number of threads give the same bytes.
    """
    rows, dim = sample.shape
    parts = max(part for part in range(1, max(1, dim // SUBVECTOR) + 1) if dim % part == 0)
    lists, coarse = max(1, rows // PER_LIST), faiss.IndexFlatIP(dim)
    index = faiss.IndexIVFPQFastScan(coarse, dim, lists, parts, 4, faiss.METRIC_INNER_PRODUCT)
    index.cp.seed = index.pq.cp.seed = seed + 1  # FAISS would take 0 from the clock
    index.cp.spherical = True
    index.train(np.ascontiguousarray(sample, np.float32))
    return faiss.serialize_index(index).tobytes()


def fill(trained: bytes, shards: Iterable[tuple[np.ndarray, np.ndarray]]) -> bytes:
    """A part of the index: a copy of the trained one with the (vectors `[rows, dim]`, ids `[rows]`) of some shards."""
    index = faiss.deserialize_index(np.frombuffer(trained, np.uint8))
    for vectors, ids in shards:
        index.add_with_ids(np.ascontiguousarray(vectors, np.float32), ids.astype(np.int64))
    return faiss.serialize_index(index).tobytes()


class Approximate:
    """The parts of the index, opened one after another for each search; one is held at a time.

    `nprobe` lists of each are visited, and `overfetch` times as many passages proposed as are asked for.
    """

    def __init__(self, parts: list[str], nprobe: int, overfetch: int):
        self.parts, self.nprobe, self.overfetch = parts, nprobe, overfetch
        self._open: tuple[str, faiss.Index] | None = None

    def _part(self, path: str) -> faiss.Index:
        if self._open is None or self._open[0] != path:
            self._open = None  # not two at once
            self._open = (path, faiss.read_index(path))
        return self._open[1]

    def propose(self, queries: np.ndarray, k: int) -> np.ndarray:
        """`[queries, at least k * overfetch]` ids of passages to score exactly, -1 where the lists held fewer."""
        return self.search(queries, max(PROPOSED, k * self.overfetch))

    def search(self, queries: np.ndarray, count: int) -> np.ndarray:
        """`[queries, count]` ids by the codes' scores, best first, -1 where the lists visited held fewer."""
        queries = np.ascontiguousarray(queries, np.float32)
        scores, ids = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        for part in self.parts:
            index = self._part(part)
            index.nprobe = self.nprobe
            found = index.search(queries, count)
            scores, ids = np.concatenate([scores, found[0]], axis=1), np.concatenate([ids, found[1]], axis=1)
            best = np.argsort(-scores, axis=1, kind="stable")[:, :count]
            scores, ids = np.take_along_axis(scores, best, 1), np.take_along_axis(ids, best, 1)
        return ids


def tune(parts: list[str], lists: int, queries: np.ndarray, exact: np.ndarray) -> tuple[Approximate, float]:
    """(the index that visits and proposes as few as give MIN_RECALL of `exact` `[queries, k]`, its recall).

    The best that was seen, where none gives it.
    """
    best, highest = Approximate(parts, lists, OVERFETCHES[-1]), -1.0
    for overfetch in OVERFETCHES:
        nprobe = 4
        while nprobe < lists:
            nprobe = min(2 * nprobe, lists)
            index = Approximate(parts, nprobe, overfetch)
            found = recall(index.search(queries, exact.shape[1] * overfetch), exact)
            if found > highest:
                best, highest = index, found
            if found >= MIN_RECALL:
                return index, found
    return best, highest


def shape_of(trained: bytes) -> tuple[int, int]:
    """(lists, bytes a vector with its id) of a trained index."""
    index = faiss.deserialize_index(np.frombuffer(trained, np.uint8))
    return index.nlist, index.code_size + 8


def recall(found: np.ndarray, exact: np.ndarray) -> float:
    """Mean share of each row of `exact` `[queries, k]` that stands in the same row of `found` `[queries, any]`."""
    return float(np.mean([np.isin(e, f).mean() for f, e in zip(found, exact, strict=True)]))
