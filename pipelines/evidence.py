"""The evidence that `flag` puts before a person for an audit request: a passage a line, with all that is known of it.

requests + their rankings -> gather -> near-duplicates over the index -> labels of scorers -> a policy's proposals
"""

from typing import Any

from attribution.evidence import content_words, matching_words, overlap
from pipelines.requests import AskedRequest
from schemas.policies import Found, Policy
from schemas.rankings import best_per_example
from schemas.records import Proponent
from schemas.requests import facts_of

FACTS_TOLD = 100  # of a request that holds many prompts: the passage's place is told for so many at most


def _ranks(ranking: list[Proponent]) -> dict[tuple[str, int], dict[str, int]]:
    """By passage its rank by each signal, counted from 1; ties by example id, then start."""
    ranks: dict[tuple[str, int], dict[str, int]] = {(p.example_id, p.start): {} for p in ranking}
    for signal in ranking[0].signals if ranking else ():
        scored = [p for p in ranking if signal in p.signals]
        for rank, p in enumerate(sorted(scored, key=lambda p: (-p.signals[signal], p.example_id, p.start)), start=1):
            ranks[p.example_id, p.start][signal] = rank
    return ranks


def outputs_of(asked: AskedRequest) -> list[str]:
    """The texts complained of: the outputs, and the exemplars whole."""
    return [*(case.output for case in asked.cases), *asked.request.exemplars]


def evidence_of(asked: AskedRequest, text: str) -> dict[str, Any]:
    """What a passage's text shares with the request: its words, and runs of words with the outputs."""
    words = content_words(" ".join([*(case.prompt for case in asked.cases), *outputs_of(asked)]))
    runs, longest = overlap(text, outputs_of(asked))
    spans = [list(span) for span in matching_words(text, words)]
    return {"words": spans, "overlap": [list(span) for span in runs], "longest_overlap": longest}


def gather(asked: AskedRequest, rankings: dict[str, list[Proponent]], max_per_fact: int) -> list[dict[str, Any]]:
    """The request's passages, best first: the `max_per_fact` best examples of what it asks together and of each case.

    A passage's rank and scores are those of the request as a whole, where it is ranked there, else of the case that it
    is best for.
    """
    names = [fact.id for fact in facts_of(asked.request)]
    together = rankings.get(names[0], [])
    of_all, ranks_of_all = {(p.example_id, p.start): p for p in together}, _ranks(together)
    chosen: dict[tuple[str, int], tuple[Proponent, dict[str, int]]] = {}
    places: dict[tuple[str, int], list[dict[str, Any]]] = {}
    coverage: dict[tuple[str, int], float] = {}
    for name in names:
        ranking = rankings.get(name, [])
        ranks = _ranks(ranking)
        for proponent in best_per_example(ranking)[:max_per_fact]:
            key = (proponent.example_id, proponent.start)
            if key not in chosen:
                chosen[key] = (of_all.get(key, proponent), ranks_of_all.get(key, ranks[key]))
            if len(places.setdefault(key, [])) < FACTS_TOLD:
                places[key].append({"fact_id": name, "rank": proponent.rank, "score": proponent.score})
            coverage[key] = max(coverage.get(key, 0.0), proponent.coverage)
    rows = []
    for key, (p, ranks) in chosen.items():
        row = {"request_id": asked.request.request_id, "example_id": p.example_id, "start": p.start, "end": p.end}
        row |= {"text": p.text, "source": p.source, "file": p.file, "row": p.row, "sha256": p.sha256, "group": ""}
        row |= {"rank": p.rank, "score": p.score, "signals": p.signals, "ranks": ranks, "coverage": coverage[key]}
        row |= {"tokens": [list(token) for token in p.tokens], "facts": places[key], "labels": []}
        rows.append(row | evidence_of(asked, p.text))
    return sorted(rows, key=lambda row: (-row["score"], row["example_id"], row["start"]))


def propose(asked: AskedRequest, row: dict[str, Any], policy: Policy) -> dict[str, Any]:
    """What the policy proposes for a passage, with the spans that a redaction takes: those of the labels it names.

    A redaction that no label has spans for becomes a review: nothing says what to take out.
    """
    labels = [(f"{label['scorer']}/{label['label']}", label["score"]) for label in row["labels"]]
    found = Found(
        asked.request.category, asked.said_by_model, row["rank"], row["score"], row["coverage"],
        row["longest_overlap"], labels,
    )  # fmt: skip
    action, rule, named = policy.propose(found)
    spans: list[list[int]] = []
    if action == "redact":
        pairs = zip(labels, row["labels"], strict=True)
        marked = sorted(span for pair, label in pairs if pair in named for span in label["spans"])
        for start, end in marked:
            if spans and start <= spans[-1][1]:
                spans[-1][1] = max(end, spans[-1][1])
            else:
                spans.append([start, end])
        if not spans:
            return {"action": "review", "spans": [], "rule": f"{rule}; no scorer says which part to redact"}
    return {"action": action, "spans": spans, "rule": rule}
