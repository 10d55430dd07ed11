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


def signal_ranking(proponents: list[Proponent], signal: str, top_k: int) -> list[str]:
    """Example ids as one signal (or `fused`) ranks them, ties by id.

    Of a signal only its own `top_k` passages count: what another one retrieved would change its figures.
    """
    score: Callable[[Proponent], float] = (lambda p: p.score) if signal == "fused" else (lambda p: p.signals[signal])
    ranked = sorted(proponents, key=lambda p: (-score(p), p.example_id, p.start))
    if signal != "fused":
        ranked = [p for p in ranked[:top_k] if score(p) > least_score(signal)]
    return [p.example_id for p in best_per_example(ranked)]


def run(config: EvaluateConfig) -> dict:
    """The metrics, over the facts that are ranked and have known proponents; raises ConfigError if there are none."""
    manifest = read_manifest(config.rankings, "rankings")
    known = {f.id: f.proponents for f in parse_facts(read_bytes(config.facts), config.facts) if f.proponents}
    names = [*manifest.details["signals"], "fused"]
    sums = {name: {"mrr": 0.0, "recall_at_10": 0.0, "recall_at_100": 0.0} for name in names}
    by_fact = {ranking[0].fact_id: ranking for ranking in read_rankings(config.rankings)}
    # A fact that was traced and found nothing counts, as a miss; one that was never traced does not.
    traced = [fact_id for fact_id in manifest.details["fact_ids"] if fact_id in known]
    for fact_id in traced:
        for name in names:
            ranking = signal_ranking(by_fact.get(fact_id, []), name, manifest.config["top_k"])
            sums[name]["mrr"] += reciprocal_rank(ranking, known[fact_id])
            for k in (10, 100):
                sums[name][f"recall_at_{k}"] += recall_at(ranking, known[fact_id], k)
    count = len(traced)
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
