"""What a reviewer asks for on the page becomes entries of the ledger, or is refused by name.

Case + {examples, decision, action, selections, reason, seqs} -> entries, one an example
"""

from typing import Any

from pipelines.review_items import Case, Spans, label_spans, proposal_of, shown
from schemas.ledger import Entry, standing
from schemas.records import joined_spans


class Refused(Exception):
    """A decision that cannot be taken as asked: (a name among the page's messages, what is put into it)."""

    def __init__(self, message: str, **values: str):
        super().__init__(message)
        self.message, self.values = message, values


def decisions(case: Case, asked: dict[str, Any], reviewer: str, entries: list[Entry]) -> list[Entry]:
    """The entries that a reviewer's request makes, one an example. Raises Refused, or ValueError for a malformed one.

    `asked`: `examples` (places), `decision`, `action` ("proposed": each example's own; "remove"; "redact": what is in
    `selections`, else what is proposed, else what a scorer marked), `selections` ([place, start, end] in characters of
    the example; in the other examples the same words are meant), `reason`. With the decision "undone" alone, `seqs`:
    of each example the `seq` of the decision that is taken back, as the page shows it (0: none of the ledger's).
    Another reviewer's decision that has come since is not what was meant: all of it is refused.
    """
    examples, decision, action, selections, reason, seqs = _checked(case, asked)
    stands = standing(entries)
    for example, seq in zip(examples, seqs, strict=False):
        example_id = case.example_ids[example]
        if seq != (stands[example_id].seq if example_id in stands else 0):
            raise Refused("decided_since", id=shown(example_id))
    made = []
    for example in examples:
        example_id = case.example_ids[example]
        if decision == "undone":
            if example_id not in stands:
                continue
            does, spans = stands[example_id].action, stands[example_id].spans
        else:
            does, spans = _action(case, example, action, selections)
        rows = case.passages[example_id]
        made.append(Entry(
            reviewer=reviewer, example_id=example_id, sha256=rows[0]["sha256"], decision=decision, action=does,
            spans=spans, reason=reason, request_ids=tuple(dict.fromkeys(row["request_id"] for row in rows)),
        ))  # fmt: skip
    if not made:
        raise Refused("nothing_to_undo")
    return made


def _checked(case: Case, asked: dict[str, Any]) -> tuple[list[int], str, str, list[list[int]], str, list[int]]:
    if not isinstance(asked, dict):
        raise ValueError("expected an object")
    examples, selections, seqs = asked.get("examples"), asked.get("selections", []), asked.get("seqs", [])
    decision, action, reason = asked.get("decision"), asked.get("action", "proposed"), asked.get("reason", "")
    if not isinstance(examples, list) or not examples or len(set(map(repr, examples))) < len(examples):
        raise ValueError("expected examples, each once")
    if not all(type(place) is int and 0 <= place < len(case.example_ids) for place in examples):
        raise ValueError("expected examples of this run")
    if decision not in ("approved", "rejected", "undone") or action not in ("proposed", "remove", "redact"):
        raise ValueError("expected a decision and an action")
    if not isinstance(reason, str) or len(reason) > 2000:
        raise ValueError("expected a reason of at most 2000 characters")
    well_formed = isinstance(selections, list) and all(
        isinstance(s, list) and len(s) == 3 and all(type(place) is int for place in s) and s[0] in examples
        for s in selections
    )
    if not well_formed:
        raise ValueError("expected selections of [example, start, end]")
    taken_back = len(examples) if decision == "undone" else 0
    if not isinstance(seqs, list) or len(seqs) != taken_back or not all(type(seq) is int for seq in seqs):
        raise ValueError("expected the seq of each example's decision, to take it back, and none otherwise")
    return examples, decision, action, selections, reason, seqs


def _action(case: Case, example: int, action: str, selections: list[list[int]]) -> tuple[str, Spans]:
    example_id = case.example_ids[example]
    proposal = proposal_of(case, example_id)
    if action == "proposed" and proposal.action != "redact" and _redacted_with(case, example_id):
        raise Refused("nothing_to_redact", id=shown(example_id))  # it falls with them, but not further than they do
    if action == "remove" or (action == "proposed" and (proposal.action != "redact" or not proposal.spans)):
        return "remove", ()
    if action == "proposed":
        return "redact", proposal.spans
    if not selections:
        spans = proposal.spans or label_spans(case, example_id)
        if not spans:
            raise Refused("nothing_to_redact", id=shown(example_id))
        return "redact", spans
    chosen = [(place, *_words_at(case, place, start, end)) for place, start, end in selections]
    own = [(start, end) for place, start, end, _ in chosen if place == example]
    if own:
        return "redact", joined_spans(own)
    found = [_occurrences(case, example_id, words) for *_, words in chosen]
    if not all(found):
        raise Refused("not_in_duplicate", id=shown(example_id))
    return "redact", joined_spans(span for spans in found for span in spans)


def _redacted_with(case: Case, example_id: str) -> bool:
    """Whether a near-duplicate of the example is proposed to be redacted."""
    groups = {row["group"] for row in case.passages[example_id]} - {""}
    return any(
        row["group"] in groups and row["proposal"]["action"] == "redact"
        for rows in case.passages.values()
        for row in rows
    )


def _words_at(case: Case, example: int, start: int, end: int) -> tuple[int, int, str]:
    """(start, end, text) of what was selected in a passage of an example, without white space at its ends."""
    for row in case.passages[case.example_ids[example]]:
        if row["start"] <= start < end <= row["start"] + len(row["text"]):
            text = row["text"][start - row["start"] : end - row["start"]]
            start += len(text) - len(text.lstrip())
            if text.strip():
                return start, start + len(text.strip()), text.strip()
    raise Refused("not_in_passage", id=shown(case.example_ids[example]))


def _occurrences(case: Case, example_id: str, words: str) -> list[tuple[int, int]]:
    spans = []
    for row in case.passages[example_id]:
        place = row["text"].find(words)
        while place >= 0:
            spans.append((row["start"] + place, row["start"] + place + len(words)))
            place = row["text"].find(words, place + len(words))
    return spans
