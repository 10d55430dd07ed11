"""`index --dry_run`: what indexing will take, before anything is written.

The corpus is read once (records are counted, a seeded sample is kept), and each model works on a part of the sample:
seconds a passage, memory and bytes are measured, not guessed, and multiplied.
"""

import heapq
import os
import resource
import shutil
import time
from collections.abc import Callable
from typing import Any

from attribution import kfac
from attribution.embedding import embed
from attribution.passages import windows
from attribution.pseudo_facts import sample_key
from attribution.sequences import Sequence, encode_example
from pipelines import progress, resources
from pipelines.config import IndexConfig
from pipelines.corpus import CorpusFormat, base_folder, read_records
from pipelines.gradient import ESTIMATED, is_mixed, recipe_of, sample_size
from pipelines.storage import is_local
from schemas.records import DeadLetter, Passage

SAMPLE, TIMED = 512, 48  # records kept, passages that each model is timed on


def _sample(config: IndexConfig, files: list[tuple[str, int]], spans: Any) -> tuple[int, int, list[Passage]]:
    """(records, passages by estimate, the passages of a seeded sample of the records)."""
    kept, count, format = [], 0, CorpusFormat(config.id_field, config.text_field)
    base = base_folder(config.corpus)
    with progress.bar("count", None, "records") as advance:
        for path, _ in files:
            for record in read_records(path, format, base):
                advance(1)
                if isinstance(record, DeadLetter):
                    continue
                count += 1
                whole = Passage(
                    record.id, 0, len(record.text), record.text, "", record.sha256, path, record.row, record.parts
                )
                entry = (sample_key(config.seed, record.id, 0), count, whole)
                (heapq.heappush if len(kept) < SAMPLE else heapq.heappushpop)(kept, entry)
    passages = []
    for _, _, whole in sorted(kept):
        found = windows(whole.text, spans, config.max_tokens, config.overlap)
        for start, end in [(0, len(whole.text))] if whole.parts else found:
            passages.append(Passage("", start, end, whole.text[start:end], "", "", "", 0, whole.parts))
    return count, round(count * len(passages) / max(1, len(kept))), passages


def _seconds_each(work: Callable[[], Any], count: int) -> float:
    work()  # the first use of a model is slower
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) / max(1, count)


def _sequences(source: Any, passages: list[Passage]) -> list[Sequence]:
    found = []
    for passage in passages:
        try:
            found.append(encode_example(source, passage.text, passage.parts))
        except ValueError:
            continue  # would be a dead letter
    return found


def estimate(config: IndexConfig, files: list[tuple[str, int]], details: dict[str, Any], spans: Any) -> dict[str, Any]:
    """Records, passages, seconds by stage, peak GiB of memory and GiB of disk, as `index` with this config takes."""
    records, passages, sample = _sample(config, files, spans)
    timed = sample[:: max(1, len(sample) // TIMED)][:TIMED]
    texts = [passage.text for passage in timed]
    tokenize = resources.bm25_tokenizer(config.tokenizer, config.stemming)
    seconds = {"bm25": _seconds_each(lambda: [tokenize(text) for text in texts], len(texts))}
    each = sum(len(passage.text.encode("utf-8", "surrogatepass")) for passage in sample) / max(1, len(sample))
    size = {"examples": each, "bm25": each / 2}
    if "dense" in details:
        if not config.embedding_field:
            encoder = resources.encoder(details["dense"]["encoder"])
            seconds["dense"] = _seconds_each(lambda: embed(encoder, texts), len(texts))
        size["dense"] = 4.0 * details["dense"]["dim"] + 8
    for row in details.get("gradient", {}).get("checkpoints", []):
        extractor = resources.extractor(row["path"], recipe_of(details))[0]
        found, name = _sequences(extractor.checkpoint, timed), f"gradient {row['name']}"
        seconds[name] = _seconds_each(lambda e=extractor, s=found: list(e.batches(s)), len(texts))
        once = 4.0 * sum(w * w for w in row["widths"]) if is_mixed(details) else 0.0
        if row["optimizer_correction"] in ESTIMATED:
            seconds[name] *= 1 + min(1.0, sample_size([row]) / passages)
            once += kfac.roots_bytes(extractor.layers) if row["optimizer_correction"] == resources.KFAC else 0.0
        size[name] = row["bytes_per_example"] + once / passages
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # kilobytes on Linux
    told = {
        "records": records,
        "passages": passages,
        "shards": -(-passages // config.passages_per_shard),
        "seconds": {name: round(each * passages, 4) for name, each in seconds.items()},
        "disk_gib": {name: round(each * passages / 2**30, 4) for name, each in size.items()},
        "peak_memory_gib": round(peak / 2**30, 2),
    }
    told["total_seconds"] = round(sum(told["seconds"].values()), 4)
    told["total_disk_gib"] = round(sum(told["disk_gib"].values()), 4)
    if is_local(config.output):
        told["free_disk_gib"] = round(shutil.disk_usage(_existing(config.output)).free / 2**30, 2)
    return told


def _existing(path: str) -> str:
    """The nearest folder above a path that is there."""
    path = os.path.abspath(path)
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path
