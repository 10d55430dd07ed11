"""The approximate dense index of an index: trained on a sample, filled in parts, tuned to a measured recall.

dense/<shard>.faiss -> the driver trains on a sample -> approximate (a shard: a part of up to dense.PART vectors)
                    -> the nearest of some vectors, exactly -> how many lists to visit and passages to propose
"""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np

from attribution import dense
from pipelines import progress
from pipelines.stage import Done, Shard, all_files, run_stage
from pipelines.storage import (
    OutputFolder,
    exists,
    info_of,
    join,
    read_bytes,
    verified,
    with_generation,
    write_bytes,
)
from schemas.manifest import FileInfo

RECALL_QUERIES = 256  # vectors of the corpus that the recall is measured on


def _vectors(folder: str, shard: dict[str, Any]) -> dense.ShardVectors:
    return dense.ShardVectors(verified(folder, f"dense/{shard['name']}.faiss"))


def fill_part(spec: dict[str, Any], folder: str, out: Path) -> Done:
    """A part of the approximate index: the vectors of a few shards."""
    trained = read_bytes(verified(folder, spec["trained"]))
    found = (_vectors(folder, shard) for shard in spec["shards"])
    (out / "dense").mkdir()
    name = f"dense/{spec['name']}.faiss"
    (out / name).write_bytes(dense.fill(trained, ((shard.vectors, shard.ids) for shard in found)))
    rows = sum(shard["rows"] for shard in spec["shards"])
    return Done({"in": rows}, {name: rows})


def parts_of(shards: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Consecutive shards together, up to dense.PART vectors."""
    groups: list[list[dict[str, Any]]] = [[]]
    for shard in shards:
        if groups[-1] and sum(other["rows"] for other in groups[-1]) + shard["rows"] > dense.PART:
            groups.append([])
        groups[-1].append(shard)
    return groups


def _ids_at(shards: list[dict[str, Any]], numbers: np.ndarray) -> np.ndarray:
    """The ids of passages by their sorted numbers in the corpus; they differ where a purge has left gaps."""
    begins = np.cumsum([0] + [shard["rows"] for shard in shards])
    held = np.searchsorted(begins, numbers, side="right") - 1
    return np.array([shard["offset"] for shard in shards])[held] + numbers - begins[held]


def _vectors_of(folder: str, shards: list[dict[str, Any]], ids: np.ndarray) -> np.ndarray:
    """Vectors `[len(ids), dim]` of passages by their sorted ids, one shard after another."""
    found = []
    for shard in shards:
        rows = ids[(ids >= shard["offset"]) & (ids < shard["offset"] + shard["rows"])] - shard["offset"]
        if len(rows):
            found.append(_vectors(folder, shard).vectors[rows])
    return np.concatenate(found)


def _asked(folder: str, shards: list[dict[str, Any]], ids: np.ndarray) -> np.ndarray:
    """Rows `[len(ids)]` of passages with their vectors, whose nearest are not known yet."""
    vectors = _vectors_of(folder, shards, ids)
    kinds = [("id", "<i8"), ("vector", "<f4", vectors.shape[1])]
    kinds += [("nearest", "<i8", dense.NEIGHBOURS), ("score", "<f4", dense.NEIGHBOURS)]
    rows = np.zeros(len(ids), kinds)
    rows["id"], rows["vector"], rows["nearest"], rows["score"] = ids, vectors, -1, -np.inf
    return rows


def _with_nearest(folder: str, shards: list[dict[str, Any]], asked: np.ndarray) -> np.ndarray:
    """The rows of `_asked` with the nearest among those that they have and the shards' vectors, themselves left out."""
    ids, scores = asked["nearest"], asked["score"]
    for shard in shards:
        found = _vectors(folder, shard)
        here = asked["vector"] @ found.vectors.T
        here[asked["id"][:, None] == found.ids] = -np.inf
        ids = np.concatenate([ids, np.broadcast_to(found.ids, here.shape)], axis=1)
        scores = np.concatenate([scores, here], axis=1)
        best = np.argpartition(-scores, dense.NEIGHBOURS - 1, axis=1)[:, : dense.NEIGHBOURS]
        ids, scores = np.take_along_axis(ids, best, 1), np.take_along_axis(scores, best, 1)
    order = np.lexsort((ids, -scores), axis=1)
    asked = asked.copy()
    asked["nearest"], asked["score"] = np.take_along_axis(ids, order, 1), np.take_along_axis(scores, order, 1)
    return asked


def approximate_index(
    details: dict[str, Any], seed: int, output: OutputFolder, beam_args: tuple[str, ...], generation: int = 1
) -> list[FileInfo]:
    """Trains the approximate dense index on a sample, or takes the one that is there, fills what parts are missing and
    measures its recall. Returns the files that are new.

    How many lists it visits and passages it proposes is chosen for a recall on vectors of the corpus itself. Their
    nearest are kept, so that an index that grows compares them with its new vectors alone.
    """
    shards, count, folder = details["shards"], details["bm25"]["num_passages"], output.path
    generator = np.random.default_rng(seed)
    sample = _ids_at(shards, np.sort(generator.choice(count, dense.sample_size(count), replace=False)))
    measured = _ids_at(shards, np.sort(generator.choice(count, RECALL_QUERIES, replace=False)))
    recorded, files = details["dense"].get("approximate"), []
    if recorded is None:
        recorded = {"trained": f"dense/{with_generation('trained', generation)}.faiss", "parts": []}
        recorded |= {"sample": f"dense/{with_generation('sample', generation)}.npy", "trained_on": len(sample)}
        with progress.bar("dense, training the approximate index", len(sample), "vectors") as advance:
            if not exists(join(folder, recorded["trained"])):
                write_bytes(join(folder, recorded["trained"]), dense.train(_vectors_of(folder, shards, sample), seed))
            advance(len(sample))
        files = [info_of(folder, recorded["trained"], 0)]
        files.append(output.write(recorded["sample"], npy_bytes(sample), len(sample)))
        recorded["of"] = count
    held = {name for part in recorded["parts"] for name in part["shards"]}
    new = [shard for shard in shards if shard["name"] not in held]
    first = 1 + max([int(re.search(r"approximate-(\d+)", part["file"])[1]) for part in recorded["parts"]], default=-1)
    specs = [
        Shard(name, {"name": name, "shards": group, "trained": recorded["trained"]})
        for number, group in enumerate(parts_of(new), start=first)
        for name in [with_generation(f"approximate-{number:05d}", generation)]
        if group
    ]
    records = run_stage("approximate", specs, fill_part, output, beam_args)
    for spec, record in zip(specs, records, strict=True):
        names = [shard["name"] for shard in spec.spec["shards"]]
        recorded["parts"] = [*recorded["parts"], {"file": record.files[0].name, "shards": names}]
    if "neighbours" in recorded:
        asked = np.load(verified(folder, recorded["neighbours"]))
    else:
        new, asked = shards, _asked(folder, shards, measured)
    asked = _with_nearest(folder, new, asked)
    queries, nearest = asked["vector"], asked["nearest"]
    recorded["neighbours"] = f"dense/{with_generation('neighbours', generation)}.npy"
    files.append(output.write(recorded["neighbours"], npy_bytes(asked), len(asked)))
    lists, code_bytes = dense.shape_of(read_bytes(verified(folder, recorded["trained"])))
    names = [part["file"] for part in recorded["parts"]]
    recorded |= {"files": names, "kind": f"IVF{lists},PQ{2 * (code_bytes - 8)}x4fs", "bytes_per_vector": code_bytes}
    details["dense"] |= {"search": "approximate", "approximate": recorded}
    setting = dense.Setting(recorded["nprobe"], tuple(recorded["proposed"])) if "nprobe" in recorded else None
    paths = [verified(folder, name) for name in names]
    found = dense.measure(dense.Approximate(paths, setting), queries, nearest) if setting else (0.0,)
    if found[0] < dense.MIN_RECALL - dense.LESS:
        setting = dense.tune(paths, lists, queries, nearest)
        found = dense.measure(dense.Approximate(paths, setting), queries, nearest)
    recorded |= {"nprobe": setting.nprobe, "proposed": list(setting.proposed)}
    recorded |= {f"recall_at_{k}": round(value, 4) for k, value in zip(dense.TOPS, found, strict=True)}
    return files + all_files(records)


def npy_bytes(array: np.ndarray) -> bytes:
    sink = io.BytesIO()
    np.save(sink, array)
    return sink.getvalue()
