"""`diff`: what is different between two versions of a corpus, as one JSON object and a table.

before/ + after/ -> file by file (equal names below each): records by id, words by source -> standard output

A record keeps its id and its file, so the ids of one file of the later version are in memory, whatever the corpus'
size. `redacted` are records with the same id and another text. A word is what stands between white space: the tokens of
a model are about 4/3 as many in English.
"""

import json
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from pipelines import progress
from pipelines.config import DiffConfig
from pipelines.corpus import CorpusFormat, Record, base_folder, list_corpus, read_records, relative_name
from pipelines.storage import read_manifest
from pipelines.versions import is_version, version_of
from schemas.errors import ConfigError

NO_SOURCE = "(none)"


class Difference:
    """Counts of records and of their words, in all and by source."""

    def __init__(self) -> None:
        self.records = dict.fromkeys(("kept", "redacted", "removed", "added", "refused_before", "refused_after"), 0)
        self.sources: dict[str, dict[str, int]] = {}

    def add(self, record: Record, side: str) -> None:
        empty = {"records_before": 0, "records_after": 0, "words_before": 0, "words_after": 0}
        row = self.sources.setdefault(record.source or NO_SOURCE, empty)
        row[f"records_{side}"] += 1
        row[f"words_{side}"] += len(record.text.split())

    def to_row(self) -> dict[str, Any]:
        """Everything, sources by the words that they lost, the most first."""
        by_source = {name: row | _lost(row) for name, row in self.sources.items()}
        ordered = sorted(by_source.items(), key=lambda item: (-item[1]["words_lost"], item[0]))
        sides = ("words_before", "words_after")
        words = {side: sum(row[side] for row in self.sources.values()) for side in sides}
        return self.records | words | _lost(words) | {"sources": dict(ordered)}


def _lost(row: dict[str, int]) -> dict[str, Any]:
    lost = row["words_before"] - row["words_after"]
    return {"words_lost": lost, "share_lost": round(lost / row["words_before"], 6) if row["words_before"] else 0.0}


def _files(corpus: str) -> dict[str, tuple[str, str]]:
    """(path, base folder) of each file by its name below the corpus."""
    base = base_folder(corpus)
    return {relative_name(path, base): (path, base) for path, _ in list_corpus(corpus)}


def _compare_file(
    before: tuple[str, str] | None, after: tuple[str, str] | None, format: CorpusFormat, told: Difference
) -> None:
    """Counts one file that stands in both versions, or in one."""
    later: dict[str, bytes] = {}
    for item in read_records(after[0], format, after[1]) if after else ():
        if not isinstance(item, Record) or item.id in later:
            told.records["refused_after"] += 1
            continue
        later[item.id] = bytes.fromhex(item.sha256)
        told.add(item, "after")
    seen: set[str] = set()
    for item in read_records(before[0], format, before[1]) if before else ():
        if not isinstance(item, Record) or item.id in seen:
            told.records["refused_before"] += 1
            continue
        seen.add(item.id)
        told.add(item, "before")
        found = later.pop(item.id, None)
        same = found == bytes.fromhex(item.sha256)
        told.records["removed" if found is None else "kept" if same else "redacted"] += 1
    told.records["added"] += len(later)


def _number(corpus: str) -> int:
    """The version's number; that of files which `clean` has not made is 0."""
    return version_of(read_manifest(corpus, "corpus")) if is_version(corpus) else 0


def run(config: DiffConfig) -> dict[str, Any]:
    """The difference as a JSON object. Raises ConfigError where the two have no file name in common."""
    before, after = _files(config.before), _files(config.after)
    if not before.keys() & after.keys():
        raise ConfigError(
            f"--before {config.before}, --after {config.after}: expected two versions of one corpus, found no file "
            f"name in common ({min(before)} and {min(after)}, for instance); give the glob that `clean` was given"
        )
    format, told = CorpusFormat(config.id_field, config.text_field), Difference()
    with progress.bar("diff", len(before.keys() | after.keys()), "files") as advance:
        for name in sorted(before.keys() | after.keys()):
            _compare_file(before.get(name), after.get(name), format, told)
            advance(1)
    result = {"version_before": _number(config.before), "version_after": _number(config.after)} | told.to_row()
    _show(result)
    return result


def _show(result: dict[str, Any]) -> None:
    """The counts, and a line a source, on standard error."""
    progress.summary("diff", {name: value for name, value in result.items() if name != "sources"})
    if progress.is_quiet():
        return
    table = Table("source", "records", "after", "words", "after", "lost", title="by source", title_justify="left")
    for name, row in result["sources"].items():
        numbers = (row[n] for n in ("records_before", "records_after", "words_before", "words_after"))
        table.add_row(json.dumps(name, ensure_ascii=True), *(f"{n:,}" for n in numbers), f"{row['share_lost']:.2%}")
    Console(file=sys.stderr, markup=False).print(table)


def print_result(result: dict[str, Any]) -> None:
    print(json.dumps(result), flush=True)
