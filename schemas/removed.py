"""What a version of a corpus took out or redacted: one record a line of `removed/*.jsonl`, written by `clean`.

A row has the fields that datatrove's exclusion writer gives a document (`id`, `text`, `metadata.filter_reason`) beside
ours. Of what must not be kept in text only the hashes stay (`hash_only`); so they do of what earlier versions took out.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from schemas.jsonl import jsonl_bytes
from schemas.records import Action, text_sha256


@dataclass(frozen=True)
class Removed:
    """A record that `version` took out or redacted.

    `file` and `row` are its place in the parent; `kept_before` records of its file that stayed stand before it, -1
    where that was not noted. `sha256` is of its text, `result_sha256` of what a redaction left of it. `raw` is its
    line, or the text file's content; both `raw` and `text` are None where they were erased.
    """

    id: str
    sha256: str
    file: str
    row: int
    action: Action = "remove"
    spans: tuple[tuple[int, int], ...] = ()
    result_sha256: str = ""
    kept_before: int = -1
    version: int = 1
    request_ids: tuple[str, ...] = ()
    decided_by: str = ""
    decided_at: str = ""
    reason: str | None = None
    fact_ids: tuple[str, ...] = ()
    group: str = ""
    text: str | None = None
    raw: str | None = None

    def hash_only(self) -> "Removed":
        """Without text, bytes, reason and group: a reason may quote the text."""
        return replace(self, text=None, raw=None, reason=None, fact_ids=(), group="")

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Self:
        known = {name: row[name] for name in cls.__dataclass_fields__ if name in row}
        known.setdefault("sha256", text_sha256(row.get("text") or ""))  # rows of proponent 0.1.0 have the text alone
        known["spans"] = tuple((start, end) for start, end in known.get("spans", ()))
        for name in ("request_ids", "fact_ids"):
            known[name] = tuple(known.get(name, ()))
        return cls(**known)

    def to_row(self) -> dict[str, Any]:
        """All fields and datatrove's; of one without text only what `hash_only` keeps."""
        row = asdict(self)
        if self.text is None:
            return {
                name: value for name, value in row.items() if name not in ("text", "raw", "reason", "fact_ids", "group")
            }
        return row | {"metadata": {"filter_reason": self.reason}}


def removed_to_jsonl(removed: Iterable[Removed]) -> bytes:
    return jsonl_bytes(r.to_row() for r in removed)


def parse_removed(lines: Iterable[bytes]) -> Iterator[Removed]:
    return (Removed.from_row(json.loads(line)) for line in lines)
