"""What `clean` acts on: removals.jsonl, written by `flag` and edited by people, and the plain lists of third parties.

removals.jsonl holds one decision a line. A list holds one id, SHA-256 sum or domain a line; a line that begins with `#`
is a comment (a later `#` may be part of an id).
"""

import json
import re
from collections.abc import Iterable
from typing import Literal

from schemas.errors import ConfigError
from schemas.jsonl import jsonl_bytes
from schemas.records import DECISIONS, Removal

REMOVALS, CONTROL = "removals.jsonl", "control_removals.jsonl"  # of a run; of one for audit requests also:
REQUESTS, EVIDENCE = "requests.jsonl", "evidence.jsonl"
EDITED = (*DECISIONS, "undone")  # what a line may say of the copy that `review --take` reads
ListKind = Literal["ids", "sha256", "domains"]
_EXPECTED = {
    "sha256": (re.compile(r"[0-9a-f]{64}"), "the SHA-256 of a text, 64 hexadecimal digits"),
    "domains": (re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*"), "a domain such as example.org, without scheme or path"),
}


def removals_to_jsonl(removals: Iterable[Removal]) -> bytes:
    return jsonl_bytes(r.to_row() for r in removals)


def parse_removals(data: bytes, path: str, decisions: tuple[str, ...] = DECISIONS) -> list[Removal]:
    """Every decision of the file. Raises ConfigError for a bad line or an example decided twice."""
    removals: dict[str, Removal] = {}
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            removal = Removal.from_row(json.loads(line), decisions)
        except (ValueError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path}, line {number}: not a removal: {error}; mend the line") from error
        if removal.example_id in removals:
            raise ConfigError(f"{path}, line {number}: example {removal.example_id!r} is decided twice; keep one line")
        removals[removal.example_id] = removal
    return list(removals.values())


def approved(removals: Iterable[Removal]) -> list[Removal]:
    return [r for r in removals if r.decision == "approved"]


def parse_list(data: bytes, path: str, kind: ListKind) -> list[str]:
    """The entries of a list, each once, sums and domains in lower case. Raises ConfigError for a bad line, or none."""
    entries: dict[str, None] = {}
    try:
        lines = data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        found = f"byte 0x{data[error.start]:02x} at {error.start}"
        raise ConfigError(f"{path}: expected a list in UTF-8, found {found}; convert it") from error
    for number, line in enumerate(lines, start=1):
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        if kind != "ids":
            entry = domain(entry.removeprefix("*.")) if kind == "domains" else entry.lower()
            pattern, expected = _EXPECTED[kind]
            if not pattern.fullmatch(entry):
                found = repr(line.strip())[:80]
                raise ConfigError(f"{path}, line {number}: expected {expected}, found {found}; mend the line")
        entries[entry] = None
    if not entries:
        raise ConfigError(f"{path}: expected a list of {kind}, one a line, found nothing in it; check the file")
    return list(entries)


def is_listable(example_id: str) -> bool:
    """Whether `parse_list` reads an id back from a line of its own."""
    return example_id == example_id.strip() and "\n" not in example_id and not example_id.startswith("#")


def domain(host: str) -> str:
    """A host's name as lists are compared by: lower case, international names in their ASCII form, no dot around it."""
    host = host.strip(".").lower()
    if host.isascii():
        return host
    try:
        return host.encode("idna").decode("ascii")
    except UnicodeError:
        return host  # too long a label, for instance: it is compared as it stands
