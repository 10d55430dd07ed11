"""`index`: a corpus becomes an index that facts are traced in.

corpus files -> scan -> read (a shard: a file)  -> examples/       passages, ids and spans
examples/ -> bm25 | dense | gradient (pipelines/gradient.py) (a shard: a file of examples/)
          -> the driver merges the statistics -> gradients of pseudo-facts -> manifest.json

`index --update` takes the same way with the new files alone (pipelines/update.py).
"""

import logging
import tempfile
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from attribution import bm25, dense
from attribution.checkpoint import model_hash, tokenizer_hash
from attribution.curvature import DAMPING, MIX_SHARE
from attribution.embedding import embed
from attribution.fusion import fusion_of
from attribution.passages import windows
from attribution.projection import LEAST_DIM
from attribution.tracin import unit
from pipelines import progress, resources
from pipelines.approximate import approximate_index
from pipelines.config import IndexConfig
from pipelines.corpus import CorpusFormat, base_folder, list_corpus, read_records, with_vectors_of
from pipelines.estimate import estimate
from pipelines.gradient import (
    CURVATURE_SAMPLE,
    ESTIMATED,
    FACTOR_SAMPLE,
    describe_checkpoints,
    make_features,
    sample_size,
)
from pipelines.pseudo import query_curvature, read_sample, sample_places
from pipelines.resources import KFAC
from pipelines.scan import Scan, scan
from pipelines.stage import Done, Shard, all_files, library_versions, log_runner, run_stage, total
from pipelines.storage import (
    STAGES,
    OutputFolder,
    absolute,
    exists,
    join,
    localize,
    publish,
    verified,
    with_generation,
)
from schemas.manifest import FileInfo, Manifest, require_match
from schemas.records import DeadLetter
from schemas.tables import PASSAGES, parquet_bytes

log = logging.getLogger(__name__)
SHARDS_AT_ONCE = 64  # of term files when statistics are merged
VECTORS = f"{STAGES}/vectors"
IDS = "ids"  # the ids' hashes, which an update compares its own with


def read_shard(
    spec: dict[str, Any],
    folder: str,
    out: Path,
    config: IndexConfig,
    format: CorpusFormat,
    base: str,
    window_tokenizer: str,
) -> Done:
    """One corpus file as passages, in Parquet files of `passages_per_shard`; a passage has its document's vector."""
    spans = resources.spans(window_tokenizer)
    repeated = set(spec["repeated"])
    (out / "examples").mkdir()
    (out / VECTORS).mkdir(parents=True)
    rows: list[tuple[Any, ...]] = []
    vectors: list[np.ndarray] = []
    parts: dict[str, int] = {}
    documents = split = number = 0

    def write() -> None:
        nonlocal number
        name, number = f"{spec['file']:05d}-{number:05d}", number + 1
        columns = [pa.array(column, kind) for column, kind in zip(zip(*rows, strict=True), PASSAGES.types, strict=True)]
        (out / "examples" / f"{name}.parquet").write_bytes(parquet_bytes(pa.table(columns, schema=PASSAGES)))
        parts[f"examples/{name}.parquet"] = len(rows)
        if vectors:
            np.save(out / VECTORS / f"{name}.npy", np.stack(vectors))
            parts[f"{VECTORS}/{name}.npy"] = len(rows)
        rows.clear()
        vectors.clear()

    with progress.bar(f"read, file {spec['file']}", None, "records") as advance:
        for record in read_records(spec["path"], format, base):
            if isinstance(record, DeadLetter) or record.row in repeated:
                continue
            # A prompt with its completion, and a chat, stay whole: a window of one has lost what it is about.
            whole = [(0, len(record.text))]
            found = whole if record.parts else windows(record.text, spans, config.max_tokens, config.overlap)
            documents, split = documents + 1, split + (len(found) > 1)
            rest = (record.source, record.sha256, spec["path"], record.row, record.parts)
            for start, end in found:
                rows.append((record.id, start, end, record.text[start:end], *rest))
                if record.embedding is not None:
                    vectors.append(record.embedding)
                if len(rows) == config.passages_per_shard:
                    write()
            advance(1)
    if rows:
        write()
    return Done({"documents": documents, "split": split}, parts, {})


def _texts(folder: str, name: str) -> list[str]:
    return pq.read_table(verified(folder, f"examples/{name}.parquet"), columns=["text"])["text"].to_pylist()


def bm25_shard(spec: dict[str, Any], folder: str, out: Path, config: IndexConfig) -> Done:
    """Term frequencies and lengths of one shard."""
    tokenize = resources.bm25_tokenizer(config.tokenizer, config.stemming)
    place = out / "bm25" / spec["name"]
    with progress.bar(f"bm25, shard {spec['name']}", spec["rows"], "passages") as advance:

        def counted(text: str) -> list[str]:
            advance(1)
            return tokenize(text)

        total_length = bm25.write_shard(_texts(folder, spec["name"]), counted, place)
    rows = {f"bm25/{spec['name']}/{file.name}": spec["rows"] for file in place.iterdir()}
    return Done({"in": spec["rows"], "total_length": total_length}, rows)


def dense_shard(spec: dict[str, Any], folder: str, out: Path, encoder_path: str, given: bool) -> Done:
    """Unit vectors of one shard in FAISS, under the passages' ids: the encoder's, or those that the corpus gives."""
    (out / "dense").mkdir()
    with progress.bar(f"dense, shard {spec['name']}", spec["rows"], "passages") as advance:
        if given:
            vectors, cut = unit(np.load(localize(join(folder, VECTORS, f"{spec['name']}.npy")))), 0
            advance(len(vectors))
        else:
            encoder = resources.encoder(encoder_path)
            vectors, cut = embed(encoder, _texts(folder, spec["name"]), progress=advance)
    ids = np.arange(spec["offset"], spec["offset"] + spec["rows"])
    (out / "dense" / f"{spec['name']}.faiss").write_bytes(dense.build_index(vectors, ids))
    return Done({"in": spec["rows"], "cut": cut}, {f"dense/{spec['name']}.faiss": spec["rows"]})


def merge_statistics(
    folder: str, shards: list[dict[str, Any]], total_length: int, merged: bm25.Statistics | None = None
) -> bm25.Statistics:
    """Global statistics from the shards' term files, `SHARDS_AT_ONCE` of them joined to what is there.

    `merged` are those of other shards, to which `total_length` is added as well.
    """
    merged = bm25.Statistics.merge([bm25.Statistics.of(0, total_length, {}), *([merged] if merged else [])])
    for start in range(0, len(shards), SHARDS_AT_ONCE):
        parts = [
            bm25.shard_statistics(verified(folder, f"bm25/{shard['name']}/terms.arrow"), shard["rows"], 0)
            for shard in shards[start : start + SHARDS_AT_ONCE]
        ]
        merged = bm25.Statistics.merge([merged, *parts])
    return merged


def approximations(details: dict[str, Any]) -> list[str]:
    """Everything that the scores leave out, in words, for the manifest and the report."""
    made = []
    if "gradient" in details:
        rows = details["gradient"]["checkpoints"]
        side = " and ".join(f"{dim} x {dim}" for dim in sorted({row["projection"]["dim"] for row in rows}))
        stored = details["gradient"]["feature_dtype"]
        kept = "not stored" if stored == "none" else f"stored as {stored}"
        made.append(f"gradients projected to {side} a layer at most, {kept}")
        if stored == "none":
            made.append(f"no features stored: curvature of a sample of {CURVATURE_SAMPLE} passages")
        share = min(row["tracked_parameters"] / row["trainable_parameters"] for row in rows)
        made.append(f"gradients of {share:.1%} of the trainable parameters")
        if any(row["optimizer_correction"] == "estimate" for row in rows):
            made.append("no optimizer state found: its second moments are estimated from a sample of the corpus")
        if any(row["optimizer_correction"] == KFAC for row in rows):
            made.append(f"gradients whitened by a product of two sides, of a sample of {FACTOR_SAMPLE} passages")
        if any(row["optimizer_correction"] == "none" for row in rows):
            made.append("gradients are not corrected for the optimizer")
        if any(row["cut"] for row in rows):
            made.append(f"{max(row['cut'] for row in rows)} examples were cut at the model's context")
        if any(row["dead"] for row in rows):
            made.append(f"{max(row['dead'] for row in rows)} passages have no usable gradient (dead_letters/)")
        if rows[0]["weight_from"] == "equal" and len(rows) > 1:
            made.append("no learning rates found: checkpoints weigh the same")
    if "approximate" in details.get("dense", {}):
        found = details["dense"]["approximate"]
        told = f"recall@10 {found['recall_at_10']:.3f} of what it proposes, on the corpus' own vectors"
        made.append(f"dense candidates from {found['kind']}, {told}")
    if details.get("dense", {}).get("cut"):
        made.append(f"{details['dense']['cut']} passages were cut at the encoder's limit for the dense signal")
    return made


def work_all(
    output: OutputFolder,
    scanned: Scan,
    details: dict[str, Any],
    config: IndexConfig,
    format: CorpusFormat,
    base: str,
    beam_args: tuple[str, ...],
    generation: int = 1,
) -> tuple[list[FileInfo], int]:
    """Runs the stages that write the index; returns the files and the number of documents that are new.

    `details` has the shards and sums of the generation before, and after it those of this one.
    """
    shards = [Shard(s.name, s.spec | {"repeated": scanned.repeated.get(s.spec["file"], [])}) for s in scanned.shards]
    window_tokenizer = details["passages"]["tokenizer"]
    window_tokenizer = "" if window_tokenizer == "word" else window_tokenizer
    work = partial(read_shard, config=config, format=format, base=base, window_tokenizer=window_tokenizer)
    read = run_stage("read", shards, work, output, beam_args)
    files, new, last = all_files(read), [], details["shards"][-1] if details["shards"] else {"offset": 0, "rows": 0}
    offset = last["offset"] + last["rows"]
    for info in all_files(read):
        new.append({"name": Path(info.name).stem, "rows": info.rows, "offset": offset, "since": generation})
        offset += info.rows
    details["shards"] = [*details["shards"], *new]
    details["passages"]["split_documents"] += total(read, "split")
    specs = [Shard(shard["name"], shard) for shard in new]
    files.append(write_sample(output, details, new, config, generation))

    records = run_stage("bm25", specs, partial(bm25_shard, config=config), output, beam_args)
    recorded, before = details["bm25"], None
    if generation > 1:
        path = verified(output.path, recorded["statistics"])
        before = bm25.Statistics.load(path, recorded["num_passages"], recorded["total_length"])
    statistics = merge_statistics(output.path, new, total(records, "total_length"), before)
    files += [*all_files(records), write_statistics(statistics, details, output, generation)]

    if "dense" in details:
        work = partial(dense_shard, encoder_path=details["dense"]["encoder"], given=bool(config.embedding_field))
        records = run_stage("dense", specs, work, output, beam_args)
        files += all_files(records)
        details["dense"]["cut"] = details["dense"].get("cut", 0) + total(records, "cut")
        if "approximate" in details["dense"] or statistics.num_passages >= dense.APPROXIMATE_FROM:
            files += approximate_index(details, config.seed, output, beam_args, generation)
    if "gradient" in details:
        sample = gradient_sample(output.path, details, generation)
        files += make_features(specs, sample, details, config, output, beam_args, generation)
    return files, total(read, "documents")


def write_statistics(
    statistics: bm25.Statistics, details: dict[str, Any], output: OutputFolder, generation: int
) -> FileInfo:
    """Writes the global statistics of a generation, into `details` too."""
    with tempfile.TemporaryDirectory() as place:
        statistics.save(Path(place) / "statistics")
        name = f"bm25/{with_generation('statistics', generation)}.arrow"
        kept = publish(Path(place) / "statistics", output.path, name, len(statistics.table))
    details["bm25"] |= {"num_passages": statistics.num_passages, "total_length": statistics.total_length}
    details["bm25"] |= {"statistics": kept.name}
    return kept


def write_sample(
    output: OutputFolder, details: dict[str, Any], new: list[dict[str, Any]], config: IndexConfig, generation: int
) -> FileInfo:
    """Writes the places of the sample that stands for the corpus: of the `new` shards and of what `details` names."""
    known = pq.read_table(verified(output.path, details["sample"])) if "sample" in details else None
    count = max(CURVATURE_SAMPLE, 2 * config.num_pseudo_facts)
    places = sample_places(output.path, new, config.seed, count, known)
    details["sample"] = f"{with_generation('sample', generation)}.parquet"
    return output.write(details["sample"], parquet_bytes(places), len(places))


def gradient_sample(folder: str, details: dict[str, Any], generation: int) -> list[tuple[str, str]]:
    """The passages (text, parts) that stand for the corpus where second moments are taken of a sample; else none."""
    recorded = details["gradient"]
    estimated = any(row["optimizer_correction"] in ESTIMATED for row in recorded["checkpoints"]) and generation == 1
    if not estimated and recorded["feature_dtype"] != "none":
        return []
    size = CURVATURE_SAMPLE if recorded["feature_dtype"] == "none" else sample_size(recorded["checkpoints"])
    return [(p.text, p.parts) for p in read_sample(folder, details, size)]


def describe_signals(config: IndexConfig, format: CorpusFormat) -> dict[str, Any]:
    """Loads and checks every model before anything is written; what the manifest keeps of them."""
    resources.bm25_tokenizer(config.tokenizer, config.stemming)
    tokenizer = config.tokenizer
    if tokenizer != "word":
        tokenizer = absolute(tokenizer) if exists(tokenizer) else tokenizer
    details: dict[str, Any] = {
        "signals": list(config.signal_names),
        "shards": [],
        "bm25": {"variant": "lucene", "k1": bm25.K1, "b": bm25.B, "tokenizer": tokenizer, "stemming": config.stemming},
    }
    if tokenizer != "word":
        details["bm25"]["tokenizer_sha256"] = tokenizer_hash(resources.subword_tokenizer(tokenizer))
    if config.embedding_field:
        details["dense"] = {"encoder": "", "dim": format.dim, "search": "exact"}
    if config.encoder:
        path = absolute(config.encoder) if exists(config.encoder) else config.encoder
        encoder = resources.encoder(path)
        details["dense"] = {
            "encoder": path,
            "model_sha256": model_hash(encoder.model),
            "tokenizer_sha256": tokenizer_hash(encoder.tokenizer),
            "dim": encoder.dim,
            "search": "exact",
        }
        require_match(
            f"--embedding_field {config.embedding_field}: numbers a vector",
            encoder.dim,
            format.dim or encoder.dim,
            "give the encoder that made the corpus' vectors, or leave one of the two out",
        )
    if "gradient" in config.signal_names:
        recipe = resources.GradientRecipe(
            # TrackStar's curvature is a matrix of the square of a layer's feature, the fourth power of this.
            projection_dim=config.projection_dim or (0 if config.gradients == KFAC else LEAST_DIM),
            seed=config.seed,
            layers=config.layers,
            dtype=config.dtype,
            correction=KFAC if config.gradients == KFAC else config.optimizer_correction,
            batch_tokens=config.batch_tokens,
            device=config.device,
        )
        kind = "none" if config.gradients == KFAC else config.curvature
        details["gradient"] = {
            "recipe": asdict(recipe),
            "feature_dtype": config.feature_dtype,
            "curvature": {"kind": kind, "damping": DAMPING, "share": MIX_SHARE},
            "checkpoints": describe_checkpoints(config, recipe),
        }
    return details


def run(config: IndexConfig, beam_args: tuple[str, ...] = ()) -> Manifest | dict[str, Any]:
    """Builds the index at `config.output`, or with `dry_run` returns what that would take.

    With `update` the index there gets the corpus' new files (pipelines/update.py). Raises ConfigError or
    FailureBudgetExceeded, leaving nothing behind.
    """
    if config.update:
        from pipelines import update  # which needs this module

        return update.run(config, beam_args)
    corpus_files = list_corpus(config.corpus)
    format = CorpusFormat(config.id_field, config.text_field, config.embedding_field)
    if config.embedding_field:
        format = with_vectors_of(format, corpus_files, base_folder(config.corpus))
    details = describe_signals(config, format)
    window_tokenizer = ""
    if "gradient" in details:
        window_tokenizer = details["gradient"]["checkpoints"][0]["path"]
    elif "dense" in details:
        window_tokenizer = details["dense"]["encoder"]  # none where the corpus brings the vectors: words
    if config.dry_run:
        return estimate(config, corpus_files, details, resources.spans(window_tokenizer))
    log_runner(beam_args)
    plan = asdict(config) | {"files": corpus_files, "models": details}
    for name in ("quiet", "dry_run", "update"):
        plan.pop(name)
    base = base_folder(config.corpus)
    details["passages"] = {
        "tokenizer": window_tokenizer or "word",
        "max_tokens": config.max_tokens,
        "overlap": config.overlap,
        "split_documents": 0,
    }
    with OutputFolder(config.output, plan) as output:
        scanned = scan(corpus_files, format, base, output, config.max_dead_fraction, beam_args, IDS)
        files, kept = work_all(output, scanned, details, config, format, base, beam_args)
        asked = query_curvature(output, details, config, beam_args)
        details["fusion"] = fusion_of(details["signals"])
        files += asked
        details["approximations"] = approximations(details)
        details["corpus"] = {"base": base, "dim": format.dim, "files": [list(info) for info in corpus_files]}
        counts = {"in": scanned.num_in, "kept": kept, "removed": 0, "dead": scanned.num_dead}
        details["generation"], details["history"] = 1, [{"verb": "index", "files": len(corpus_files), "counts": counts}]
        manifest = Manifest(
            kind="index",
            config=asdict(config),
            versions=library_versions(),
            counts=counts,
            details=details,
            files=scanned.files + files,
        )
        output.finish(manifest)
    summarize("index", config.output, manifest)
    return manifest


def summarize(verb: str, folder: str, manifest: Manifest) -> None:
    """Tells what an index holds, and what its scores leave out."""
    details = manifest.details
    for line in details["approximations"]:
        log.info("approximation: %s", line)
    weights = zip(details["fusion"]["signals"], details["fusion"]["weights"], strict=True)
    progress.summary(
        verb,
        {
            "folder": folder,
            "records": manifest.counts["in"],
            "indexed": manifest.counts["kept"],
            "refused (dead_letters/)": manifest.counts["dead"],
            "passages": details["bm25"]["num_passages"],
            "shards": len(details["shards"]),
            "fusion": ", ".join(f"{name} {weight:.2g}" for name, weight in weights),
            "approximations": "; ".join(details["approximations"]) or "none",
        },
    )
