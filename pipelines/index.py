"""`index`: a corpus becomes an index that facts are traced in.

corpus files -> scan -> read (a shard: a file)  -> examples/       passages, ids and spans
examples/ -> bm25 | dense | gradient (pipelines/gradient.py) (a shard: a file of examples/)
          -> the driver merges the statistics -> search for pseudo-facts -> fusion weights -> manifest.json
"""

import logging
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
from attribution.passages import windows
from attribution.projection import Projection
from pipelines import progress, resources
from pipelines.config import IndexConfig
from pipelines.corpus import CorpusFormat, Scan, base_folder, list_corpus, read_records, scan
from pipelines.estimate import estimate
from pipelines.fit import fit_fusion, sample_passages
from pipelines.gradient import CURVATURE_SAMPLE, MOMENT_SAMPLE, describe_checkpoints, make_features
from pipelines.stage import Done, Shard, ShardRecord, all_files, library_versions, log_runner, run_stage, total
from pipelines.storage import OutputFolder, absolute, exists, join, localize
from schemas.manifest import FileInfo, Manifest
from schemas.records import DeadLetter, Passage
from schemas.tables import PASSAGES, TERMS, parquet_bytes, to_table

log = logging.getLogger(__name__)


def read_shard(
    spec: dict[str, Any], folder: str, out: Path, config: IndexConfig, base: str, window_tokenizer: str
) -> Done:
    """One corpus file as passages, in Parquet files of `passages_per_shard`."""
    spans = resources.spans(window_tokenizer)
    repeated = set(spec["repeated"])
    (out / "examples").mkdir()
    rows: list[dict[str, Any]] = []
    parts: dict[str, int] = {}
    documents = split = 0

    def write() -> None:
        name = f"examples/{spec['file']:05d}-{len(parts):05d}.parquet"
        (out / name).write_bytes(parquet_bytes(to_table(rows, PASSAGES)))
        parts[name] = len(rows)
        rows.clear()

    with progress.bar(f"read, file {spec['file']}", None, "records") as advance:
        for record in read_records(spec["path"], CorpusFormat(config.id_field, config.text_field), base):
            if isinstance(record, DeadLetter) or record.row in repeated:
                continue
            # A prompt with its completion, and a chat, stay whole: a window of one has lost what it is about.
            # A prompt with its completion, and a chat, stay whole: a window of one has lost what it is about.
            whole = [(0, len(record.text))]
            found = whole if record.parts else windows(record.text, spans, config.max_tokens, config.overlap)
            documents, split = documents + 1, split + (len(found) > 1)
            for start, end in found:
                text = record.text[start:end]
                passage = Passage(
                    record.id, start, end, text, record.source, record.sha256, spec["path"], record.row, record.parts
                )
                rows.append(asdict(passage))
                if len(rows) == config.passages_per_shard:
                    write()
            advance(1)
    if rows:
        write()
    return Done({"documents": documents, "split": split}, parts, {})


def _texts(folder: str, name: str) -> list[str]:
    return pq.read_table(localize(join(folder, "examples", f"{name}.parquet")), columns=["text"])["text"].to_pylist()


def bm25_shard(spec: dict[str, Any], folder: str, out: Path, config: IndexConfig) -> Done:
    """Term frequencies and lengths of one shard."""
    tokenize = resources.bm25_tokenizer(config.tokenizer, config.stemming)
    place = out / "bm25" / spec["name"]
    with progress.bar(f"bm25, shard {spec['name']}", spec["rows"], "passages") as advance:

        def counted(text: str) -> list[str]:
            advance(1)
            return tokenize(text)

        statistics = bm25.write_shard(_texts(folder, spec["name"]), counted, place)
    rows = {f"bm25/{spec['name']}/{file.name}": spec["rows"] for file in place.iterdir()}
    return Done({"in": spec["rows"], "total_length": statistics.total_length}, rows)


def dense_shard(spec: dict[str, Any], folder: str, out: Path, encoder_path: str) -> Done:
    """Unit vectors of one shard in FAISS, under the passages' ids."""
    encoder = resources.encoder(encoder_path)
    (out / "dense").mkdir()
    with progress.bar(f"dense, shard {spec['name']}", spec["rows"], "passages") as advance:
        vectors, cut = embed(encoder, _texts(folder, spec["name"]), progress=advance)
    ids = np.arange(spec["offset"], spec["offset"] + spec["rows"])
    (out / "dense" / f"{spec['name']}.faiss").write_bytes(dense.build_index(vectors, ids))
    return Done({"in": spec["rows"], "cut": cut}, {f"dense/{spec['name']}.faiss": spec["rows"]})


def merge_statistics(folder: str, shards: list[dict[str, Any]], total_length: int) -> tuple[bm25.Statistics, pa.Table]:
    """Global statistics from the shards' term files, and the table that keeps them, sorted by term."""
    merged = bm25.Statistics(0, 0, {})
    for shard in shards:
        terms = pa.ipc.open_file(pa.memory_map(localize(join(folder, "bm25", shard["name"], "terms.arrow")))).read_all()
        counts = np.diff(terms["end"].to_numpy(), prepend=0)
        df = dict(zip(terms["term"].to_pylist(), counts.tolist(), strict=True))
        merged = merged.merge(bm25.Statistics(shard["rows"], 0, df))
    words = sorted(merged.df)
    table = pa.table({"term": words, "df": [merged.df[word] for word in words]}, schema=TERMS)
    return bm25.Statistics(merged.num_passages, total_length, merged.df), table


def approximations(details: dict[str, Any], cut: int) -> list[str]:
    """Everything that the scores leave out, in words, for the manifest and the report."""
    made = []
    if "gradient" in details:
        rows = details["gradient"]["checkpoints"]
        side = details["gradient"]["recipe"]["projection_dim"]
        stored = details["gradient"]["feature_dtype"]
        kept = "not stored" if stored == "none" else f"stored as {stored}"
        made.append(f"gradients projected to {side} x {side} a layer, {kept}")
        if stored == "none":
            made.append(
                f"no features stored: curvature of a sample of {CURVATURE_SAMPLE} passages, and the least weight for "
                "the gradient, which the fusion could not be fitted with"
            )
        share = min(row["tracked_parameters"] / row["trainable_parameters"] for row in rows)
        made.append(f"gradients of {share:.1%} of the trainable parameters")
        if any(row["optimizer_correction"] == "estimate" for row in rows):
            made.append("no optimizer state found: its second moments are estimated from a sample of the corpus")
        if any(row["optimizer_correction"] == "none" for row in rows):
            made.append("gradients are not corrected for the optimizer")
        if any(row["cut"] for row in rows):
            made.append(f"{max(row['cut'] for row in rows)} examples were cut at the model's context")
        if any(row["dead"] for row in rows):
            made.append(f"{max(row['dead'] for row in rows)} passages have no usable gradient (dead_letters/)")
        if rows[0]["weight_from"] == "equal" and len(rows) > 1:
            made.append("no learning rates found: checkpoints weigh the same")
    if len(details["signals"]) > 1 and not details["fusion"]["fit"]["facts"]:
        made.append("no facts could be cut from the corpus to fit the fusion on: its signals weigh the same")
    if cut:
        made.append(f"{cut} passages were cut at the encoder's limit for the dense signal")
    return made


def _work_all(
    output: OutputFolder,
    scanned: Scan,
    details: dict[str, Any],
    config: IndexConfig,
    window_tokenizer: str,
    beam_args: tuple[str, ...],
) -> tuple[list[FileInfo], int, list[ShardRecord]]:
    """Runs the stages that write the index, filling in `details`; returns files, encoder cuts and the read records."""
    shards = [Shard(s.name, s.spec | {"repeated": scanned.repeated.get(s.spec["file"], [])}) for s in scanned.shards]
    work = partial(read_shard, config=config, base=base_folder(config.corpus), window_tokenizer=window_tokenizer)
    read = run_stage("read", shards, work, output, beam_args)
    files, offset = all_files(read), 0
    for info in all_files(read):
        details["shards"].append({"name": Path(info.name).stem, "rows": info.rows, "offset": offset})
        offset += info.rows
    specs = [Shard(shard["name"], shard) for shard in details["shards"]]

    records = run_stage("bm25", specs, partial(bm25_shard, config=config), output, beam_args)
    statistics, table = merge_statistics(output.path, details["shards"], total(records, "total_length"))
    files += [*all_files(records), output.write("bm25/statistics.parquet", parquet_bytes(table), len(table))]
    details["bm25"] |= {"num_passages": statistics.num_passages, "total_length": statistics.total_length}

    cut = 0
    if "dense" in details:
        work = partial(dense_shard, encoder_path=details["dense"]["encoder"])
        records = run_stage("dense", specs, work, output, beam_args)
        files, cut = files + all_files(records), total(records, "cut")
    if "gradient" in details:
        size = CURVATURE_SAMPLE if config.feature_dtype == "none" else MOMENT_SAMPLE
        sample = [(p.text, p.parts) for p in sample_passages(output.path, details["shards"], config.seed, size)]
        files += make_features(specs, sample, details, config, output, beam_args)
    return files, cut, read


def describe_signals(config: IndexConfig) -> dict[str, Any]:
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
    if "dense" in config.signal_names:
        path = absolute(config.encoder) if exists(config.encoder) else config.encoder
        encoder = resources.encoder(path)
        details["dense"] = {
            "encoder": path,
            "model_sha256": model_hash(encoder.model),
            "tokenizer_sha256": tokenizer_hash(encoder.tokenizer),
            "dim": encoder.dim,
            "search": "exact",
        }
    if "gradient" in config.signal_names:
        recipe = resources.GradientRecipe(
            projection_dim=config.projection_dim,
            seed=config.seed,
            layers=config.layers,
            dtype=config.dtype,
            correction=config.optimizer_correction,
            batch_tokens=config.batch_tokens,
            device=config.device,
        )
        details["gradient"] = {
            "recipe": asdict(recipe),
            "projection": Projection(config.projection_dim, config.seed).to_json(),
            "feature_dtype": config.feature_dtype,
            "curvature": {"kind": config.curvature, "damping": DAMPING, "share": MIX_SHARE},
            "checkpoints": describe_checkpoints(config, recipe),
        }
    return details


def run(config: IndexConfig, beam_args: tuple[str, ...] = ()) -> Manifest | dict[str, Any]:
    """Builds the index at `config.output`, or with `dry_run` returns what that would take.

    Raises ConfigError or FailureBudgetExceeded, leaving nothing behind.
    """
    corpus_files = list_corpus(config.corpus)
    details = describe_signals(config)
    window_tokenizer = ""
    if "gradient" in details:
        window_tokenizer = details["gradient"]["checkpoints"][0]["path"]
    elif "dense" in details:
        window_tokenizer = details["dense"]["encoder"]
    if config.dry_run:
        return estimate(config, corpus_files, details, resources.spans(window_tokenizer))
    log_runner(beam_args)
    plan = asdict(config) | {"files": corpus_files, "models": details}
    for name in ("quiet", "dry_run"):
        plan.pop(name)
    with OutputFolder(config.output, plan) as output:
        format = CorpusFormat(config.id_field, config.text_field)
        scanned = scan(corpus_files, format, base_folder(config.corpus), output, config.max_dead_fraction, beam_args)
        files, cut, read = _work_all(output, scanned, details, config, window_tokenizer, beam_args)
        details["fusion"], fitted = fit_fusion(output, details, config, beam_args)
        files += fitted
        details["approximations"] = approximations(details, cut)
        details["passages"] = {
            "tokenizer": window_tokenizer or "word",
            "max_tokens": config.max_tokens,
            "overlap": config.overlap,
            "split_documents": total(read, "split"),
        }
        kept = total(read, "documents")
        for line in details["approximations"]:
            log.info("approximation: %s", line)
        manifest = Manifest(
            kind="index",
            config=asdict(config),
            versions=library_versions(),
            counts={"in": scanned.num_in, "kept": kept, "removed": 0, "dead": scanned.num_dead},
            details=details,
            files=scanned.files + files,
        )
        output.finish(manifest)
    weights = zip(details["fusion"]["signals"], details["fusion"]["weights"], strict=True)
    progress.summary(
        "index",
        {
            "folder": config.output,
            "records": manifest.counts["in"],
            "indexed": kept,
            "refused (dead_letters/)": scanned.num_dead,
            "passages": details["bm25"]["num_passages"],
            "shards": len(details["shards"]),
            "fusion": ", ".join(f"{name} {weight:g}" for name, weight in weights),
            "approximations": "; ".join(details["approximations"]) or "none",
        },
    )
    return manifest
