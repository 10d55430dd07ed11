"""The ledger: round trip, what stands, appends at once, and every way to tamper with it, named."""

import hashlib
import json
import multiprocessing
import re
from dataclasses import replace

import pytest

from schemas.errors import ArtifactMismatch
from schemas.ledger import (
    HEAD,
    LEDGER,
    Entry,
    append,
    append_with,
    entry_hash,
    manifest_sha256,
    parse_ledger,
    read_ledger,
    standing,
    standing_removals,
)
from schemas.records import Removal

SHA = "a" * 64


@pytest.fixture
def run(tmp_path):
    (tmp_path / "manifest.json").write_text('{"kind": "removals"}\n')
    return tmp_path


def entry(example_id="e1", decision="approved", **others) -> Entry:
    return Entry(**{"reviewer": "ada", "example_id": example_id, "sha256": SHA, "decision": decision} | others)


def five(run) -> list[Entry]:
    return [append(run, [entry(f"e{number}")])[0] for number in range(1, 6)]


def lines(run) -> list[bytes]:
    return (run / LEDGER).read_bytes().splitlines(keepends=True)


def test_an_empty_ledger_is_no_file(run):
    assert read_ledger(run) == [] and not (run / LEDGER).exists()


def test_what_is_appended_is_read_back(run):
    redaction = entry("e2", action="redact", spans=((3, 9), (12, 15)), reason="a name\n\u202e", request_ids=("r1",))
    written = append(run, [entry("e1"), redaction], now="2026-11-27T10:00:00+00:00")
    assert read_ledger(run) == written
    assert [e.seq for e in written] == [1, 2] and written[1].time == "2026-11-27T10:00:00+00:00"
    assert replace(written[1], seq=0, time="", previous="", hash="") == redaction


def test_the_chain_is_as_the_formula_says(run):
    written = append(run, [entry("e1"), entry("e2")])
    rows = [json.loads(line) for line in lines(run)]
    assert rows[0]["previous"] == hashlib.sha256((run / "manifest.json").read_bytes()).hexdigest()
    assert rows[1]["previous"] == rows[0]["hash"]
    for row in rows:
        content = json.dumps({k: v for k, v in row.items() if k != "hash"}, sort_keys=True, separators=(",", ":"))
        assert row["hash"] == hashlib.sha256(content.encode()).hexdigest()
    assert json.loads((run / HEAD).read_text()) == {"entries": 2, "hash": written[1].hash}


def test_nothing_that_was_written_is_written_again(run):
    before = b""
    for number in range(4):
        append(run, [entry(f"e{number}")])
        now = (run / LEDGER).read_bytes()
        assert now.startswith(before) and len(now) > len(before)
        before = now


def test_the_later_decision_stands_and_both_are_kept(run):
    append(run, [entry("e1", reviewer="ada")])
    append(run, [entry("e1", "rejected", reviewer="bo")])
    assert [e.decision for e in read_ledger(run)] == ["approved", "rejected"]
    assert (standing(read_ledger(run))["e1"].decision, standing(read_ledger(run))["e1"].reviewer) == ("rejected", "bo")


@pytest.mark.parametrize(
    ("decisions", "stands"),
    [
        (["approved", "undone"], None),
        (["approved", "rejected", "undone"], "approved"),
        (["approved", "rejected", "undone", "undone"], None),
        (["approved", "undone", "rejected"], "rejected"),
        (["undone", "approved"], "approved"),
    ],
)
def test_undone_takes_back_what_stands(run, decisions, stands):
    append(run, [entry("e1", decision) for decision in decisions])
    found = standing(read_ledger(run)).get("e1")
    assert (found.decision if found else None) == stands and len(read_ledger(run)) == len(decisions)


def test_what_stands_becomes_removals(run):
    proposals = [
        Removal("e1", SHA, "proposed", "proponent of f1", request_ids=("r1",), text="the text"),
        Removal("e2", SHA, "approved", "policy", decided_by="policy strict", decided_at="2026-01-01"),
        Removal("e3", SHA, "proposed", "proponent of f2"),
    ]
    append(run, [
        entry("e1", action="redact", spans=((0, 3),), reason="a name", request_ids=("r1", "r2")),
        entry("e2", "rejected"),
        entry("e9", sha256="b" * 64),
    ], now="T")  # fmt: skip
    assert standing_removals(proposals, read_ledger(run)) == [
        Removal("e1", SHA, "approved", "a name", "ada", "T", "redact", spans=((0, 3),), request_ids=("r1", "r2"),
                text="the text"),
        Removal("e2", SHA, "rejected", "policy", "ada", "T"),
        proposals[2],
        Removal("e9", "b" * 64, "approved", "", "ada", "T"),
    ]  # fmt: skip


def _append_many(folder, name, count):
    for number in range(count):
        append(folder, [entry(f"{name}-{number}", reviewer=name), entry(f"{name}-{number}b", reviewer=name)])


def test_four_processes_append_at_once_and_nothing_is_lost(run):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_append_many, args=(run, f"p{n}", 10)) for n in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0, 0]
    entries = read_ledger(run)
    assert [e.seq for e in entries] == list(range(1, 81))
    for name in ("p0", "p1", "p2", "p3"):
        mine = [e.example_id for e in entries if e.reviewer == name]
        assert mine == [f"{name}-{n}{half}" for n in range(10) for half in ("", "b")]
    together = [e.reviewer for e in entries]
    assert together[::2] == together[1::2], "two entries of one append were parted"


def test_what_is_appended_may_depend_on_what_stands(run):
    append(run, [entry("e1")])
    taken_back = append_with(run, lambda found: [entry(i, "undone") for i in standing(found)])
    assert [(e.example_id, e.seq) for e in taken_back] == [("e1", 2)]
    assert append_with(run, lambda found: [entry(i, "undone") for i in standing(found)]) == []


# ------------------------------------------------------------------------------------------------------------ tampering


def refused(run, message: str) -> None:
    """Reading and appending are refused with the message, and the file stays as it is."""
    before = (run / LEDGER).read_bytes() if (run / LEDGER).exists() else b""
    with pytest.raises(ArtifactMismatch, match=message):
        read_ledger(run)
    with pytest.raises(ArtifactMismatch, match=message):
        append(run, [entry("new")])
    assert (run / LEDGER).read_bytes() == before


def test_a_changed_entry_is_named(run):
    five(run)
    rows = lines(run)
    rows[2] = rows[2].replace(b'"approved"', b'"rejected"')
    (run / LEDGER).write_bytes(b"".join(rows))
    refused(run, r"entry 3: .*'ada' on 'e3' was changed after it was written; entries 1 to 2 are sound.*restore")


@pytest.mark.parametrize("field", ["time", "reviewer", "example_id", "sha256", "reason", "previous", "hash"])
def test_no_field_can_be_changed(run, field):
    five(run)
    rows = [json.loads(line) for line in lines(run)]
    rows[3][field] = "f" * 64
    (run / LEDGER).write_text("".join(json.dumps(row) + "\n" for row in rows))
    refused(run, "entry 4: ")


def test_an_entry_that_was_changed_with_its_hash_breaks_the_chain(run):
    written = five(run)
    forged = replace(written[2], decision="rejected", hash="")
    rows = lines(run)
    rows[2] = json.dumps(replace(forged, hash=entry_hash(forged)).to_row()).encode() + b"\n"
    (run / LEDGER).write_bytes(b"".join(rows))
    refused(run, f"entry 4: expected previous = {entry_hash(forged)}, the hash of entry 3, found {written[2].hash}")


def test_a_last_entry_that_was_changed_with_its_hash_is_missed_by_the_head(run):
    written = five(run)
    forged = replace(written[4], decision="rejected", hash="")
    row = json.dumps(replace(forged, hash=entry_hash(forged)).to_row()).encode() + b"\n"
    (run / LEDGER).write_bytes(b"".join([*lines(run)[:4], row]))
    refused(run, f"entry 5: expected the hash {written[4].hash}, as ledger.head.json says")


def test_a_line_that_is_no_entry_is_named(run):
    five(run)
    rows = lines(run)
    rows[1] = b'{"seq": 2}\n'
    (run / LEDGER).write_bytes(b"".join(rows))
    refused(run, "entry 2: expected a decision, found a line that is none .expected the fields action, ")


@pytest.mark.parametrize(("kept", "message"), [(3, "4 to 5 were cut off"), (4, "it was cut off"), (0, "1 to 5 were")])
def test_a_cut_tail_is_named(run, kept, message):
    five(run)
    (run / LEDGER).write_bytes(b"".join(lines(run)[:kept]))
    refused(
        run, rf"entry {kept + 1}: expected 5 entries, as ledger.head.json says, found {kept} in the file: {message}"
    )


def test_a_tail_cut_within_a_line_is_named(run):
    five(run)
    (run / LEDGER).write_bytes((run / LEDGER).read_bytes()[:-7])
    refused(run, "entry 5: expected 5 entries, as ledger.head.json says, found 4 in the file")


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (
            [0, 2, 1, 3, 4],
            "entry 2: expected the entry with seq 2, found the one with seq 3: the entries were reordered",
        ),
        ([0, 1, 4], "entry 3: expected the entry with seq 3, found the one with seq 5: 3 to 4 are missing"),
        ([0, 1, 3, 4], "entry 3: .*: 3 is missing"),
        ([0, 1, 1, 2, 3, 4], "entry 3: .*: entry 2 stands in it twice"),
        ([1, 2, 3, 4], "entry 1: .*: 1 is missing; no entry before it is sound"),
    ],
)
def test_moved_and_lost_entries_are_named(run, order, message):
    five(run)
    rows = lines(run)
    (run / LEDGER).write_bytes(b"".join(rows[number] for number in order))
    refused(run, message)


def test_another_runs_ledger_is_named(run):
    five(run)
    ours = manifest_sha256(run)
    (run / "manifest.json").write_text('{"kind": "removals", "other": 1}\n')
    message = rf"entry 1: expected a ledger that begins with the sha256 of this run's manifest.json, .*found {ours}"
    refused(run, message + ".*of another run.*take .* away from here")


def test_another_runs_empty_ledger_is_named(run):
    append(run, [])
    (run / "manifest.json").write_text("{}\n")
    refused(run, r"ledger\.head\.json: expected a ledger that begins with")


@pytest.mark.parametrize("deleted", [LEDGER, HEAD])
def test_a_deleted_file_is_named(run, deleted):
    five(run)
    (run / deleted).unlink()
    with pytest.raises(ArtifactMismatch, match=rf"{re.escape(deleted)}: expected it beside .*it was deleted; restore"):
        read_ledger(run)
    with pytest.raises(ArtifactMismatch, match=rf"{re.escape(deleted)}: expected it beside"):
        append(run, [entry()])


def test_a_head_that_is_none_is_named(run):
    five(run)
    (run / HEAD).write_text("[]")
    refused(run, r"ledger\.head\.json: expected how many entries")


# --------------------------------------------------------------------------------------------------------------- killed


def test_an_append_that_was_killed_before_the_head_counts(run):
    five(run)
    head = (run / HEAD).read_bytes()
    sixth = append(run, [entry("e6")])
    (run / HEAD).write_bytes(head)
    assert read_ledger(run)[5:] == sixth
    seventh = append(run, [entry("e7")])
    assert read_ledger(run)[5:] == sixth + seventh and json.loads((run / HEAD).read_text())["entries"] == 7


def test_half_a_line_was_never_acknowledged_and_makes_room(run):
    five(run)
    with open(run / LEDGER, "ab") as file:
        file.write(b'{"reviewer":"ada","example_')
    assert len(read_ledger(run)) == 5
    sixth = append(run, [entry("e6")])
    assert read_ledger(run)[5:] == sixth and len(lines(run)) == 6


def test_what_is_read_from_bytes_is_what_is_read_from_disk(run):
    five(run)
    data, head = (run / LEDGER).read_bytes(), (run / HEAD).read_bytes()
    assert parse_ledger(data, head, manifest_sha256(run), "there") == read_ledger(run)
    with pytest.raises(ArtifactMismatch, match=r"^there/ledger.jsonl, entry 1: expected a ledger that begins with"):
        parse_ledger(data, head, "0" * 64, "there")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reviewer": ""}, "'reviewer' must be a non-empty string"),
        ({"decision": "proposed"}, "'decision' must be one of approved, rejected, undone, found 'proposed'"),
        ({"action": "redact"}, "'spans' must hold at least one"),
        ({"spans": ((1, 2),)}, "'spans' must be empty for the action 'remove'"),
        ({"action": "redact", "spans": ((3, 5), (4, 6))}, "sorted and not overlapping"),
        ({"action": "redact", "spans": ((3, 3),)}, "sorted and not overlapping"),
        ({"action": "delete"}, "'action' must be remove or redact, found 'delete'"),
    ],
)
def test_what_is_no_decision_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        entry(**change)
