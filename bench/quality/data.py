"""The data that a track is measured on: a folder with a corpus and facts, else a synthetic one that is made here.

A folder holds `corpus.jsonl.gz` (`id`, `text`, `source`) and `facts.jsonl.gz` (what `schemas/facts.py` reads, with
`relation`, `subject`, `object` and `proponents`), or the same without `.gz`.
"""

import gzip
import hashlib
import json
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from bench.quality import synthetic
from schemas.errors import ConfigError
from schemas.facts import parse_facts
from schemas.jsonl import jsonl_bytes
from schemas.records import Fact

DEFAULT = Path(__file__).parents[2].parent / "shared" / "data" / "trex"
SYNTHETIC = "synthetic"


@dataclass(frozen=True)
class Data:
    """A corpus and its facts. Examples stand in the order of their ids, so that a smaller row wins a tie."""

    name: str
    corpus: str  # the file, for `index`
    ids: list[str]
    texts: list[str]
    facts: list[Fact]
    sha256: str  # of the uncompressed files

    @cached_property
    def row_of(self) -> dict[str, int]:
        return {example: row for row, example in enumerate(self.ids)}

    def proponents(self, fact: Fact) -> set[int]:
        """Rows of the examples that are known to state the fact."""
        return {self.row_of[example] for example in fact.proponents or ()}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def find(folder: Path, name: str) -> Path | None:
    return next(
        (folder / f"{name}{end}" for end in (".jsonl.gz", ".jsonl") if (folder / f"{name}{end}").is_file()), None
    )


def load(folder: Path, out: Path) -> Data:
    """The folder's data; where it is absent or lacks a file, says so and makes a synthetic one in `out`."""
    lacking = [name for name in ("corpus", "facts") if find(folder, name) is None]
    if not lacking:
        return read(folder, folder.name)
    told = (
        "no such folder" if not folder.is_dir() else f"it has no {' and no '.join(f'{n}.jsonl(.gz)' for n in lacking)}"
    )
    say(f"data: looked for it in {folder}: {told}; running on a synthetic corpus instead (--data names another folder)")
    place = out / SYNTHETIC
    place.mkdir(parents=True, exist_ok=True)
    corpus, facts = synthetic.generate()
    (place / "corpus.jsonl").write_bytes(jsonl_bytes(corpus))
    (place / "facts.jsonl").write_bytes(jsonl_bytes(facts))
    return read(place, SYNTHETIC)


def read(folder: Path, name: str) -> Data:
    """Raises ConfigError, with file and line, for what is no corpus, no facts, or facts of another corpus."""
    paths = {kind: find(folder, kind) for kind in ("corpus", "facts")}
    contents, digest = {}, hashlib.sha256()
    for kind, path in paths.items():
        contents[kind] = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        digest.update(f"{kind} {len(contents[kind])}\n".encode() + contents[kind])
    texts = _corpus(contents["corpus"], str(paths["corpus"]))
    facts = parse_facts(contents["facts"], str(paths["facts"]))
    for fact in facts:
        lacking = [field for field in ("relation", "subject", "object", "proponents") if not getattr(fact, field)]
        if lacking:
            raise ConfigError(
                f"{paths['facts']}: fact {fact.id!r}: expected relation, subject, object and proponents, found no "
                f"{', no '.join(lacking)}; add them or take the fact out"
            )
        unknown = [example for example in fact.proponents or () if example not in texts]
        if unknown:
            raise ConfigError(
                f"{paths['facts']}: fact {fact.id!r}: expected proponents of {paths['corpus']}, found {unknown[0]!r}, "
                "which is not in it; are the facts those of another corpus?"
            )
    ids = sorted(texts)
    return Data(name, str(paths["corpus"]), ids, [texts[i] for i in ids], facts, digest.hexdigest())


def _corpus(content: bytes, path: str) -> dict[str, str]:
    """Texts by id."""
    texts: dict[str, str] = {}
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ConfigError(
                f"{path}, line {number}: expected a JSON object, found {line[:40]!r} ({error})"
            ) from error
        if not isinstance(row, dict) or not all(isinstance(row.get(field), str) for field in ("id", "text")):
            raise ConfigError(f"{path}, line {number}: expected an object with the strings id and text; mend the line")
        if row["id"] in texts:
            raise ConfigError(f"{path}, line {number}: the id {row['id']!r} is used twice; ids must be unique")
        texts[row["id"]] = row["text"]
    return texts
