"""The ledger of a review: one decision a line, appended, never rewritten, chained to the one before by its hash.

ledger.jsonl (the decisions), ledger.head.json (how many there are, and the hash of the last) beside a run's manifest

`hash` = sha256 of the entry's other fields as JSON with sorted keys and no spaces; `previous` is the hash of the entry
before, that of the first the sha256 of the run's manifest.json. So a changed, inserted, lost or moved entry breaks the
chain, a cut one is missed by the head, and another run's ledger begins with another hash. The chain has no key: it
shows accidents and edits, not a forger who writes all of it anew; keep `ledger.head.json` elsewhere against that.

Of several decisions on one example the last stands; `undone` takes the one back that stands, and what stood before it
stands again. All of them stay in the file.
"""

import datetime
import fcntl
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import IO, Any, Literal, Self

from schemas.errors import ArtifactMismatch
from schemas.manifest import MANIFEST
from schemas.records import Action, Removal

LEDGER = "ledger.jsonl"
HEAD = "ledger.head.json"
Verdict = Literal["approved", "rejected", "undone"]
VERDICTS = ("approved", "rejected", "undone")


@dataclass(frozen=True)
class Entry:
    """A decision of a reviewer about one example. `seq`, `time`, `previous` and `hash` are given when it is appended.

    `spans` are characters of the example's text, `sha256` is of that text; both as in a Removal.
    """

    reviewer: str
    example_id: str
    sha256: str
    decision: Verdict
    action: Action = "remove"
    spans: tuple[tuple[int, int], ...] = ()
    reason: str = ""
    request_ids: tuple[str, ...] = ()
    seq: int = 0
    time: str = ""
    previous: str = ""
    hash: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.reviewer, str) or not self.reviewer:
            raise ValueError(f"field 'reviewer' must be a non-empty string, found {self.reviewer!r}")
        self.reason.encode()  # a lone surrogate could not be written on: UnicodeEncodeError is a ValueError
        if self.decision not in VERDICTS:
            raise ValueError(f"field 'decision' must be one of {', '.join(VERDICTS)}, found {self.decision!r}")
        names = ("example_id", "sha256", "action", "spans")
        Removal.from_row({name: getattr(self, name) for name in names} | {"decision": "proposed"})  # checks them

    @classmethod
    def from_row(cls, row: Any) -> Self:
        """The entry that `to_row` made the row from; raises ValueError for another set of fields."""
        if not isinstance(row, dict) or row.keys() != FIELDS:
            found = sorted(row) if isinstance(row, dict) else type(row).__name__
            raise ValueError(f"expected the fields {', '.join(sorted(FIELDS))}, found {found}")
        spans = tuple(tuple(span) for span in row["spans"])
        return cls(**row | {"spans": spans, "request_ids": tuple(row["request_ids"])})

    def to_row(self) -> dict[str, Any]:
        return dict(vars(self))  # `asdict` copies deeply: half the time of reading a long ledger


FIELDS = frozenset(f.name for f in fields(Entry))


def entry_hash(entry: Entry) -> str:
    """Of all fields but the hash itself."""
    content = {name: value for name, value in entry.to_row().items() if name != "hash"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sealed(entries: Iterable[Entry], last: Entry | None, first_previous: str, time: str) -> Iterator[Entry]:
    """The entries as they follow on the ledger's last one: numbered, dated and chained."""
    seq, previous = (last.seq, last.hash) if last else (0, first_previous)
    for entry in entries:
        seq += 1
        entry = replace(entry, seq=seq, time=time, previous=previous)
        previous = entry_hash(entry)
        yield replace(entry, hash=previous)


def entries_to_jsonl(entries: Iterable[Entry]) -> bytes:
    return b"".join(json.dumps(e.to_row(), separators=(",", ":")).encode() + b"\n" for e in entries)


# ----------------------------------------------------------------------------------------------------------- checking


# What was parsed last of each ledger, by path: (bytes, entries). A file that goes on from just these bytes needs only
# its new lines hashed: of 10,000 entries a decision took 0.8 s without it and 0.05 s with it (two busy cores).
_parsed: dict[str, tuple[bytes, list[Entry]]] = {}


def _parse_lines(data: bytes, path: str) -> list[Entry]:
    before, known = _parsed.get(path, (b"", []))
    if not data.startswith(before):
        before, known = b"", []
    entries = list(known)
    for number, line in enumerate(data[len(before) :].split(b"\n")[:-1], start=len(known) + 1):
        try:
            entry = Entry.from_row(json.loads(line))
        except (ValueError, TypeError) as error:
            raise _refusal(path, number, "a decision", f"a line that is none ({error})", "it was changed") from error
        if entry_hash(entry) != entry.hash:
            raise _refusal(
                path, number, f"content with the hash that it names, {entry.hash}", entry_hash(entry),
                f"the decision of {entry.reviewer!r} on {entry.example_id!r} was changed after it was written",
            )  # fmt: skip
        entries.append(entry)
    _parsed[path] = (data[: data.rfind(b"\n") + 1], entries)
    return list(entries)


def _refusal(path: str, number: int, expected: str, found: str, cause: str) -> ArtifactMismatch:
    sound = f"entries 1 to {number - 1} are sound" if number > 1 else "no entry before it is sound"
    return ArtifactMismatch(
        f"{path}, entry {number}: expected {expected}, found {found}: {cause}; {sound}. Nothing is decided from this "
        f"ledger until it is whole: restore {LEDGER} and {HEAD} from a copy"
    )


def _check_order(entries: list[Entry], path: str) -> None:
    numbers = [entry.seq for entry in entries]
    for place, number in enumerate(numbers, start=1):
        if number == place:
            continue
        if sorted(numbers) == list(range(1, len(numbers) + 1)):
            cause = "the entries were reordered"
        elif number in numbers[: place - 1]:
            cause = f"entry {number} stands in it twice"
        else:
            cause = f"{place} is missing" if number == place + 1 else f"{place} to {number - 1} are missing"
        raise _refusal(path, place, f"the entry with seq {place}", f"the one with seq {number}", cause)


def _check_chain(entries: list[Entry], first_previous: str, path: str) -> None:
    if entries and entries[0].previous != first_previous:
        raise _of_another_run(path, f"{path}, entry 1", first_previous, entries[0].previous)
    for before, entry in itertools.pairwise(entries):
        if entry.previous != before.hash:
            raise _refusal(
                path, entry.seq, f"previous = {before.hash}, the hash of entry {before.seq}", entry.previous,
                "it was written after another entry than the one that stands before it now",
            )  # fmt: skip


def _of_another_run(path: str, place: str, expected: str, found: str) -> ArtifactMismatch:
    return ArtifactMismatch(
        f"{place}: expected a ledger that begins with the sha256 of this run's {MANIFEST}, {expected}, found {found}: "
        f"it is the ledger of another run, or the run was written again since; put it back beside its own run, and "
        f"take {path} and {HEAD} away from here to begin anew"
    )


def _parse_head(data: bytes, path: str) -> tuple[int, str]:
    try:
        row = json.loads(data)
        return int(row["entries"]), str(row["hash"])
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactMismatch(
            f"{path}: expected how many entries the ledger has and the hash of the last, found something else "
            f"({error}); restore it from a copy"
        ) from error


def parse_ledger(data: bytes | None, head: bytes | None, genesis: str, folder: str) -> list[Entry]:
    """The entries of a ledger, every one checked; None stands for a file that is not there.

    `genesis` is the sha256 of the run's manifest file, `folder` is for the messages.
    More entries than the head counts are those of an append that was killed before it replaced the head: they are
    whole, so they count; a last line without its end was never acknowledged and does not. Raises ArtifactMismatch that
    names the first entry which is not as it was written, and how it was changed.
    """
    path, head_path = f"{folder}/{LEDGER}", f"{folder}/{HEAD}"
    if data is None and head is None:
        return []
    if data is None or head is None:
        missing, other = (path, head_path) if data is None else (head_path, path)
        raise ArtifactMismatch(f"{missing}: expected it beside {other}, found none: it was deleted; restore it")
    num_entries, last_hash = _parse_head(head, head_path)
    entries = _parse_lines(data, path)
    _check_order(entries, path)
    _check_chain(entries, genesis, path)
    if len(entries) < num_entries:
        raise _refusal(
            path, len(entries) + 1, f"{num_entries} entries, as {HEAD} says", f"{len(entries)} in the file",
            f"{len(entries) + 1} to {num_entries} were cut off" if num_entries > len(entries) + 1 else "it was cut off",
        )  # fmt: skip
    if num_entries and entries[num_entries - 1].hash != last_hash:
        raise _refusal(
            path, num_entries, f"the hash {last_hash}, as {HEAD} says", entries[num_entries - 1].hash,
            "it was replaced, or the head is another ledger's",
        )  # fmt: skip
    if not num_entries and last_hash != genesis:
        raise _of_another_run(path, head_path, genesis, last_hash)
    return entries


# ------------------------------------------------------------------------------------------------------------- on disk


def manifest_sha256(folder: str | Path) -> str:
    """Of the run's manifest file: what its ledger begins with."""
    return hashlib.sha256((Path(folder) / MANIFEST).read_bytes()).hexdigest()


def utc_now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@contextmanager
def _locked(folder: Path) -> Iterator[IO[bytes]]:
    """The ledger's file, held against other processes and threads; the system lets go of it when a process dies."""
    with open(folder / LEDGER, "a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        yield file


def _head_bytes(folder: Path) -> bytes | None:
    path = folder / HEAD
    return path.read_bytes() if path.exists() else None


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _replace_head(folder: Path, num_entries: int, last_hash: str) -> None:
    temporary = folder / f".{HEAD}"  # one name: the ledger's lock is held
    with open(temporary, "wb") as file:
        file.write(json.dumps({"entries": num_entries, "hash": last_hash}).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, folder / HEAD)
    _sync_folder(folder)


def read_ledger(folder: str | Path) -> list[Entry]:
    """The entries of a local run's ledger, every one checked (`parse_ledger`); none where nothing was decided."""
    folder = Path(folder)
    genesis = manifest_sha256(folder)
    if not (folder / LEDGER).exists():
        return parse_ledger(None, _head_bytes(folder), genesis, str(folder))
    with open(folder / LEDGER, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # never half of an append
        data = file.read()
        return parse_ledger(data, _head_bytes(folder), genesis, str(folder)) if data or _head_bytes(folder) else []


def append(folder: str | Path, entries: Iterable[Entry], now: str = "") -> list[Entry]:
    """Appends decisions to a local run's ledger, all of them together, and returns them as they were written.

    They are on the disk before it returns. Any number of processes and threads may append at once. Raises
    ArtifactMismatch, and writes nothing, where the ledger is not as it was written.
    """
    return append_with(folder, lambda _: entries, now)


def append_with(folder: str | Path, decide: Callable[[list[Entry]], Iterable[Entry]], now: str = "") -> list[Entry]:
    """As `append`, where what is appended depends on what the ledger holds: nobody else appends in between."""
    folder = Path(folder)
    genesis, was_there = manifest_sha256(folder), (folder / LEDGER).exists()
    with _locked(folder) as file:
        data, head = file.read(), _head_bytes(folder)
        if not data and head is None:
            _replace_head(folder, 0, genesis)  # so that a ledger without a head is known to have lost it
            found: list[Entry] = []
        else:
            found = parse_ledger(data if data or was_there else None, head, genesis, str(folder))
        written = list(sealed(decide(found), found[-1] if found else None, genesis, now or utc_now()))
        file.truncate(data.rfind(b"\n") + 1)  # half a line of an append that was killed, acknowledged to nobody
        file.seek(0, os.SEEK_END)
        file.write(entries_to_jsonl(written))
        file.flush()
        os.fsync(file.fileno())
        if written or found:
            _replace_head(folder, len(found) + len(written), [*found, *written][-1].hash)
    return written


# ---------------------------------------------------------------------------------------------------------- what stands


def not_taken_back(entries: Iterable[Entry]) -> dict[str, list[Entry]]:
    """The decisions of each example that has any left: the last of them stands, what is before it would stand again."""
    decided: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.decision != "undone":
            decided.setdefault(entry.example_id, []).append(entry)
        elif decided.get(entry.example_id):
            decided[entry.example_id].pop()
    return {example_id: stack for example_id, stack in decided.items() if stack}


def standing(entries: Iterable[Entry]) -> dict[str, Entry]:
    """The decision that stands for each example that has one: the last that was not taken back."""
    return {example_id: stack[-1] for example_id, stack in not_taken_back(entries).items()}


def standing_removals(removals: Iterable[Removal], entries: Iterable[Entry]) -> list[Removal]:
    """The removals with what stands in the ledger put over what they say, those decided in it alone at the end.

    The content's sha256 is the one that was decided on: whoever acts on it sees whether the example still is that.
    """
    stands = standing(entries)
    decided = [_decided(removal, stands.pop(removal.example_id, None)) for removal in removals]
    return decided + [_decided(Removal(e.example_id, e.sha256, "proposed", ""), e) for e in stands.values()]


def _decided(removal: Removal, entry: Entry | None) -> Removal:
    if entry is None:
        return removal
    return replace(
        removal,
        sha256=entry.sha256,
        decision=entry.decision,
        reason=entry.reason or removal.reason,
        decided_by=entry.reviewer,
        decided_at=entry.time,
        action=entry.action,
        spans=entry.spans,
        request_ids=tuple(dict.fromkeys((*removal.request_ids, *entry.request_ids))),
    )
