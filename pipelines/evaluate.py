"""`evaluate`: how well rankings find known proponents. Prints one JSON object, one line, last on standard output."""

import json
from collections.abc import Callable

from attribution.metrics import recall_at, reciprocal_rank
from attribution.top_k import least_score
from pipelines import progress
from pipelines.config import EvaluateConfig
from pipelines.storage import read_bytes, read_manifest, read_rankings
from schemas.errors import ConfigError
from schemas.facts import parse_facts
from schemas.rankings import best_per_example
from schemas.records import Proponent


def signal_ranking(proponents: list[Proponent], signal: str) -> list[str]:
    """Example ids as one signal (or `fused`) ranks them, ties by id; what it did not retrieve is left out."""
    score: Callable[[Proponent], float] = (lambda p: p.score) if signal == "fused" else (lambda p: p.signals[signal])
    ranked = sorted(proponents, key=lambda p: (-score(p), p.example_id, p.start))
    retrieved = [p for p in ranked if signal == "fused" or score(p) > least_score(signal)]
    return [p.example_id for p in best_per_example(retrieved)]


def run(config: EvaluateConfig) -> dict:
    """The metrics, over the facts that are ranked and have known proponents; raises ConfigError if there are none."""
    manifest = read_manifest(config.rankings, "rankings")
    known = {f.id: f.proponents for f in parse_facts(read_bytes(config.facts), config.facts) if f.proponents}
    names = [*manifest.details["signals"], "fused"]
    sums = {name: {"mrr": 0.0, "recall_at_10": 0.0, "recall_at_100": 0.0} for name in names}
    count = 0
    for proponents in read_rankings(config.rankings):
        gold = known.get(proponents[0].fact_id)
        if gold is None:
            continue
        count += 1
        for name in names:
            ranking = signal_ranking(proponents, name)
            sums[name]["mrr"] += reciprocal_rank(ranking, gold)
            for k in (10, 100):
                sums[name][f"recall_at_{k}"] += recall_at(ranking, gold, k)
    if not count:
        raise ConfigError(
            f"{config.facts}: expected facts with `proponents` that {config.rankings} ranks, found none; are the ids "
            "those of the facts that were traced?"
        )
    signals = {name: {metric: value / count for metric, value in row.items()} for name, row in sums.items()}
    progress.summary("evaluate", {"facts": count} | {f"{n} MRR": f"{row['mrr']:.3f}" for n, row in signals.items()})
    return {"num_facts": count, "signals": signals}


def print_result(result: dict) -> None:
    print(json.dumps(result), flush=True)
