"""removals.jsonl: one decision a line, written by `flag`, edited by people, read by `clean`."""

import json
from collections.abc import Iterable

from schemas.errors import ConfigError
from schemas.records import Removal


def removals_to_jsonl(removals: Iterable[Removal]) -> bytes:
    return b"".join(json.dumps(r.to_row(), ensure_ascii=False).encode() + b"\n" for r in removals)


def parse_removals(data: bytes, path: str) -> list[Removal]:
    """Every decision of the file. Raises ConfigError for a bad line or an example decided twice."""
    removals: dict[str, Removal] = {}
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            removal = Removal.from_row(json.loads(line))
        except (ValueError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path}, line {number}: not a removal: {error}; mend the line") from error
        if removal.example_id in removals:
            raise ConfigError(f"{path}, line {number}: example {removal.example_id!r} is decided twice; keep one line")
        removals[removal.example_id] = removal
    return list(removals.values())


def approved(removals: Iterable[Removal]) -> list[Removal]:
    return [r for r in removals if r.decision == "approved"]
