"""Dense vectors of a shard in FAISS: exact inner product, under our own int64 passage ids."""

import faiss
import numpy as np


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


def open_index(path: str) -> tuple[np.ndarray, np.ndarray]:
    """(vectors `[rows, dim]`, ids `[rows]`) of a shard's index; while the search is exact its scores are `q @ v`."""
    index = faiss.read_index(path)
    ids = faiss.vector_to_array(index.id_map)
    return faiss.vector_to_array(faiss.downcast_index(index.index).codes).view(np.float32).reshape(len(ids), -1), ids
