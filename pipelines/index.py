"""`index`: a corpus becomes an index that facts are traced in.

corpus files -> scan -> read (a shard: a file)  -> examples/       passages, ids and spans
examples/ -> bm25 | dense | gradient, one checkpoint after another (a shard: a file of examples/)
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
from attribution.embedding import embed
from attribution.gradients import Sequence
from attribution.passages import windows
from attribution.projection import Projection
from attribution.tracin import checkpoint_weights
from pipelines import progress, resources
from pipelines.config import IndexConfig
from pipelines.corpus import CorpusFormat, Scan, base_folder, list_corpus, read_records, scan
from pipelines.fit import fit_fusion
from pipelines.stage import Done, Shard, ShardRecord, all_files, library_versions, log_runner, run_stage, total
from pipelines.storage import OutputFolder, absolute, exists, join, localize
from schemas.errors import ConfigError
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
            found = windows(record.text, spans, config.max_tokens, config.overlap)
            documents, split = documents + 1, split + (len(found) > 1)
            for start, end in found:
                text = record.text[start:end]
                passage = Passage(record.id, start, end, text, record.source, record.sha256, spec["path"], record.row)
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


def gradient_shard(
    spec: dict[str, Any], folder: str, out: Path, checkpoint: dict[str, Any], projection: Projection
) -> Done:
    """Projected gradients of one shard for one checkpoint, unnormalised, with their norms."""
    extractor = resources.extractor(checkpoint["path"], projection)
    place = out / "gradients" / checkpoint["name"]
    place.mkdir(parents=True)
    encode = extractor.checkpoint.encode_example
    sequences = [Sequence(encode(text)) for text in _texts(folder, spec["name"])]
    with progress.bar(f"gradient, {checkpoint['name']}, shard {spec['name']}", spec["rows"], "passages") as advance:
        features = extractor.features(sequences, advance)
    np.save(place / f"{spec['name']}.npy", features)
    np.save(place / f"{spec['name']}.norms.npy", np.linalg.norm(features, axis=1))
    names = [f"gradients/{checkpoint['name']}/{spec['name']}{end}" for end in (".npy", ".norms.npy")]
    return Done({"in": spec["rows"]}, {name: spec["rows"] for name in names})


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


def describe_checkpoints(config: IndexConfig, projection: Projection) -> list[dict[str, Any]]:
    """What the manifest keeps of each checkpoint. Raises ConfigError where one cannot be used."""
    described = []
    for number, path in enumerate(resources.resolve_checkpoints(config.checkpoints)):
        extractor = resources.extractor(path, projection)
        source = extractor.checkpoint
        if config.max_tokens + 2 > source.max_tokens:
            raise ConfigError(
                f"--max_tokens: expected at most {source.max_tokens - 2}, as {path} takes {source.max_tokens} tokens "
                f"with the special ones, found {config.max_tokens}"
            )
        described.append(
            {
                "path": path,
                "name": f"{number:02d}-{Path(path).name.replace('.gguf', '')}",
                "step": source.step,
                "max_tokens": source.max_tokens,
                "learning_rate": source.learning_rate,
                "model_sha256": model_hash(source.model),
                "tokenizer_sha256": tokenizer_hash(source.tokenizer),
                "optimizer_corrected": extractor.optimizer_corrected,
                "uses_attention_mask": extractor.uses_mask,
                "coverage": extractor.coverage,
                "dim": extractor.dim,
            }
        )
    weights, equal = checkpoint_weights([d["learning_rate"] for d in described])
    for row, weight in zip(described, weights, strict=True):
        row |= {"weight": weight, "weight_from": "equal" if equal else "learning_rate"}
    return described


def approximations(details: dict[str, Any], cut: int) -> list[str]:
    """Everything that the scores leave out, in words, for the manifest and the report."""
    made = []
    if "gradient" in details:
        rows = details["gradient"]["checkpoints"]
        projection = details["gradient"]["projection"]["dim"]
        made.append(f"gradients projected to {projection} x {projection} a layer")
        made.append(f"gradients of linear layers only: {min(r['coverage'] for r in rows):.0%} of the parameters")
        if not all(row["optimizer_corrected"] for row in rows):
            made.append("no optimizer state found for some checkpoints: their gradients are not corrected for it")
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
        projection = Projection(**details["gradient"]["projection"])
        for row in details["gradient"]["checkpoints"]:
            work = partial(gradient_shard, checkpoint=row, projection=projection)
            files += all_files(run_stage(f"gradient-{row['name']}", specs, work, output, beam_args))
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
        projection = Projection(config.projection_dim, config.seed)
        rows = describe_checkpoints(config, projection)
        details["gradient"] = {"projection": asdict(projection), "checkpoints": rows}
    return details


def run(config: IndexConfig, beam_args: tuple[str, ...] = ()) -> Manifest:
    """Builds the index at `config.output`. Raises ConfigError or FailureBudgetExceeded, leaving nothing behind."""
    corpus_files = list_corpus(config.corpus)
    details = describe_signals(config)
    window_tokenizer = ""
    if "gradient" in details:
        window_tokenizer = details["gradient"]["checkpoints"][0]["path"]
    elif "dense" in details:
        window_tokenizer = details["dense"]["encoder"]
    log_runner(beam_args)
    plan = asdict(config) | {"files": corpus_files, "models": details}
    plan.pop("quiet")
    with OutputFolder(config.output, plan) as output:
        format = CorpusFormat(config.id_field, config.text_field)
        scanned = scan(corpus_files, format, base_folder(config.corpus), output, config.max_dead_fraction, beam_args)
        files, cut, read = _work_all(output, scanned, details, config, window_tokenizer, beam_args)
        details["fusion"] = fit_fusion(output, details, config, beam_args)
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
