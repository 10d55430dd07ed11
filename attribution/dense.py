"""Dense vectors in FAISS under our own int64 passage ids: exact per shard, and over all shards an approximate index.

Each shard's unit vectors are kept exactly; while the index is small the scores are their products with the queries.
From `APPROXIMATE_FROM` vectors on, an inverted file of product-quantised residuals proposes passages, and their exact
vectors score them (IVF-PQ: Jégou et al. 2011, "Product quantization for nearest neighbor search"; with 4-bit codes
whose tables fit into registers: André et al. 2015, "Cache locality is not enough"). It is trained once on a sample and
filled in parts of up to `PART` vectors, in parallel; a search goes through the parts one after another, so that none
needs more memory than a part.

8-bit codes of the same size were 9 times slower, took 20 times the training and found less (400,000 vectors of 384
numbers, docs/log.md). With 4 bits for 4 numbers a query's best 10 needed 3,000 proposals, for 3 numbers 1,000 (a
million vectors).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import faiss
import numpy as np

APPROXIMATE_FROM = 200_000
PART = 2**20  # vectors: 60 MB at 384 dimensions
PER_LIST = 64  # training vectors; FAISS asks for 39 at least
SAMPLE = 2**18  # vectors to train on at most: 400 MB at 384 dimensions
SUBVECTOR = 3  # numbers that 4 bits stand for: 1/24 of float32
NEIGHBOURS = 100  # of each vector that the recall is measured on
TOPS = (10, NEIGHBOURS)  # sizes of the answers that it is tuned for
MOST = 10_000  # passages proposed a query at most
MIN_RECALL = 0.95  # of the exact best 10 of vectors of the corpus, themselves left out; facts find some 0.01 more
LOST_BY_CODES = 0.005  # of that, at most, by proposing few
LESS = 0.01  # by which the recall may fall as an index grows before it is tuned anew


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
        self._flat = faiss.downcast_index(index.index)

    def products(self, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """`[queries, n]` inner products of each query with its own `rows` `[queries, n]`, which are read in place.

        A row of -1 has -inf. A pair's product is the same beside any others.
        """
        queries, rows = np.ascontiguousarray(queries, np.float32), np.ascontiguousarray(rows, np.int64)
        found = np.empty(rows.shape, np.float32)
        pointers = [faiss.swig_ptr(array) for array in (queries, found, rows)]
        if rows.size:  # FAISS refuses none
            self._flat.compute_distance_subset(len(queries), pointers[0], rows.shape[1], *pointers[1:])
        return found


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


@dataclass(frozen=True)
class Setting:
    """How an approximate index is asked: `nprobe` lists are visited, and `proposed` passages for each size of TOPS."""

    nprobe: int
    proposed: tuple[int, int]

    def proposals(self, k: int) -> int:
        """How many passages to propose for the best k: between and beyond TOPS a power of k, at least k."""
        low, high = self.proposed
        power = math.log(max(high, low) / low) / math.log(TOPS[1] / TOPS[0])
        return max(k, math.ceil(low * max(1.0, k / TOPS[0]) ** power))


class Approximate:
    """The parts of the index, opened one after another for each search; one is held at a time."""

    def __init__(self, parts: list[str], setting: Setting):
        self.parts, self.setting = parts, setting
        self._open: tuple[str, faiss.Index] | None = None

    def _part(self, path: str) -> faiss.Index:
        if self._open is None or self._open[0] != path:
            self._open = None  # not two at once
            self._open = (path, faiss.read_index(path))
        return self._open[1]

    def propose(self, queries: np.ndarray, k: int) -> np.ndarray:
        """`[queries, setting.proposals(k)]` ids of passages to score exactly, -1 where the lists held fewer."""
        return self.search(queries, self.setting.proposals(k))

    def search(self, queries: np.ndarray, count: int) -> np.ndarray:
        """`[queries, count]` ids by the codes' scores, best first, -1 where the lists visited held fewer."""
        queries = np.ascontiguousarray(queries, np.float32)
        scores, ids = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        for part in self.parts:
            index = self._part(part)
            index.nprobe = self.setting.nprobe
            found = index.search(queries, count)
            scores, ids = np.concatenate([scores, found[0]], axis=1), np.concatenate([ids, found[1]], axis=1)
            if len(self.parts) > 1:
                best = np.argsort(-scores, axis=1, kind="stable")[:, :count]
                scores, ids = np.take_along_axis(scores, best, 1), np.take_along_axis(ids, best, 1)
        return ids


def _steps(least: int, most: int) -> list[int]:
    """Numbers from `least` to `most`, each 2^(1/3) of the last."""
    steps = [least]
    while steps[-1] < most:
        steps.append(min(most, max(steps[-1] + 1, round(steps[-1] * 2 ** (1 / 3)))))
    return steps


def tune(parts: list[str], lists: int, queries: np.ndarray, exact: np.ndarray) -> Setting:
    """The setting that visits as few lists as give MIN_RECALL of the `exact` best 10 `[queries, NEIGHBOURS]`, and
    proposes as few passages as lose LOST_BY_CODES of that; all lists, where no fewer give it.
    """
    count = max(MOST, NEIGHBOURS)

    def search(nprobe: int) -> tuple[np.ndarray, bool]:
        found = Approximate(parts, Setting(nprobe, (count, count))).search(queries, count)
        return found, recall(found, exact[:, : TOPS[0]]) >= MIN_RECALL + LOST_BY_CODES

    low, nprobe = 1, min(8, lists)
    found, enough = search(nprobe)
    while not enough and nprobe < lists:
        low, nprobe = nprobe, min(2 * nprobe, lists)
        found, enough = search(nprobe)
    for _ in range(2 if enough else 0):  # to a quarter of an octave: a search of all lists takes seconds
        middle = round(math.sqrt(low * nprobe))
        here, suffices = search(middle)
        low, nprobe, found = (low, middle, here) if suffices else (middle, nprobe, found)
    proposed = []
    for k in TOPS:
        wanted = recall(found, exact[:, :k]) - LOST_BY_CODES
        enough = (n for n in _steps(2 * k, count) if recall(found[:, :n], exact[:, :k]) >= wanted)
        proposed.append(next(enough))
    return Setting(nprobe, (proposed[0], proposed[1]))


def measure(index: Approximate, queries: np.ndarray, exact: np.ndarray) -> tuple[float, ...]:
    """For each size of TOPS the recall of what the index proposes of the `exact` best `[queries, NEIGHBOURS]`."""
    found = index.search(queries, max(map(index.setting.proposals, TOPS)))
    return tuple(recall(found[:, : index.setting.proposals(k)], exact[:, :k]) for k in TOPS)


def shape_of(trained: bytes) -> tuple[int, int]:
    """(lists, bytes a vector with its id) of a trained index."""
    index = faiss.deserialize_index(np.frombuffer(trained, np.uint8))
    return index.nlist, index.code_size + 8


def recall(found: np.ndarray, exact: np.ndarray) -> float:
    """Mean share of each row of `exact` `[queries, k]` that stands in the same row of `found` `[queries, any]`."""
    return float(np.mean([np.isin(e, f).mean() for f, e in zip(found, exact, strict=True)]))
