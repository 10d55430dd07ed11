"""Versions of a corpus: what a folder that `clean` or `restore` wrote says of its parent, and of what was taken out.

corpus/, removed/<file>.jsonl (this version's), removed/earlier.jsonl (hashes alone, of the versions before it)
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipelines.corpus import base_folder
from pipelines.storage import OutputFolder, exists, join, open_read, publish, read_bytes, read_manifest, verified
from schemas.manifest import MANIFEST, FileInfo, Manifest
from schemas.removed import Removed, parse_removed, removed_to_jsonl

EARLIER = "removed/earlier.jsonl"
REMOVED_IDS = "removed_ids.txt"


def is_version(corpus: str) -> bool:
    """Whether a corpus is given as a folder that `clean` or `restore` wrote."""
    return exists(join(corpus, MANIFEST))


def version_of(manifest: Manifest) -> int:
    return manifest.details.get("version", 1)


def next_version(corpus: str, files: list[tuple[str, int]]) -> dict[str, Any]:
    """The details of the manifest of a version that is made of `corpus`: its parent, and its number, from 1.

    `base` is what the names below corpus/ are relative to in the parent.
    """
    parent, number = "", 1
    if is_version(corpus):
        number = version_of(read_manifest(corpus, "corpus")) + 1
        parent = hashlib.sha256(read_bytes(join(corpus, MANIFEST))).hexdigest()
    return {
        "parent": [list(info) for info in files],
        "parent_manifest_sha256": parent,
        "base": base_folder(corpus),
        "version": number,
    }


def _read(folder: str, info: FileInfo) -> Iterator[Removed]:
    with open_read(verified(folder, info.name)) as file:
        yield from parse_removed(file)


def taken_from(folder: str, files: dict[str, FileInfo], file: int) -> list[Removed]:
    """What a version, whose files by name are given, took out of one file of its parent, in its order."""
    info = files.get(f"removed/{file:05d}.jsonl")
    return list(_read(folder, info)) if info else []


def taken_out(folder: str) -> Iterator[Removed]:
    """What a version itself took out or redacted, file by file, in the order of its parent."""
    for info in read_manifest(folder, "corpus").files:
        if info.name.startswith("removed/") and info.name.endswith(".jsonl") and info.name != EARLIER:
            yield from _read(folder, info)


def taken_earlier(folder: str) -> Iterator[Removed]:
    """What the versions before a version took out and did not put back, oldest first: hashes alone."""
    for info in read_manifest(folder, "corpus").files:
        if info.name == EARLIER:
            yield from _read(folder, info)


def history(corpus: str) -> Iterator[Removed]:
    """All that is missing from a version, or redacted in it; of corpus files that are no version, nothing."""
    if is_version(corpus):
        yield from taken_earlier(corpus)
        yield from (removed.hash_only() for removed in taken_out(corpus))


def write_earlier(removed: Iterable[Removed], output: OutputFolder) -> list[FileInfo]:
    """The file of what earlier versions took out, if they did; one record at a time is in memory."""
    with TemporaryDirectory() as place:
        path, rows = Path(place) / "earlier.jsonl", 0
        with open(path, "wb") as file:
            for rows, one in enumerate(removed, start=1):  # noqa: B007
                file.write(removed_to_jsonl([one]))
        return [publish(path, output.path, EARLIER, rows)] if rows else []
