"""What each part of an audit's reports shows, as plain rows for the templates: nothing here is HTML or in a language.

Audit -> the cards of a request's evidence, its decisions, what was removed and measured, the method, evidence.csv
"""

import itertools
import json
from collections.abc import Iterator
from typing import Any

from pipelines.audit import ARMS, Audit, MeasuredFact
from pipelines.review_items import finite, passage_row, proposal_of
from schemas.ledger import Entry
from schemas.policies import STRONGEST_FIRST
from schemas.records import Removal

MOST = (4_000, 1_500)  # characters and pieces of a passage that are shown; evidence.jsonl holds the rest
MOST_FILES = 200  # of a certificate's files on one page
MOST_PLOTTED = 30  # rows of a plot
VERIFIED_WITH = (
    "before",
    "after",
    "control",
    "after_corpus",
    "control_corpus",
    "seeds",
    "facts",
    "retain_facts",
    "held_out",
)
CSV_HEADING = (
    "request_id", "category", "example_id", "source", "file", "row", "start", "end", "sha256", "group", "rank",
    "score", "coverage", "overlaps", "labels", "not_scored", "proposal", "rule", "decision", "decided_by", "decided_at",
    "reason", "outcome", "text",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- evidence


def passages(audit: Audit, request_id: str, example_id: str) -> list[dict[str, Any]]:
    """The passages of one example that a request found, in the example's order: marks, signals, labels, place."""
    removal, proposal = audit.decided.get(example_id), proposal_of(audit.case, example_id)
    taken = removal.spans if removal and removal.decision == "approved" else ()
    found = []
    for row in audit.rows(request_id, example_id):
        shown = passage_row(audit.case, [row], proposal, taken, MOST)
        found.append(
            shown
            | {"segments": with_classes(shown["segments"])}
            | {name: row[name] for name in ("source", "file", "row", "text", "rank")}
            | {name: shown["found"][0][name] for name in ("signals", "coverage", "names")}
            | {"facts": shown["found"][0]["facts"], "similarity": finite(row.get("similarity"))}
        )
    return found


def with_classes(pieces: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The pieces of a text with the names of their styles: their marks, and where what is redacted begins and ends."""
    redacted = [bool({"redact", "taken"} & set(piece["marks"])) for piece in pieces]
    around = zip(pieces, [False, *redacted], redacted, [*redacted[1:], False], strict=False)
    return [
        {"hidden": ""}
        | piece
        | {"classes": " ".join([*"m"[: len(piece["marks"])], *piece["marks"], *_ends(before, here, after)])}
        for piece, before, here, after in around
    ]


def _ends(before: bool, here: bool, after: bool) -> list[str]:
    return ["first"] * (here and not before) + ["last"] * (here and not after)


def card(audit: Audit, request_id: str, number: int, ids: list[str]) -> dict[str, Any]:
    """What is decided together: the best ranked example, its near-duplicates under it."""
    examples = []
    for place, example_id in enumerate(ids):
        rows = audit.rows(request_id, example_id)
        stands, removal = audit.stands.get(example_id), audit.decided.get(example_id)
        rules = dict.fromkeys(row["proposal"]["rule"] for row in rows)
        examples.append(
            {
                "id": example_id,
                "anchor": f"text-{number}" if not place else f"text-{number}-{place + 1}",
                "number": f"{number}" if not place else f"{number}.{place + 1}",
                "sha256": rows[0]["sha256"],
                "outcome": audit.outcome(example_id),
                "removal": removal,
                "reason": stands.reason if stands else removal.reason if removal else "",
                "proposal": min((row["proposal"]["action"] for row in rows), key=STRONGEST_FIRST.index),
                "rules": [rule for rule in rules if rule],
                "passages": passages(audit, request_id, example_id),
                "rank": min(row["rank"] for row in rows),
            }
        )
    return {"number": number, "first": examples[0], "others": examples[1:]}


def cards(audit: Audit, request_id: str) -> list[dict[str, Any]]:
    return [card(audit, request_id, number, ids) for number, ids in enumerate(audit.items(request_id), start=1)]


def anchors(found: list[dict[str, Any]]) -> dict[str, tuple[str, str]]:
    """By example (its place on the page, its number there)."""
    return {e["id"]: (e["anchor"], e["number"]) for c in found for e in (c["first"], *c["others"])}


# ------------------------------------------------------------------------------------------------------------ decisions


def decisions(audit: Audit, example_ids: list[str]) -> list[dict[str, Any]]:
    """Every decision about these examples in the ledger's order, those that the run came with (a policy's) first."""
    wanted = set(example_ids)
    rows = [_came_with(r, audit) for r in audit.case.removals.values() if r.example_id in wanted]
    return [row for row in rows if row] + [_entry(e, audit) for e in audit.entries if e.example_id in wanted]


def _came_with(removal: Removal, audit: Audit) -> dict[str, Any] | None:
    if removal.decision == "proposed":
        return None
    stands = removal.example_id not in audit.stands
    return {
        "seq": 0, "time": removal.decided_at, "reviewer": removal.decided_by, "example_id": removal.example_id,
        "decision": removal.decision, "action": removal.action, "spans": len(removal.spans), "reason": removal.reason,
        "hash": "", "stands": stands,
    }  # fmt: skip


def _entry(entry: Entry, audit: Audit) -> dict[str, Any]:
    return {
        "seq": entry.seq, "time": entry.time, "reviewer": entry.reviewer, "example_id": entry.example_id,
        "decision": entry.decision, "action": entry.action, "spans": len(entry.spans), "reason": entry.reason,
        "hash": entry.hash, "stands": audit.stands.get(entry.example_id) == entry,
    }  # fmt: skip


def reviewers(audit: Audit) -> list[tuple[str, int]]:
    """(who, how many entries of the ledger), the most first."""
    names = [entry.reviewer for entry in audit.entries]
    return sorted(((name, names.count(name)) for name in set(names)), key=lambda pair: (-pair[1], pair[0]))


# --------------------------------------------------------------------------------------------------------------- effect


def known(facts: list[MeasuredFact], arm: str) -> tuple[int, int]:
    """(prompts answered with the target, prompts asked) of an arm."""
    replies = [fact.replies[arm] for fact in facts]
    return sum(reply.known for reply in replies), sum(reply.asked for reply in replies)


def retained(facts: list[MeasuredFact]) -> dict[str, tuple[int, int]]:
    """Of the other facts that were answered before to every prompt: (still so, asked) after and in the control."""
    told = [f for f in facts if f.retain and f.replies["before"].known == f.replies["before"].asked]
    return {
        arm: (sum(f.replies[arm].known == f.replies[arm].asked for f in told), len(told))
        for arm in ("after", "control")
    }


def plot_rows(facts: list[MeasuredFact]) -> list[tuple[str, float, float, float]]:
    """The rows of the plot of probabilities, as pipelines/plots.py takes them."""
    return [
        (f"{fact.prompt.strip()} {fact.target.strip()}", *(fact.replies[arm].probability for arm in ARMS))
        for fact in facts[:MOST_PLOTTED]
    ]


def effect_rows(effects: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """(set of facts, measure, compared arms, mean, interval) of every difference that a verification tells."""
    for name, measures in effects.items():
        for measure, compared in measures.items():
            for arms in ("after_minus_control", "after_minus_before"):
                if arms in compared:
                    yield {"set": name, "measure": measure, "arms": arms} | compared[arms]


# -------------------------------------------------------------------------------------------------------------- removal


def certified(audit: Audit, example_ids: list[str]) -> dict[str, Any] | None:
    """What the certificate says of these examples, and its files."""
    if audit.certificate is None:
        return None
    wanted, certificate = set(example_ids), audit.certificate
    removed = [row for row in certificate["removed"] if row["example_id"] in wanted]
    return {
        "removed": removed,
        "not_found": [example_id for example_id in certificate["not_found"] if example_id in wanted],
        "files": certificate["files"][:MOST_FILES],
        "files_left": max(0, len(certificate["files"]) - MOST_FILES),
        "num_files": len(certificate["files"]),
        "rewritten": sum(bool(row["new_name"]) for row in certificate["files"]),
    } | {name: certificate[name] for name in ("time", "generation", "index", "sha256", "manifest", "version")}


# --------------------------------------------------------------------------------------------------------------- method


def method(audit: Audit) -> list[tuple[str, Any]]:
    """(name of a row, what it says): texts, or (kind, value) pairs that the template puts into words."""
    details, config = audit.manifest.details, audit.manifest.config
    rows: list[tuple[str, Any]] = [("run", audit.places.get("run") or audit.case.folder)]
    if "policy" in details:
        rows.append(("policy", details["policy"]))
    rows += [
        ("scorers", details.get("scorers", [])),
        ("duplicates", details.get("duplicates")),
        ("not_scored", details.get("not_scored", 0)),
        ("index", details.get("index", "")),
        ("approximations", audit.index.details.get("approximations", []) if audit.index else None),
        ("weights", _weights(audit)),
        ("ledger", (len(audit.entries), audit.head)),
        ("verification", _verification(audit)),
        ("versions", audit.manifest.versions),
        ("config", json.dumps(config, indent=1, ensure_ascii=False) if config else ""),
    ]
    return rows


def _verification(audit: Audit) -> dict[str, str]:
    """The options of the verification that say on what it was measured."""
    config = audit.verification.manifest.config if audit.verification else {}
    told = {name: config.get(name) for name in VERIFIED_WITH}
    return {n: v if isinstance(v, str) else " ".join(map(str, v)) for n, v in told.items() if v}


def _weights(audit: Audit) -> dict[str, float]:
    fusion = audit.index.details.get("fusion", {}) if audit.index else {}
    return dict(zip(fusion.get("signals", ()), fusion.get("weights", ()), strict=True))


# ------------------------------------------------------------------------------------------------------------ a table


def csv_rows(audit: Audit) -> Iterator[list[Any]]:
    """One row a passage and request, in the order of the reports, as CSV_HEADING names its cells, then the signals'."""
    names = signal_names(audit)
    for request_id, request in audit.case.requests.items():
        for example_id in itertools.chain.from_iterable(audit.items(request_id)):
            removal = audit.decided.get(example_id)
            told = [removal.decision, removal.decided_by, removal.decided_at, removal.reason] if removal else [""] * 4
            for row in audit.rows(request_id, example_id):
                labels = [f"{label['scorer']}/{label['label']} {label['score']}" for label in row["labels"]]
                failed = [f"{one['scorer']}: {one['reason']}" for one in row["not_scored"]]
                overlaps = [row["text"][max(start, 0) : end] for start, end in row["overlap"]]
                yield [
                    request_id, request["category"], example_id, row["source"], row["file"], row["row"], row["start"],
                    row["end"], row["sha256"], row["group"], row["rank"], row["score"], row["coverage"],
                    " | ".join(overlaps), " | ".join(labels), " | ".join(failed), row["proposal"]["action"],
                    row["proposal"]["rule"], *told, audit.outcome(example_id), row["text"],
                    *itertools.chain.from_iterable((row["signals"].get(n), row["ranks"].get(n)) for n in names),
                ]  # fmt: skip


def signal_names(audit: Audit) -> list[str]:
    return sorted({name for rows in audit.case.passages.values() for row in rows for name in row["signals"]})


def csv_heading(audit: Audit) -> list[str]:
    return [*CSV_HEADING, *(f"{part}_{name}" for name in signal_names(audit) for part in ("score", "rank"))]


def totals(audit: Audit) -> dict[str, int]:
    """How many examples there are of each outcome, over all requests, each once."""
    return audit.outcomes(list(audit.case.passages)) | {"found": len(audit.case.passages)}
