"""What is reviewed: a run's requests, evidence and proposals, as a queue of items.

requests.jsonl, evidence.jsonl, removals.jsonl -> Case -> rows for the page

An item is what is decided together: an example with all its passages, or the examples of a near-duplicate group. Spans
in evidence count from the start of the passage's text; those of decisions from the start of the example's.
Whatever comes from a corpus or a request goes to the page through `visible`, a passage's text in segments.
"""

import bisect
import itertools
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pipelines.storage import absolute, join, read_bytes, read_manifest, verified
from schemas.errors import ArtifactMismatch, ConfigError
from schemas.ledger import Entry, standing
from schemas.policies import STRONGEST_FIRST
from schemas.records import Removal, joined_spans
from schemas.removals import EVIDENCE, REMOVALS, REQUESTS, parse_removals
from schemas.visible import hidden_runs, long_name, short_name, visible

SNIPPET, NAME = 140, 200  # characters
SHORT, WHOLE = (8_000, 2_000), (2_000_000, 20_000)  # characters and pieces of a passage that the page is given at once
_LEVELS = (0.1, 0.35, 0.7)  # of the passage's highest share: a token's influence is drawn in as many strengths
Spans = tuple[tuple[int, int], ...]
REQUEST_FIELDS = frozenset({"request_id", "category", "cases", "exemplars", "said_by_model"})
EVIDENCE_FIELDS = frozenset(
    ["request_id", "example_id", "start", "end", "text", "source", "file", "row", "sha256", "group", "rank", "score",
     "signals", "ranks", "coverage", "names", "tokens", "overlap", "words", "facts", "labels", "not_scored",
     "proposal"]
)  # fmt: skip


@dataclass(frozen=True)
class Item:
    """What is decided together. `examples` are places in `Case.example_ids`, the best ranked first."""

    examples: tuple[int, ...]
    request_ids: tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """A run as it is reviewed. `passages` holds the evidence rows of each example, in the order of its passages."""

    folder: str
    requests: dict[str, dict[str, Any]]
    passages: dict[str, list[dict[str, Any]]]
    removals: dict[str, Removal]
    example_ids: list[str]
    items: list[Item]

    @cached_property
    def highest(self) -> dict[tuple[str, str], float]:
        """The highest score of each signal for each request: a full bar."""
        found: dict[tuple[str, str], float] = {}
        for row in (row for rows in self.passages.values() for row in rows):
            for name, score in scores(row).items():
                if score is not None:
                    key = row["request_id"], name
                    found[key] = max(found.get(key, 0.0), score)
        return found

    @cached_property
    def texts(self) -> list[str]:
        """What a search looks through, one text an item."""
        return [
            "\n".join(
                part
                for example in item.examples
                for row in self.passages[self.example_ids[example]]
                for part in (row["example_id"], row["source"], row["file"], row["text"])
            ).casefold()
            for item in self.items
        ]


def parse_rows(data: bytes, path: str, names: frozenset[str]) -> list[dict[str, Any]]:
    """The objects of a JSONL file; raises ArtifactMismatch for one that lacks a field."""
    rows = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        if line:
            rows.append(json.loads(line))
            missing = sorted(names - rows[-1].keys())
            if missing:
                raise ArtifactMismatch(
                    f"{path}, line {number}: expected the fields {', '.join(sorted(names))}, found no "
                    f"{' and no '.join(missing)}; another version of proponent wrote it: run `flag` again"
                )
    return rows


def load_case(folder: str) -> Case:
    """The run in a folder that `flag` wrote for audit requests. Raises ConfigError for one without evidence."""
    folder = absolute(folder).rstrip("/")
    listed = {info.name for info in read_manifest(folder, "removals").files}
    missing = [name for name in (REQUESTS, EVIDENCE) if name not in listed]
    if missing:
        raise ConfigError(
            f"{folder}: expected a run for audit requests, found no {' and no '.join(missing)} in it; make it with "
            "`trace --requests` and `flag`, or edit a copy of its removals.jsonl and take the decisions with --take"
        )
    removals = parse_removals(read_bytes(verified(folder, REMOVALS)), join(folder, REMOVALS))
    requests, evidence = (
        parse_rows(read_bytes(verified(folder, name)), join(folder, name), names)
        for name, names in ((REQUESTS, REQUEST_FIELDS), (EVIDENCE, EVIDENCE_FIELDS))
    )
    unknown = {row["request_id"] for row in evidence} - {row["request_id"] for row in requests}
    if unknown:
        raise ArtifactMismatch(
            f"{join(folder, EVIDENCE)}: expected evidence for the requests in {REQUESTS}, found some for "
            f"{', '.join(sorted(unknown))}; run `flag` again"
        )
    return make_case(folder, requests, evidence, removals)


def make_case(
    folder: str, requests: list[dict[str, Any]], evidence: list[dict[str, Any]], removals: Iterable[Removal]
) -> Case:
    """The items in the order of their requests, then of their best rank, ties by id."""
    by_id = {row["request_id"]: row for row in requests}
    order = {request_id: number for number, request_id in enumerate(by_id)}
    passages: dict[str, list[dict[str, Any]]] = {}
    for row in evidence:
        passages.setdefault(row["example_id"], []).append(row)
    first = {
        example_id: min((order[row["request_id"]], row["rank"], example_id) for row in rows)
        for example_id, rows in passages.items()
    }
    for rows in passages.values():
        rows.sort(key=lambda row: (row["start"], order[row["request_id"]]))
    example_ids = sorted(passages, key=lambda example_id: first[example_id])
    places = {example_id: place for place, example_id in enumerate(example_ids)}
    items = []
    for together in joined_groups(passages):
        ids = sorted(together, key=lambda example_id: first[example_id])
        asked = {row["request_id"] for example_id in ids for row in passages[example_id]}
        items.append(Item(tuple(places[i] for i in ids), tuple(sorted(asked, key=lambda i: order[i]))))
    items.sort(key=lambda item: item.examples[0])
    return Case(folder, by_id, passages, {r.example_id: r for r in removals}, example_ids, items)


def joined_groups(passages: dict[str, list[dict[str, Any]]]) -> list[list[str]]:
    """The examples in sets that are decided together: those that share a group, or are joined by others that do."""
    parent = {example_id: example_id for example_id in passages}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    holder: dict[str, str] = {}
    for example_id, rows in passages.items():
        for group in {row["group"] for row in rows if row["group"]}:
            parent[root(example_id)] = root(holder.setdefault(group, example_id))
    sets: dict[str, list[str]] = {}
    for example_id in passages:
        sets.setdefault(root(example_id), []).append(example_id)
    return list(sets.values())


# ------------------------------------------------------------------------------------------------------------- evidence


def shown(text: Any, most: int = NAME) -> str:
    """A name as the page shows it: what is hidden is named, and what no line holds is cut, with three dots."""
    text = str(text)
    return visible(text) if len(text) <= most else visible(text[:most]) + " …"


def finite(value: Any) -> float | None:
    """A score as JSON can carry it: a scorer may have said NaN."""
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def scores(row: dict[str, Any]) -> dict[str, float | None]:
    """Every signal's score of an evidence row, the fused one ("") last."""
    return {name: finite(score) for name, score in row["signals"].items()} | {"": finite(row["score"])}


def moved(spans: Iterable[Iterable[int]], by: int) -> Spans:
    return tuple((start + by, end + by) for start, end in spans)


@dataclass(frozen=True)
class Proposal:
    """What is proposed for an example over its passages and requests: the strongest action, its spans and rules."""

    action: str
    spans: Spans
    rules: tuple[str, ...]


def proposal_of(case: Case, example_id: str) -> Proposal:
    rows = case.passages[example_id]
    action = min((row["proposal"]["action"] for row in rows), key=STRONGEST_FIRST.index)
    asked = [row for row in rows if row["proposal"]["action"] == action]
    spans = joined_spans(span for row in asked for span in moved(row["proposal"]["spans"], row["start"]))
    return Proposal(action, spans, tuple(dict.fromkeys(row["proposal"]["rule"] for row in asked)))


def label_spans(case: Case, example_id: str) -> Spans:
    """The spans that scorers marked, in characters of the example."""
    return joined_spans(
        span
        for row in case.passages[example_id]
        for label in row["labels"]
        for span in moved(label["spans"], row["start"])
    )


def _strengths(tokens: list[list[float]]) -> list[tuple[int, int, int]]:
    highest = max((share for _, _, share in tokens), default=0.0)
    if highest <= 0:
        return []
    told = ((int(start), int(end), sum(share >= highest * level for level in _LEVELS)) for start, end, share in tokens)
    return [(start, end, strength) for start, end, strength in told if strength]


def segments(text: str, marks: dict[str, Iterable[Iterable[int]]]) -> list[dict[str, Any]]:
    """The text in pieces that carry the same marks: `text`, `start`, `end` and the marks' names.

    A run of a hidden character is a piece of its own, its text the character's name and `hidden` what it is. Pieces
    join to the text but for these.
    """
    length, changes = len(text), {}
    for name, spans in marks.items():
        for start, end in joined_spans(spans):
            start, end = max(0, start), min(length, end)
            if start < end:
                changes.setdefault(start, []).append((name, 1))
                changes.setdefault(end, []).append((name, -1))
    runs = hidden_runs(text)
    starts = [start for start, _ in runs]
    cuts = sorted({0, length, *changes, *(place for run in runs for place in run)})
    pieces, active = [], dict.fromkeys(marks, 0)
    for start, end in itertools.pairwise(cuts):
        for name, change in changes.get(start, ()):
            active[name] += change
        piece = {"start": start, "end": end, "marks": [name for name, count in active.items() if count]}
        before = bisect.bisect_right(starts, start) - 1  # the run that begins here or before
        if before >= 0 and start < runs[before][1]:
            times = f"×{end - start}" if end - start > 1 else ""
            piece |= {"text": short_name(text[start]) + times, "hidden": long_name(text[start])}
        else:
            piece["text"] = text[start:end]
        pieces.append(piece)
    return pieces


def shortened(pieces: list[dict[str, Any]], most_characters: int, most_pieces: int) -> list[dict[str, Any]]:
    """The first pieces, the last of them cut, so that a page can hold them."""
    kept = [piece for piece in pieces[:most_pieces] if piece["start"] < most_characters]
    if kept and kept[-1]["end"] > most_characters and "hidden" not in kept[-1]:
        last = kept[-1]
        kept[-1] = last | {"end": most_characters, "text": last["text"][: most_characters - last["start"]]}
    return kept


# ----------------------------------------------------------------------------------------------------- rows of the page


def request_row(request: dict[str, Any]) -> dict[str, Any]:
    cases = [
        {
            "prompt": shown(case["prompt"], SHORT[0]),
            "output": shown(case["output"], SHORT[0]),
            "said": None if case["said"] is None else shown(case["said"], SHORT[0]),
            "known": case["known"],
            "probability": finite(case["probability"]),
        }
        for case in request["cases"]
    ]
    texts = {name: shown(request.get(name) or "", 2_000) for name in ("requester", "reason", "deadline")}
    return texts | {
        "id": shown(request["request_id"]),
        "category": shown(request["category"]),
        "cases": cases,
        "exemplars": [shown(text, SHORT[0]) for text in request["exemplars"]],
        "said_by_model": request["said_by_model"],
    }


def queue_row(case: Case, item: Item, places: dict[str, int]) -> dict[str, Any]:
    ids = [case.example_ids[example] for example in item.examples]
    rows = [row for example_id in ids for row in case.passages[example_id]]
    best = min(case.passages[ids[0]], key=lambda row: (places[row["request_id"]], row["rank"]))
    proposals = [proposal_of(case, example_id) for example_id in ids]
    snippet = best["text"][: 4 * SNIPPET].split()
    return {
        "examples": list(item.examples),
        "id": shown(ids[0]),
        "requests": [places[request_id] for request_id in item.request_ids],
        "sources": sorted({shown(row["source"]) for row in rows}),
        "proposal": min((proposal.action for proposal in proposals), key=STRONGEST_FIRST.index),
        "rank": best["rank"],
        "snippet": visible(" ".join(snippet)[:SNIPPET]),
    }


def queue_rows(case: Case) -> list[dict[str, Any]]:
    places = {request_id: place for place, request_id in enumerate(case.requests)}
    return [queue_row(case, item, places) for item in case.items]


def signal_rows(case: Case, row: dict[str, Any]) -> list[dict[str, Any]]:
    ranks = row["ranks"] | {"": row["rank"]}
    rows = []
    for name, score in scores(row).items():
        highest = case.highest.get((row["request_id"], name), 0.0)
        share = max(0.0, min(1.0, score / highest)) if score is not None and highest > 0 else 0.0
        rows.append({"name": shown(name), "score": score, "rank": ranks.get(name), "share": round(share, 4)})
    return rows


def label_row(label: dict[str, Any], text: str) -> dict[str, Any]:
    return {
        "scorer": shown(label["scorer"]),
        "version": shown(label["version"]),
        "label": shown(label["label"]),
        "score": finite(label["score"]),
        "threshold": finite(label["threshold"]),
        "texts": [shown(text[start:end]) for start, end in label["spans"][:20]],
    }


def passage_row(
    case: Case, rows: list[dict[str, Any]], proposal: Proposal, taken: Spans, most: tuple[int, int]
) -> dict[str, Any]:
    """One passage with the evidence of every request that found it; `rows` are of one and the same passage.

    `taken` are the spans that a standing decision redacts, `most` is how much of the text is given.
    """
    text, start = rows[0]["text"], rows[0]["start"]
    tokens = next((_strengths(row["tokens"]) for row in rows if row["tokens"]), [])
    labels = {json.dumps(label, sort_keys=True): label for row in rows for label in row["labels"]}
    not_scored = dict.fromkeys((failed["scorer"], failed["reason"]) for row in rows for failed in row["not_scored"])
    marks = {
        "word": [span for row in rows for span in row["words"]],
        "overlap": [span for row in rows for span in row["overlap"]],
        "label": [span for label in labels.values() for span in label["spans"]],
        "redact": moved(proposal.spans, -start),
        "taken": moved(taken, -start),
    }
    marks |= {f"influence{n}": [(s, e) for s, e, strength in tokens if strength == n] for n in (1, 2, 3)}
    pieces = shortened(segments(text, marks), *most)
    return {
        "start": start,
        "end": rows[0]["end"],
        "segments": pieces,
        "rest": len(text) - (pieces[-1]["end"] if pieces else 0),
        "overlaps": [shown(text[s:e], 2 * NAME) for s, e in joined_spans(marks["overlap"])],
        "labels": [label_row(label, text) for label in labels.values()],
        "not_scored": [{"scorer": shown(scorer), "reason": shown(reason, 2_000)} for scorer, reason in not_scored],
        "found": [
            {
                "request": shown(row["request_id"]),
                "signals": signal_rows(case, row),
                "coverage": finite(row["coverage"]),
                "names": [shown(name) for name in row["names"]],
                "facts": [
                    {"id": shown(fact["fact_id"]), "rank": fact["rank"], "score": finite(fact["score"])}
                    for fact in row["facts"]
                ],
            }
            for row in rows
        ],
    }


def example_row(case: Case, example: int, own: list[Entry], most: tuple[int, int]) -> dict[str, Any]:
    """An example for the page; `own` are the ledger's entries about it."""
    example_id = case.example_ids[example]
    rows, proposal = case.passages[example_id], proposal_of(case, example_id)
    by_span: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for row in rows:
        by_span.setdefault((row["start"], row["end"]), []).append(row)
    stands = standing(own).get(example_id)
    taken = stands.spans if stands and stands.decision == "approved" else ()
    return {
        "example": example,
        "id": shown(example_id),
        "sha256": rows[0]["sha256"],
        "source": shown(rows[0]["source"]),
        "file": shown(rows[0]["file"]),
        "row": rows[0]["row"],
        "proposal": {
            "action": proposal.action,
            "spans": len(proposal.spans),
            "rules": [shown(rule) for rule in proposal.rules],
        },
        "passages": [passage_row(case, found, proposal, taken, most) for found in by_span.values()],
        "history": [entry_row(entry) for entry in own],
    }


def entry_row(entry: Entry) -> dict[str, Any]:
    return {
        "seq": entry.seq,
        "time": entry.time,
        "reviewer": shown(entry.reviewer),
        "decision": entry.decision,
        "action": entry.action,
        "spans": [list(span) for span in entry.spans],
        "reason": shown(entry.reason, 2_000),
    }


def item_row(case: Case, number: int, entries: list[Entry], whole: bool = False) -> dict[str, Any]:
    item, most = case.items[number], WHOLE if whole else SHORT
    own: dict[str, list[Entry]] = {case.example_ids[example]: [] for example in item.examples}
    for entry in entries:
        if entry.example_id in own:
            own[entry.example_id].append(entry)
    return {
        "number": number,
        "requests": [request_row(case.requests[request_id]) for request_id in item.request_ids],
        "examples": [example_row(case, example, own[case.example_ids[example]], most) for example in item.examples],
    }


def states(case: Case, entries: list[Entry], since: int = 0) -> dict[int, dict[str, Any] | None]:
    """What stands for each example that has a decision, or had one taken back: of those that changed after `since`.

    A decision that the run came with, a policy's for instance, stands until the ledger says otherwise.
    """
    changed = {entry.example_id for entry in entries if entry.seq > since}
    stands = standing(entries)
    rows: dict[int, dict[str, Any] | None] = {}
    for place, example_id in enumerate(case.example_ids):
        if since and example_id not in changed:
            continue
        entry, removal = stands.get(example_id), case.removals.get(example_id)
        if entry:
            rows[place] = entry_row(entry)
        elif removal and removal.decision != "proposed":
            rows[place] = {
                "seq": 0,
                "time": shown(removal.decided_at),
                "reviewer": shown(removal.decided_by),
                "decision": removal.decision,
                "action": removal.action,
                "spans": [list(span) for span in removal.spans],
                "reason": shown(removal.reason, 2_000),
            }
        elif example_id in changed:
            rows[place] = None
    return rows


def search(case: Case, words: str) -> list[int]:
    """The items that hold the words, in any case, in a passage, an id, a source or a file's name."""
    wanted = words.casefold().strip()
    return [number for number, text in enumerate(case.texts) if wanted in text]
