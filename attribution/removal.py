"""Which proponents become proposed removals, and the control: as many random examples that are none of them."""

import hashlib
import heapq
from collections.abc import Iterable

from schemas.rankings import best_per_example
from schemas.records import Proponent, Removal


def propose(rankings: Iterable[list[Proponent]], max_per_fact: int, min_coverage: float) -> list[Removal]:
    """One proposal an example, by id, with the evidence of every fact that it is proposed for.

    A fact proposes its `max_per_fact` best examples among those whose passage holds at least `min_coverage` of the
    query's word weight: a high rank alone says only that nothing better was found.
    """
    evidence: dict[str, list[Proponent]] = {}
    for ranking in rankings:
        told = [p for p in best_per_example(ranking) if p.coverage >= min_coverage]
        for proponent in told[:max_per_fact]:
            evidence.setdefault(proponent.example_id, []).append(proponent)
    return [
        Removal(
            example_id=example_id,
            sha256=found[0].sha256,
            decision="proposed",
            reason=f"proponent of {', '.join(p.fact_id for p in found)}",
            fact_ids=tuple(p.fact_id for p in found),
            evidence=tuple(
                {"fact_id": p.fact_id, "rank": p.rank, "score": p.score, "coverage": p.coverage, "signals": p.signals}
                for p in found
            ),
            text=found[0].text,
        )
        for example_id, found in sorted(evidence.items())
    ]


def control(examples: Iterable[tuple[str, str]], removals: list[Removal], seed: int) -> list[Removal]:
    """As many random examples of the (id, sha256) pairs as there are removals, disjoint from them, by id.

    The ones with the smallest hash of (seed, id): the same whatever the order or the sharding of the corpus.
    """
    taken = {removal.example_id for removal in removals}

    def key(pair: tuple[str, str]) -> bytes:
        return hashlib.blake2b(f"{seed}/{pair[0]}".encode(), digest_size=8).digest()

    chosen = heapq.nsmallest(len(removals), (pair for pair in examples if pair[0] not in taken), key=key)
    return [Removal(i, sha, "approved", "control: random example", decided_by="seed") for i, sha in sorted(chosen)]
