"""The evidence that `flag` puts before a person for an audit request: a passage a line, with all that is known of it.

requests + their rankings -> gather -> near-duplicates over the index -> labels of scorers -> a policy's proposals
"""

from collections.abc import Iterable
from typing import Any

from attribution.evidence import content_words, matching_words, overlap
from pipelines.requests import AskedRequest
from schemas.policies import STRONGEST_FIRST, Found, Policy
from schemas.rankings import best_per_example
from schemas.records import Passage, Proponent, Removal, joined_spans
from schemas.requests import facts_of

TO_BE_JUDGED = "to be judged: "
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


def evidence_of(asked: AskedRequest, text: str, names: Iterable[str] = ()) -> dict[str, Any]:
    """What a passage's text shares with the request: its words and those of the other `names` that it was found by, and
    runs of words with the outputs.
    """
    words = content_words(" ".join([*(case.prompt for case in asked.cases), *outputs_of(asked), *names]))
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
        row |= {"names": list(p.names)}
        rows.append(row | evidence_of(asked, p.text, p.names))
    return sorted(rows, key=lambda row: (-row["score"], row["example_id"], row["start"]))


def passage_of(row: dict[str, Any]) -> Passage:
    """The passage of a row, as a scorer is given it."""
    names = ("example_id", "start", "end", "text", "source", "sha256", "file", "row")
    return Passage(**{name: row[name] for name in names})


def with_duplicates(
    rows: list[dict[str, Any]], groups: dict[str, str], matches: list[dict[str, Any]], asked: AskedRequest
) -> list[dict[str, Any]]:
    """One request's rows with their groups, and a row for each document of the corpus that is a near-duplicate of one.

    A copy that was not found itself has the rank and score of what it is a copy of, and no signals of its own; in a
    `renamed` one a name stands in the place of another, and it is in no group.
    """
    found = {row["example_id"]: row for row in reversed(rows)}  # of a document its best passage
    added: dict[str, dict[str, Any]] = {}
    for match in matches:
        seed, example_id = found.get(match["seed"]), match["example_id"]
        if seed is None or example_id in found:
            continue
        if example_id in added and _nearness(added[example_id]) >= _nearness(match):
            continue
        row = {name: match[name] for name in ("example_id", "start", "end", "text", "source", "file", "row", "sha256")}
        row |= {"request_id": seed["request_id"], "rank": seed["rank"], "score": seed["score"], "signals": {}}
        row |= {"ranks": {}, "coverage": seed["coverage"], "tokens": [], "facts": [], "labels": [], "names": []}
        row |= {"duplicate_of": match["seed"], "similarity": match["similarity"], "renamed": match["renamed"]}
        added[example_id] = row | evidence_of(asked, match["text"])
    every = [*rows, *(added[example_id] for example_id in sorted(added))]
    return [row | {"group": groups.get(row["example_id"], "")} for row in every]


def _nearness(match: dict[str, Any]) -> tuple[bool, float]:
    return not match["renamed"], match["similarity"]


def propose(asked: AskedRequest, row: dict[str, Any], policy: Policy) -> dict[str, Any]:
    """What the policy proposes for a passage, with the spans that a redaction takes: those of the labels it names.

    A redaction that no label has spans for becomes a review: nothing says what to take out. So does everything about a
    passage that a scorer failed on, and about a copy with another name: what the policy asks is not known of them.
    """
    if row["not_scored"]:
        told = "; ".join(f"not scored by {failed['scorer']}: {failed['reason']}" for failed in row["not_scored"])
        return {"action": "review", "spans": [], "rule": told}
    if row.get("renamed"):
        rule = f"a copy of {row['duplicate_of']} with another name in it"
        return {"action": "review", "spans": [], "rule": rule}
    labels = [(f"{label['scorer']}/{label['label']}", label["score"]) for label in row["labels"]]
    found = Found(
        asked.request.category, asked.said_by_model, row["rank"], row["score"], row["coverage"],
        row["longest_overlap"], labels,
    )  # fmt: skip
    action, rule, named = policy.propose(found)
    spans: tuple[tuple[int, int], ...] = ()
    if action == "redact":
        pairs = zip(labels, row["labels"], strict=True)
        spans = joined_spans(span for pair, label in pairs if pair in named for span in label["spans"])
        if not spans:
            return {"action": "review", "spans": [], "rule": f"{rule}; no scorer says which part to redact"}
    return {"action": action, "spans": [list(span) for span in spans], "rule": rule}


def propose_all(
    gathered: list[list[dict[str, Any]]], asked: list[AskedRequest], policy: Policy
) -> list[dict[str, Any]]:
    """The rows of each request with their proposals, in one list. Near-duplicates stand or fall together, whichever
    requests found them, so the strongest one's proposal is all's.

    What is to be redacted differs in each copy: one without spans of its own goes to a person.
    """
    pairs = zip(gathered, asked, strict=True)
    own = [row | {"proposal": propose(request, row, policy)} for rows, request in pairs for row in rows]
    strongest: dict[str, dict[str, Any]] = {}
    for row in own:
        if row["group"]:
            best = strongest.setdefault(row["group"], row)
            if _strength(row) < _strength(best):
                strongest[row["group"]] = row
    return [_with_group(row, strongest.get(row["group"], row)) for row in own]


def _strength(row: dict[str, Any]) -> int:
    return STRONGEST_FIRST.index(row["proposal"]["action"])


def _with_group(row: dict[str, Any], strongest: dict[str, Any]) -> dict[str, Any]:
    """The row with the proposal of the strongest of its group. Of several rows about one passage, by several requests,
    each that is as strong by itself keeps its own rule."""
    own, action = row["proposal"], strongest["proposal"]["action"]
    if row is strongest or (own["action"] == action and row["example_id"] == strongest["example_id"]):
        return row
    told = f"which it is a near-duplicate of: {strongest['proposal']['rule']}"
    if row["example_id"] == strongest["example_id"]:
        told = f"for {strongest['request_id']}: {strongest['proposal']['rule']}"
    rule = f"with {strongest['example_id']}, {told}"
    if own["action"] == action:
        return row | {"proposal": own | {"rule": rule}}
    return row | {"proposal": {"action": "review" if action == "redact" else action, "spans": [], "rule": rule}}


def removals_of(rows: Iterable[dict[str, Any]]) -> list[Removal]:
    """One proposal a document, by id: the strongest of its passages, and of the requests that found it.

    Redactions of several passages are one, in characters of the document. What is proposed to be kept is none.
    """
    of_document: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["proposal"]["action"] != "keep":
            of_document.setdefault(row["example_id"], []).append(row)
    removals = []
    for example_id, found in sorted(of_document.items()):
        strongest = min(found, key=_strength)
        action = "redact" if strongest["proposal"]["action"] == "redact" else "remove"
        moved = ([row["start"] + start, row["start"] + end] for row in found for start, end in row["proposal"]["spans"])
        requests = dict.fromkeys(row["request_id"] for row in found)
        judged = TO_BE_JUDGED if strongest["proposal"]["action"] == "review" else ""
        removals.append(
            Removal(
                example_id=example_id,
                sha256=strongest["sha256"],
                decision="proposed",
                reason=f"{judged}{strongest['proposal']['rule']} ({', '.join(requests)})",
                action=action,
                spans=joined_spans(moved) if action == "redact" else (),
                fact_ids=tuple(dict.fromkeys(place["fact_id"] for row in found for place in row["facts"])),
                request_ids=tuple(requests),
                group=strongest["group"],
                evidence=tuple(
                    {name: row[name] for name in ("request_id", "rank", "score", "coverage", "signals")}
                    for row in found
                ),
                text=strongest["text"],
            )
        )
    return removals
