"""The records of the system: Example, Passage, Label, Fact, Proponent, Removal and DeadLetter.

`to_row` gives a dict of JSON values; `from_row` raises ValueError with the name of a field that is missing, and the
reader adds file and line.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, Literal, Self

SIGNALS = ("bm25", "dense", "gradient")
DECISIONS = ("proposed", "approved", "rejected")
Decision = Literal["proposed", "approved", "rejected", "undone"]  # undone: in the copy that `review --take` reads alone
Action = Literal["remove", "redact"]
Combine = Literal["mean", "max"]


def text_sha256(text: str) -> str:
    """SHA-256 of the text's UTF-8 bytes, in hexadecimal: the identity of an example's content in every format."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _known(cls, row: dict[str, Any]) -> dict[str, Any]:
    """The row's fields that the record has; raises ValueError for one that is missing and has no default."""
    for f in fields(cls):
        if f.name not in row and f.default is MISSING and f.default_factory is MISSING:
            raise ValueError(f"field '{f.name}' is missing")
    return {f.name: row[f.name] for f in fields(cls) if f.name in row}


@dataclass(frozen=True)
class Example:
    """One training text and where it came from. `row` counts from 1 (a line, a Parquet row; 1 for a text file)."""

    id: str
    text: str
    source: str
    file: str
    row: int


@dataclass(frozen=True)
class Passage:
    """A window of an example: `text` is `example.text[start:end]`; `sha256` is of the whole example's text.

    `parts` is what the example was made of, as JSON: its `prompt` and `completion`, or its `messages`; "" for plain
    text.
    """

    example_id: str
    start: int
    end: int
    text: str
    source: str
    sha256: str
    file: str
    row: int
    parts: str = ""


@dataclass(frozen=True)
class DeadLetter:
    """An input that could not be processed: the step and the reason, and where it stands."""

    file: str
    row: int
    step: str
    reason: str
    record: str = ""

    def to_row(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Label:
    """What a scorer says of a passage: a `label` whose `score` is at least the `threshold`.

    `scorer` and `version` are what it takes to say it again; `spans` are characters of the passage's text, sorted.
    """

    scorer: str
    version: str
    threshold: float
    label: str
    score: float
    spans: tuple[tuple[int, int], ...] = ()

    def to_row(self) -> dict[str, Any]:
        return asdict(self) | {"spans": [list(span) for span in self.spans]}


@dataclass(frozen=True)
class Fact:
    """What the model says: `target` is the continuation of `prompt` to be explained.

    `subject`, `relation`, `object` and `aliases` are optional; `proponents` are the example ids known to state the
    fact (None: not known), read by `evaluate` alone. A fact asked in several ways has them all in `variants`, pairs of
    prompt and target, the first of which are `prompt` and `target`; `combine` says what becomes of their scores.
    """

    id: str
    prompt: str
    target: str
    subject: str = ""
    relation: str = ""
    object: str = ""
    aliases: tuple[str, ...] = ()
    proponents: tuple[str, ...] | None = None
    variants: tuple[tuple[str, str], ...] = ()
    combine: Combine = "mean"
    embedding: tuple[float, ...] = ()

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Self:
        """The fact that `to_row` made the row from; what a user wrote is for `schemas.facts.parse_facts`."""
        known = _known(cls, row)
        for name in ("aliases", "proponents", "embedding"):
            if known.get(name) is not None:
                known[name] = tuple(known[name])
        known["variants"] = tuple((prompt, target) for prompt, target in known.get("variants", ()))
        return cls(**known)

    def to_row(self) -> dict[str, Any]:
        """The fields that say something; id, prompt and target always."""
        row = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        if self.variants:
            row["variants"] = [list(pair) for pair in self.variants]
        return {name: list(value) if isinstance(value, tuple) else value for name, value in row.items()}


@dataclass(frozen=True)
class Proponent:
    """A passage with its scores for one fact. Higher = more of a proponent, in every signal; rank counts from 1.

    `coverage` is the share of the text query's word weight (idf) that the passage holds, 0 to 1: the evidence that
    `flag` asks a minimum of. `names` are the other names of the fact's subject and object that it was found by, where
    these say more than the fact's own words. `tokens` are (start, end, share) of the passage's tokens where the exact
    gradient was taken: the shares sum to the signal `gradient_exact`. `file` and `row` are where the example stands in
    the corpus.
    """

    fact_id: str
    rank: int
    score: float
    example_id: str
    start: int
    end: int
    signals: dict[str, float]
    text: str
    source: str
    sha256: str
    coverage: float = 0.0
    names: tuple[str, ...] = ()
    tokens: tuple[tuple[int, int, float], ...] = ()
    file: str = ""
    row: int = 0

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Self:
        known = _known(cls, row)
        known["names"] = tuple(known.get("names", ()))
        known["tokens"] = tuple((start, end, share) for start, end, share in known.get("tokens", ()))
        return cls(**known)

    def to_row(self) -> dict[str, Any]:
        return dict(vars(self))  # asdict copies what is in the fields, too: 14 of 50 ms a fact of 225 candidates


def checked_spans(action: str, value: Any) -> tuple[tuple[int, int], ...]:
    """The spans that an action takes; raises ValueError for another action, or where they are not what it asks for."""
    if action not in ("remove", "redact"):
        raise ValueError(f"field 'action' must be remove or redact, found {action!r}")
    if not isinstance(value, list | tuple):
        raise ValueError(f"field 'spans' must be a list of [start, end], found {value!r}")
    if action == "remove":
        if value:
            raise ValueError(f"field 'spans' must be empty for the action 'remove', found {value!r}")
        return ()
    if not value:
        raise ValueError("field 'spans' must hold at least one [start, end] for the action 'redact', found none")
    last = 0
    for span in value:
        whole = isinstance(span, list | tuple) and len(span) == 2 and all(type(place) is int for place in span)
        if not whole or not last <= span[0] < span[1]:
            raise ValueError(
                "field 'spans' must hold [start, end] in characters, start before end, sorted and not overlapping, "
                f"found {span!r} in {value!r}"
            )
        last = span[1]
    return tuple((start, end) for start, end in value)


def joined_spans(spans: Iterable[Iterable[int]]) -> tuple[tuple[int, int], ...]:
    """Spans in order, those that touch or overlap made one."""
    found: list[tuple[int, int]] = []
    for start, end in sorted((int(start), int(end)) for start, end in spans):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return tuple(found)


@dataclass(frozen=True)
class Removal:
    """A decision about one example. Only `decision == "approved"` is ever acted on.

    The action `remove` takes the example out; `redact` takes the characters of `spans` out of its text. `request_ids`
    are the audit requests that ask for it; near-duplicates share a `group`, which stands or falls together.
    """

    example_id: str
    sha256: str
    decision: Decision
    reason: str
    decided_by: str = ""
    decided_at: str = ""
    action: Action = "remove"
    fact_ids: tuple[str, ...] = ()
    evidence: tuple[dict[str, Any], ...] = field(default=(), compare=False)
    text: str = ""
    spans: tuple[tuple[int, int], ...] = ()
    request_ids: tuple[str, ...] = ()
    group: str = ""

    @classmethod
    def from_row(cls, row: dict[str, Any], decisions: tuple[str, ...] = DECISIONS) -> Self:
        for name in ("example_id", "sha256", "decision"):
            if not isinstance(row.get(name), str) or not row[name]:
                raise ValueError(f"field '{name}' must be a non-empty string, found {row.get(name)!r}")
        if row["decision"] not in decisions:
            words = f"{', '.join(decisions[:-1])} or {decisions[-1]}, found {row['decision']!r}"
            alone = ", which `proponent review RUN --take` alone reads" if row["decision"] == "undone" else ""
            raise ValueError(f"field 'decision' must be {words}{alone}")
        known = _known(cls, {"reason": "", "action": "remove", **row})
        for name in ("reason", "decided_by"):
            str(known.get(name, "")).encode()  # a lone surrogate is no text: UnicodeEncodeError is a ValueError
        for name in ("fact_ids", "evidence", "request_ids"):
            known[name] = tuple(known.get(name) or ())
        known["spans"] = checked_spans(known["action"], known.get("spans") or ())
        return cls(**known)

    def to_row(self) -> dict[str, Any]:
        return asdict(self)
