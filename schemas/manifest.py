"""The manifest: the description of a finished folder, written last. No manifest = unfinished = not readable.

It holds no clock time and no duration, so that the same job on the same input gives the same bytes; and the hash of its
own content, so that one edited by hand is refused.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from schemas.errors import ArtifactMismatch

FORMAT_VERSION = 6
MANIFEST = "manifest.json"
Kind = Literal["checkpoints", "index", "rankings", "removals", "corpus", "verification", "prediction", "report"]


@dataclass(frozen=True)
class FileInfo:
    """One file of a folder. `name` is relative to it; `rows` counts what it holds (records, passages, vectors)."""

    name: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a folder is and what made it.

    `counts` always holds `in`, `kept`, `removed` and `dead`; `details` what is particular to the kind (checkpoints,
    projection, fusion weights, approximations made).
    """

    kind: Kind
    config: dict[str, Any]
    versions: dict[str, str]
    counts: dict[str, int]
    details: dict[str, Any] = field(default_factory=dict)
    files: list[FileInfo] = field(default_factory=list)
    format_version: int = FORMAT_VERSION

    def to_json(self) -> bytes:
        row = json.loads(json.dumps(asdict(self)))
        row["sha256"] = content_sha256(row)
        return (json.dumps(row, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def content_sha256(row: dict[str, Any]) -> str:
    """Of all fields but the hash itself, however the file is laid out."""
    content = {name: value for name, value in row.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def check_counts(counts: dict[str, int]) -> None:
    """Raises AssertionError unless in = kept + removed + dead: a loss here is our own bug, never the user's."""
    total = counts["kept"] + counts["removed"] + counts["dead"]
    assert counts["in"] == total, f"{counts['in']} records came in, {total} are accounted for: {counts}"


def parse_manifest(data: bytes, folder: str, kind: Kind | None = None) -> Manifest:
    """The manifest in `data`; raises ArtifactMismatch if it is of another kind or version, or was edited."""
    no_manifest = f"{folder}/{MANIFEST}: expected a manifest of proponent, found something else"
    remedy = "make the folder again with the verb that writes it"
    try:
        row = json.loads(data)
        found_version, found_kind = row["format_version"], row["kind"]
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactMismatch(f"{no_manifest} ({error}); {remedy}") from error
    if found_version != FORMAT_VERSION:
        raise ArtifactMismatch(
            f"{folder}: expected format version {FORMAT_VERSION}, found {found_version}; it was written by another "
            f"version of proponent: make it again with this one, or use that version"
        )
    if kind and found_kind != kind:
        raise ArtifactMismatch(f"{folder}: expected a folder of kind '{kind}', found '{found_kind}'; check the path")
    expected, found = row.pop("sha256", "none"), content_sha256(row)
    if found != expected:
        raise ArtifactMismatch(
            f"{folder}/{MANIFEST}: expected content with the sha256 that it names, {expected}, found {found}: it was "
            "changed after it was written; restore the file, or write the folder again"
        )
    try:
        return Manifest(**row | {"files": [FileInfo(**info) for info in row["files"]]})
    except (KeyError, TypeError) as error:
        raise ArtifactMismatch(f"{no_manifest} ({error}); {remedy}") from error


def require_match(what: str, expected: Any, found: Any, remedy: str) -> None:
    """Raises ArtifactMismatch with both values and the remedy, unless they are equal."""
    if expected != found:
        raise ArtifactMismatch(f"{what}: expected {expected}, found {found}; {remedy}")
