"""The scan of a corpus before any work: counts, dead letters, repeated ids over all files, the failure budget.

corpus files -> scan (a shard: a file) -> ids' hashes, dead_letters/ -> the driver judges: rows whose id stood earlier,
                                                                        and whether too many records were refused
`clean` has the hashes and the letters from its own pass (pipelines/cleaning.py), and `judge` alone.
"""

import hashlib
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.corpus import CorpusFormat, read_records
from pipelines.stage import Done, Shard, ShardRecord, all_files, run_stage, total
from pipelines.storage import STAGES, OutputFolder, join, localize, publish, read_bytes, verified, with_generation
from schemas.errors import ConfigError, FailureBudgetExceeded
from schemas.jsonl import jsonl_bytes
from schemas.manifest import FileInfo
from schemas.records import DeadLetter

SHOWN = 5  # refused records that a message tells
HASHES_AT_ONCE = 2**22  # of ids: 64 MB, and a few times that while they are sorted
IDS = f"{STAGES}/ids"  # of a job alone; an index keeps them, in ids/


def corpus_shards(files: list[tuple[str, int]], first: int = 0) -> list[Shard]:
    """A shard a file, numbered from `first`."""
    return [Shard(f"{i:05d}", {"path": path, "file": i}) for i, (path, _) in enumerate(files, start=first)]


class IdHashes:
    """The hashes of a file's ids with their rows, written in sorted pieces, one of which is in memory.

    `written` has the rows of each file, for the shard's record.
    """

    def __init__(self, out: Path, folder: str, name: str):
        self.out, self.place, self.written = out, f"{folder}/{name}", {}
        self._hashes, self._rows = bytearray(), array("q")
        (out / folder).mkdir(parents=True, exist_ok=True)

    def add(self, ids: Iterable[str], rows: Iterable[int]) -> None:
        empty = hashlib.blake2b(digest_size=16)
        for record_id in ids:
            digest = empty.copy()  # 0.3 us an id, where a new one with its arguments takes 0.4
            digest.update(record_id.encode())
            self._hashes += digest.digest()
        self._rows.extend(rows)
        if len(self._rows) >= HASHES_AT_ONCE:
            self.write()

    def write(self) -> None:
        if not self._rows:
            return
        piece = f"{self.place}-{len(self.written) // 2:05d}"
        for part, values in zip(("hashes", "rows"), _sorted_ids(self._hashes, self._rows), strict=True):
            np.save(self.out / f"{piece}.{part}.npy", values)
            self.written[f"{piece}.{part}.npy"] = len(self._rows)
        self._hashes.clear()
        del self._rows[:]


class DeadLetters:
    """The dead letters of a file, written as they come; `first` are some of them, for a message."""

    def __init__(self, out: Path, name: str):
        self.name, self.count, self.first = f"dead_letters/{name}.jsonl", 0, []
        self._path, self._file = out / self.name, None

    def add(self, letter: DeadLetter) -> None:
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self._path, "wb")  # noqa: SIM115 (`close` is called at the file's end)
        self.count += 1
        self._file.write(letters_to_jsonl([letter]))
        if self.count <= SHOWN:
            self.first.append(f"{letter.file}, row {letter.row}: {letter.reason}")

    def close(self) -> dict[str, int]:
        """The rows of the file that was written, if one was."""
        if self._file is None:
            return {}
        self._file.close()
        return {self.name: self.count}


def scan_shard(spec: dict[str, Any], folder: str, out: Path, format: CorpusFormat, base: str, ids: str = IDS) -> Done:
    """Counts one file, writes its dead letters, and its ids' hashes with their rows; it holds a piece of each."""
    name, count = f"{spec['file']:05d}", 0
    hashes, letters = IdHashes(out, ids, name), DeadLetters(out, name)
    for count, item in enumerate(read_records(spec["path"], format, base), start=1):  # noqa: B007
        if isinstance(item, DeadLetter):
            letters.add(item)
        else:
            hashes.add((item.id,), (item.row,))
    hashes.write()
    return Done({"in": count, "dead": letters.count}, hashes.written | letters.close(), {"first": letters.first})


def _sorted_ids(hashes: bytearray, rows: array) -> tuple[np.ndarray, np.ndarray]:
    """128-bit hashes as `[2, n]` halves, sorted, and their rows `[n]`."""
    halves, numbers = np.frombuffer(bytes(hashes), np.uint64).reshape(-1, 2), np.array(rows, np.int64)
    order = np.argsort(halves[:, 0])
    if (np.diff(halves[order, 0]) == 0).any():  # all but never, where no id is repeated; it takes 3 times as long
        order = np.lexsort((numbers, halves[:, 1], halves[:, 0]))
    return np.ascontiguousarray(halves[order].T), numbers[order]


def letters_to_jsonl(letters: list[DeadLetter]) -> bytes:
    return jsonl_bytes(letter.to_row() for letter in letters)


@dataclass(frozen=True)
class Scan:
    """A corpus after its first reading: `repeated` holds, by file number, the rows whose id stood earlier."""

    shards: list[Shard]
    num_in: int
    num_dead: int
    repeated: dict[int, list[int]]
    files: list[FileInfo]


def _find_repeated(
    records: list[ShardRecord], shards: list[Shard], folder: str, earlier: list[str]
) -> dict[int, np.ndarray]:
    """By file, sorted, the rows whose id stood earlier: in the same file, in one before it, or in the files `earlier`.

    The hashes are compared range by range, so that about HASHES_AT_ONCE of them are in memory, however many there are.
    """
    pieces = [
        (shard.spec["file"], info.rows, join(folder, info.name.removesuffix("hashes.npy")))
        for record, shard in zip(records, shards, strict=True)
        for info in record.files
        if info.name.endswith(".hashes.npy")
    ]
    ranges = -(-sum(count for _, count, _ in pieces) // HASHES_AT_ONCE)
    found_files, found_rows = [np.empty(0, np.int32)], [np.empty(0, np.int64)]
    for number in range(ranges):
        begin, end = (np.uint64(min(edge * 2**64 // ranges, 2**64 - 1)) for edge in (number, number + 1))
        hashes, files, rows = [], [], []
        for file, count, place in pieces:
            halves = np.load(localize(f"{place}hashes.npy"), mmap_mode="r")
            first = int(np.searchsorted(halves[0], begin))
            last = count if number + 1 == ranges else int(np.searchsorted(halves[0], end))
            hashes.append(np.array(halves[:, first:last]))
            rows.append(np.array(np.load(localize(f"{place}rows.npy"), mmap_mode="r")[first:last]))
            files.append(np.full(last - first, file, np.int32))
        all_hashes, all_files, all_rows = np.concatenate(hashes, axis=1), np.concatenate(files), np.concatenate(rows)
        later = _later(all_hashes, all_files, all_rows)
        known = _known(all_hashes, [verified(folder, name) for name in earlier])
        found_files += [later[0], all_files[known]]
        found_rows += [later[1], all_rows[known]]
    files, rows = np.unique(np.stack([np.concatenate(found_files), np.concatenate(found_rows)]), axis=1)
    order = np.lexsort((rows, files))
    names, begins = np.unique(files[order], return_index=True)
    return dict(zip(names.tolist(), np.split(rows[order], begins[1:]), strict=False))


def _later(hashes: np.ndarray, files: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(files, rows) of all but the first of each hash `[2, n]`, first in the order of files and rows."""
    order = np.argsort(hashes[0])
    same, shared = np.diff(hashes[0][order]) == 0, np.zeros(len(order), dtype=bool)
    shared[1:] |= same
    shared[:-1] |= same
    chosen = order[shared]  # few: the rest of the work is on them
    order = chosen[np.lexsort((rows[chosen], files[chosen], hashes[1][chosen], hashes[0][chosen]))]
    ordered = hashes[:, order]
    later = order[1:][(ordered[:, 1:] == ordered[:, :-1]).all(axis=0)]
    return files[later], rows[later]


def _known(hashes: np.ndarray, earlier: list[str]) -> np.ndarray:
    """Which of hashes `[2, n]` stand in one of the files `earlier`: each is looked up, no file is read whole."""
    known = np.zeros(hashes.shape[1], dtype=bool)
    for path in earlier:
        halves = np.load(path, mmap_mode="r")
        begin, end = np.searchsorted(halves[0], hashes[0]), np.searchsorted(halves[0], hashes[0], side="right")
        for i in np.flatnonzero(end > begin):
            known[i] |= bool((halves[1, begin[i] : end[i]] == hashes[1, i]).any())
    return known


def scan(
    files: list[tuple[str, int]],
    format: CorpusFormat,
    base: str,
    output: OutputFolder,
    max_dead_fraction: float,
    beam_args: tuple[str, ...],
    ids: str = IDS,
    earlier: list[FileInfo] | None = None,
    first_file: int = 0,
    generation: int = 1,
) -> Scan:
    """Reads the corpus once. Raises FailureBudgetExceeded over the budget, ConfigError if nothing is left.

    The ids' hashes go to the folder `ids`; `earlier` are the files that an index has already, of which those of ids and
    of refused repetitions count, and `first_file` is the number of the first file here.
    """
    shards = corpus_shards(files, first_file)
    work = partial(scan_shard, format=format, base=base, ids=ids)
    records = run_stage("scan", shards, work, output, beam_args)
    return judge(records, shards, output, max_dead_fraction, earlier, generation)


def judge(
    records: list[ShardRecord],
    shards: list[Shard],
    output: OutputFolder,
    max_dead_fraction: float,
    earlier: list[FileInfo] | None = None,
    generation: int = 1,
) -> Scan:
    """What `scan` returns and raises, of shards that were read: repeated ids over all files, and the failure budget."""
    hashes = [info.name for info in earlier or [] if info.name.endswith(".hashes.npy")]
    told = [info for info in earlier or [] if info.name.startswith("dead_letters/repeated")]
    repeated = _find_repeated(records, shards, output.path, hashes)
    num_repeated = sum(len(rows) for rows in repeated.values())
    num_in, num_dead = total(records, "in"), total(records, "dead") + num_repeated
    first = [line for record in records for line in record.facts["first"]]
    first += [
        f"{letter.file}, row {letter.row}: {letter.reason}" for letter in islice(_letters(repeated, shards), SHOWN)
    ]
    if num_dead == num_in:
        raise ConfigError(
            "\n  ".join([f"expected records with an id and a text, found none among {num_in}", *first[:SHOWN]])
        )
    if num_dead > max_dead_fraction * num_in:
        shown = "\n  ".join(first[:SHOWN])
        raise FailureBudgetExceeded(
            f"{num_dead} of {num_in} records refused, at most {max_dead_fraction:.2%} may be (--max_dead_fraction); "
            f"mend them or raise the budget:\n  {shown}" + ("\n  ..." if num_dead > SHOWN else "")
        )
    written = all_files(records)
    if num_repeated:
        with tempfile.TemporaryDirectory() as place:
            file = Path(place) / "repeated.jsonl"
            with open(file, "wb") as sink:
                for info in told:  # the file is that of all records, as if they had been read at once
                    sink.write(read_bytes(verified(output.path, info.name)))
                sink.writelines(letters_to_jsonl([letter]) for letter in _letters(repeated, shards))
            name = f"dead_letters/{with_generation('repeated', generation)}.jsonl"
            written.append(publish(file, output.path, name, num_repeated + sum(info.rows for info in told)))
    return Scan(shards, num_in, num_dead, {file: rows.tolist() for file, rows in repeated.items()}, written)


def _letters(repeated: dict[int, np.ndarray], shards: list[Shard]) -> Iterator[DeadLetter]:
    reason = "the id stands earlier in the corpus; ids must be unique"
    paths = {shard.spec["file"]: shard.spec["path"] for shard in shards}
    for file, rows in repeated.items():
        for row in rows.tolist():
            yield DeadLetter(paths[file], row, "read", reason)
