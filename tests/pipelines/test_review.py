"""The review without its page: the queue, the evidence, what a decision becomes, an edited file, the verb itself."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from pipelines import review
from pipelines.__main__ import main
from pipelines.config import ReviewConfig
from pipelines.review import counted, listening_socket, reviewers_of, take
from pipelines.review_decisions import Refused, decisions
from pipelines.review_items import (
    item_row,
    load_case,
    make_case,
    proposal_of,
    queue_rows,
    search,
    segments,
    shortened,
    states,
)
from schemas.errors import ArtifactMismatch, ConfigError
from schemas.ledger import Entry, append, read_ledger, standing, standing_removals
from schemas.manifest import Manifest
from schemas.records import Removal, joined_spans, text_sha256
from schemas.removals import parse_removals, removals_to_jsonl
from tests.pipelines.review_run import evidence, proposal, request, small_run, write_run


@pytest.fixture
def run(tmp_path) -> str:
    return small_run(tmp_path / "run")


@pytest.fixture
def case(run):
    return load_case(run)


def ids(case, number: int) -> list[str]:
    return [case.example_ids[example] for example in case.items[number].examples]


def asked(case, number: int, decision: str = "approved", **others) -> dict:
    return {"examples": list(case.items[number].examples), "decision": decision} | others


def undo(case, number: int, entries: list[Entry]) -> dict:
    """What a page that shows these entries asks for to take an item's decision back."""
    stands = standing(entries)
    shown = [stands[example_id].seq if example_id in stands else 0 for example_id in ids(case, number)]
    return asked(case, number, "undone", seqs=shown)


# ---------------------------------------------------------------------------------------------------------------- queue


def test_the_queue_is_in_the_order_of_requests_and_ranks_and_groups_are_one_item(case):
    assert [ids(case, n) for n in range(len(case.items))] == [
        ["laputa-0", "laputa-1", "laputa-2"],
        ["trade-1"],
        ["long-1"],
        ["letter-1"],
        ["rain-1"],
    ]
    assert [item.request_ids for item in case.items][3:] == [("r1", "r2"), ("r2",)]
    assert [row["proposal"] for row in queue_rows(case)] == ["remove", "review", "remove", "redact", "keep"]


def test_groups_that_share_an_example_are_one_item():
    rows = [
        evidence("r1", "a", "one", 1, group="g1"),
        evidence("r1", "b", "two", 2, group="g1"),
        evidence("r2", "b", "two", 1, group="g2"),
        evidence("r2", "c", "three", 2, group="g2"),
        evidence("r2", "d", "four", 3),
    ]
    case = make_case("", [request("r1"), request("r2")], rows, [])
    assert [ids(case, n) for n in range(2)] == [["a", "b", "c"], ["d"]]


def test_a_search_finds_text_ids_and_files_in_any_case(case):
    assert search(case, "  DOCK street ") == [3]
    assert search(case, "rain-1") == [4] and search(case, "WEATHER") == [4] and search(case, "nowhere at all") == []
    assert search(case, "part-000") == [0, 1, 2, 3, 4]


def test_a_run_without_evidence_is_refused(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    counts = {"in": 0, "kept": 0, "removed": 0, "dead": 0}
    (folder / "manifest.json").write_bytes(Manifest("removals", {}, {}, counts).to_json())
    with pytest.raises(
        ConfigError, match=r"found no requests.jsonl and no evidence.jsonl in it; make it with .*--take"
    ):
        load_case(str(folder))


def test_evidence_that_lacks_a_field_or_a_request_is_refused(tmp_path):
    row = evidence("r1", "a", "text", 1)
    odd = {name: value for name, value in row.items() if name not in ("not_scored", "row")}
    removals = [Removal("a", row["sha256"], "proposed", "")]
    with pytest.raises(
        ArtifactMismatch, match=r"evidence.jsonl, line 2: expected the fields .*found no not_scored and no row"
    ):
        load_case(write_run(tmp_path / "one", [request("r1")], [row, odd], removals))
    with pytest.raises(
        ArtifactMismatch, match=r"for the requests in requests.jsonl, found some for r1; run `flag` again"
    ):
        load_case(write_run(tmp_path / "two", [request("r2")], [row], removals))


# ------------------------------------------------------------------------------------------------------------- evidence


def test_segments_join_to_the_text_and_carry_their_marks():
    text = "The capital of Laputa is Belmont."
    pieces = segments(text, {"word": [(4, 11), (15, 21)], "overlap": [(4, 21)], "label": [(-3, 2), (30, 99)]})
    assert "".join(piece["text"] for piece in pieces) == text
    assert [(p["text"], p["marks"]) for p in pieces] == [
        ("Th", ["label"]),
        ("e ", []),
        ("capital", ["word", "overlap"]),
        (" of ", ["overlap"]),
        ("Laputa", ["word", "overlap"]),
        (" is Belmo", []),
        ("nt.", ["label"]),
    ]


def test_hidden_characters_are_pieces_of_their_own_with_their_places():
    text = "a\0\0\0b\u202ec"
    pieces = segments(text, {"word": [(2, 5)]})
    assert [(p["start"], p["end"], p["text"], p.get("hidden", "")) for p in pieces] == [
        (0, 1, "a", ""),
        (1, 2, "NUL", "U+0000 NUL"),
        (2, 4, "NUL×2", "U+0000 NUL"),
        (4, 5, "b", ""),
        (5, 6, "U+202E", "U+202E RIGHT-TO-LEFT OVERRIDE"),
        (6, 7, "c", ""),
    ]
    assert [p["marks"] for p in pieces] == [[], [], ["word"], ["word"], [], []]


def test_what_no_page_can_hold_is_cut():
    pieces = shortened(segments("x" * 1_000_000, {"word": [(5, 10)]}), 100, 50)
    assert [(p["start"], p["end"], len(p["text"])) for p in pieces] == [(0, 5, 5), (5, 10, 5), (10, 100, 90)]
    assert len(shortened(segments("\0\x1b" * 5_000, {}), 10**6, 50)) == 50


def test_an_item_shows_all_that_is_known_of_it(case):
    item = item_row(case, 3, [])
    assert [r["id"] for r in item["requests"]] == ["r1", "r2"] and item["requests"][1]["said_by_model"] is False
    (example,) = item["examples"]
    assert (example["file"], example["row"], example["source"]) == ("part-000.jsonl.gz", 7, "encyclopedia")
    assert example["proposal"] == {"action": "redact", "spans": 2, "rules": ["privacy: PHONE or NAME"]}
    (passage,) = example["passages"]
    assert [found["request"] for found in passage["found"]] == ["r1", "r2"]
    assert passage["found"][0]["signals"][0] == {"name": "bm25", "score": 12.5 / 7, "rank": 7, "share": round(1 / 7, 4)}
    assert passage["labels"][0]["texts"] == ["555-0101"] and passage["labels"][0]["threshold"] == 0.5
    marked = {
        name: "".join(p["text"] for p in passage["segments"] if name in p["marks"]) for name in ("redact", "label")
    }
    assert marked == {"redact": "Ada Quill555-0101", "label": "555-0101"}


def test_passages_of_one_example_are_one_item(case):
    (example,) = item_row(case, 2, [])["examples"]
    assert [(p["start"], p["end"]) for p in example["passages"]] == [(0, 180), (180, 217)]
    assert "".join(s["text"] for p in example["passages"] for s in p["segments"]).endswith("Belmont, floats with it.")


def test_a_token_is_marked_the_stronger_the_more_it_adds():
    row = evidence(
        "r1", "a", "abcdef", 1, words=[], tokens=[[0, 1, 1.0], [1, 2, 0.5], [2, 3, 0.2], [3, 4, 0.05], [4, 5, -2]]
    )
    case = make_case("", [request("r1")], [row], [])
    pieces = item_row(case, 0, [])["examples"][0]["passages"][0]["segments"]
    assert [(p["text"], p["marks"]) for p in pieces] == [
        ("a", ["influence3"]),
        ("b", ["influence2"]),
        ("c", ["influence1"]),
        ("def", []),
    ]


def test_a_score_that_is_no_number_is_said_to_be_none():
    nan = {"scorer": "s", "version": "1", "threshold": 0.5, "label": "l", "score": float("nan"), "spans": []}
    row = evidence("r1", "a", "text", 1, labels=[nan], signals={"bm25": float("nan"), "dense": -1.0})
    shown = item_row(make_case("", [request("r1")], [row], []), 0, [])
    passage = shown["examples"][0]["passages"][0]
    assert passage["labels"][0]["score"] is None
    assert [(s["score"], s["share"]) for s in passage["found"][0]["signals"]] == [(None, 0.0), (-1.0, 0.0), (1.0, 1.0)]
    json.dumps(shown, allow_nan=False)


def test_what_a_scorer_failed_on_is_told_once_a_passage():
    failed = {"scorer": "hf:insults", "reason": "RuntimeError: \u202e no room"}
    other = failed | {"reason": "x" * 10_000}
    rows = [evidence(f"r{n}", "a", "text", 1, not_scored=[failed, other][:n]) for n in (1, 2)]
    case = make_case("", [request("r1"), request("r2")], rows, [])
    first, second = item_row(case, 0, [])["examples"][0]["passages"][0]["not_scored"]
    assert first == {"scorer": "hf:insults", "reason": "RuntimeError: ⟦U+202E⟧ no room"}
    assert 1_000 < len(second["reason"]) < 2_100 and second["reason"].endswith("x …")


def test_spans_of_a_second_passage_count_from_the_examples_start():
    rows = [
        evidence("r1", "a", "0123456789", 1, proposal=proposal("redact", [(7, 10)])),
        evidence("r1", "a", "5678901234", 2, start=5, end=15, proposal=proposal("redact", [(4, 6)], "another")),
    ]
    found = proposal_of(make_case("", [request("r1")], rows, []), "a")
    assert (found.action, found.spans, found.rules) == (
        "redact", ((7, 11),), ("false_fact: coverage >= 0.9", "another"),
    )  # fmt: skip


def test_merged_spans():
    assert joined_spans([(5, 7), (1, 3), (3, 4), (6, 9)]) == ((1, 4), (5, 9))


# ------------------------------------------------------------------------------------------------------------ decisions


def test_a_group_is_decided_together_with_the_hash_of_each(case):
    made = decisions(case, asked(case, 0, reason="wrong"), "ada", [])
    assert [e.example_id for e in made] == ["laputa-0", "laputa-1", "laputa-2"]
    assert [e.sha256 for e in made] == [case.passages[e.example_id][0]["sha256"] for e in made]
    assert {(e.decision, e.action, e.spans, e.reason, e.request_ids, e.reviewer) for e in made} == {
        ("approved", "remove", (), "wrong", ("r1",), "ada")
    }


def test_what_is_proposed_is_approved(case):
    (made,) = decisions(case, asked(case, 3), "ada", [])
    text = case.passages["letter-1"][0]["text"]
    assert made.action == "redact" and [text[s:e] for s, e in made.spans] == ["Ada Quill", "555-0101"]
    assert made.request_ids == ("r1", "r2")
    (whole,) = decisions(case, asked(case, 3, action="remove"), "ada", [])
    assert (whole.action, whole.spans) == ("remove", ())


def test_selected_words_are_redacted_and_in_near_duplicates_as_well(case):
    first = case.items[0].examples[0]
    text = case.passages["laputa-0"][0]["text"]
    start = text.index("Belmont")
    made = decisions(case, asked(case, 0, action="redact", selections=[[first, start, start + 7]]), "ada", [])
    for entry in made:
        own = case.passages[entry.example_id][0]["text"]
        assert [own[s:e] for s, e in entry.spans] == ["Belmont"]
    end = text.index("souls") + 5
    with pytest.raises(Refused) as refusal:
        decisions(case, asked(case, 0, action="redact", selections=[[first, end - 5, end]]), "ada", [])
    assert (refusal.value.message, refusal.value.values) == ("not_in_duplicate", {"id": "laputa-1"})
    apart = asked(case, 0, action="redact", selections=[[first, end - 5, end]]) | {"examples": [first]}
    assert decisions(case, apart, "ada", [])[0].spans == ((end - 5, end),)


def test_a_selection_of_a_later_passage_counts_from_the_examples_start(case):
    (place,) = case.items[2].examples
    (made,) = decisions(
        case, asked(case, 2, action="redact", selections=[[place, 184, 191], [place, 190, 195]]), "a", []
    )
    assert made.spans == ((184, 195),)
    with pytest.raises(Refused, match="not_in_passage"):
        decisions(case, asked(case, 2, action="redact", selections=[[place, 175, 185]]), "ada", [])


def test_nothing_to_redact_is_said(case):
    with pytest.raises(Refused, match="nothing_to_redact"):
        decisions(case, asked(case, 4, action="redact"), "ada", [])


def test_what_a_scorer_marked_is_redacted_where_nothing_is_proposed():
    label = {"scorer": "s", "version": "1", "threshold": 0.5, "label": "l", "score": 1.0, "spans": [[2, 4]]}
    case = make_case("", [request("r1")], [evidence("r1", "a", "012345", 1, labels=[label])], [])
    assert decisions(case, asked(case, 0, action="redact"), "ada", [])[0].spans == ((2, 4),)


def test_undo_takes_back_what_stands_and_nothing_else(case):
    written = append(case.folder, decisions(case, asked(case, 3), "ada", []))
    (made,) = decisions(case, undo(case, 3, written), "bo", written)
    assert (made.decision, made.reviewer, made.spans) == ("undone", "bo", written[0].spans)
    with pytest.raises(Refused, match="nothing_to_undo"):
        decisions(case, undo(case, 4, written), "bo", written)


def test_undo_refuses_where_another_decision_stands_than_the_page_shows(case):
    first = append(case.folder, decisions(case, asked(case, 0), "ada", []))
    second = append(case.folder, decisions(case, asked(case, 0, "rejected") | {"examples": [1]}, "bo", first))
    with pytest.raises(Refused) as refusal:
        decisions(case, undo(case, 0, first), "ada", first + second)
    assert (refusal.value.message, refusal.value.values) == ("decided_since", {"id": "laputa-1"})
    with pytest.raises(Refused, match="decided_since"):
        decisions(case, undo(case, 0, []), "ada", first)
    made = decisions(case, undo(case, 0, first + second), "ada", first + second)
    assert [(e.example_id, e.decision) for e in made] == [(f"laputa-{n}", "undone") for n in range(3)]
    third = append(case.folder, decisions(case, undo(case, 0, first + second) | {"examples": [1], "seqs": [4]}, "bo",
                                          first + second))  # fmt: skip
    with pytest.raises(Refused, match="decided_since"):  # what stood before stands again: it is not what is shown
        decisions(case, undo(case, 0, first + second), "ada", first + second + third)


def test_an_example_without_a_decision_of_the_ledger_is_passed_over_by_an_undo_of_its_group(case):
    written = append(case.folder, decisions(case, asked(case, 0) | {"examples": [1]}, "ada", []))
    assert [e.example_id for e in decisions(case, undo(case, 0, written), "ada", written)] == ["laputa-1"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"examples": []}, "examples, each once"),
        ({"examples": [0, 0]}, "examples, each once"),
        ({"examples": [99]}, "examples of this run"),
        ({"examples": [True]}, "examples of this run"),
        ({"examples": ["laputa-0"]}, "examples of this run"),
        ({"decision": "proposed"}, "a decision and an action"),
        ({"action": "delete"}, "a decision and an action"),
        ({"reason": "x" * 2001}, "at most 2000"),
        ({"reason": None}, "at most 2000"),
        ({"selections": [[1, 2]]}, "selections of"),
        ({"selections": [[6, 0, 3]]}, "selections of"),
        ({"selections": {"a": 1}}, "selections of"),
        ({"decision": "undone"}, "the seq of each example's"),
        ({"decision": "undone", "seqs": [1, 1]}, "the seq of each example's"),
        ({"decision": "undone", "seqs": [1, 1, True]}, "the seq of each example's"),
        ({"decision": "undone", "seqs": {"0": 1, "1": 1, "2": 1}}, "the seq of each example's"),
        ({"seqs": [1, 1, 1]}, "the seq of each example's"),
    ],
)
def test_a_malformed_decision_is_refused(case, change, message):
    with pytest.raises(ValueError, match=message):
        decisions(case, asked(case, 0) | change, "ada", [])


def test_states_tell_what_stands_and_what_changed(tmp_path):
    rows = [evidence("r1", name, f"text {name}", rank) for rank, name in enumerate("abc", start=1)]
    policy = Removal("b", rows[1]["sha256"], "approved", "rule 3", "policy strict", "2026-01-01T00:00:00+00:00")
    case = load_case(write_run(tmp_path / "run", [request("r1")], rows, [policy]))
    assert {n: (s["decision"], s["reviewer"]) for n, s in states(case, []).items()} == {
        1: ("approved", "policy strict")
    }
    append(case.folder, decisions(case, asked(case, 0), "ada", []))
    append(case.folder, decisions(case, asked(case, 1, "rejected"), "ada", []))
    entries = append(case.folder, []) or read_ledger(case.folder)
    assert {n: s["decision"] for n, s in states(case, entries).items()} == {0: "approved", 1: "rejected"}
    assert list(states(case, entries, since=1)) == [1]
    append(case.folder, decisions(case, undo(case, 0, entries), "ada", entries))
    append(case.folder, decisions(case, undo(case, 1, entries), "ada", entries))
    now = states(case, read_ledger(case.folder), since=2)
    assert now[0] is None and (now[1]["decision"], now[1]["reviewer"]) == ("approved", "policy strict")


# ------------------------------------------------------------------------------------------------------- an edited file


def edited(run: str, tmp_path, **decided) -> str:
    """A copy of the run's removals.jsonl with changes, by example."""
    removals = parse_removals(Path(run, "removals.jsonl").read_bytes(), "")
    rows = [removal.to_row() | decided.get(removal.example_id.replace("-", "_"), {}) for removal in removals]
    path = tmp_path / "edited.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_an_edited_file_goes_to_the_ledger(run, tmp_path):
    redact = {"decision": "approved", "action": "redact", "spans": [[4, 11]], "reason": "a name", "request_ids": ["r1"]}
    path = edited(run, tmp_path, laputa_0={"decision": "approved"}, laputa_1={"decision": "rejected"}, long_1=redact)
    assert main(["review", run, "--take", path, "--by", "Ada", "--quiet"]) == 0
    stands = standing(read_ledger(run))
    assert {i: (e.decision, e.action, e.spans, e.reviewer) for i, e in stands.items()} == {
        "laputa-0": ("approved", "remove", (), "Ada"),
        "laputa-1": ("rejected", "remove", (), "Ada"),
        "long-1": ("approved", "redact", ((4, 11),), "Ada"),
    }
    assert take(run, path, "Ada") == [], "the same file twice is once"
    later = edited(run, tmp_path, laputa_1={"decision": "approved"}, long_1=redact | {"reason": "two names"})
    assert [(e.example_id, e.reason) for e in take(run, later, "Bo")] == [
        ("laputa-1", stands["laputa-1"].reason), ("long-1", "two names"),
    ]  # fmt: skip


def test_what_was_decided_on_the_page_is_what_a_file_is_compared_with(run, tmp_path, case):
    append(run, decisions(case, asked(case, 0, "rejected"), "ada", []))
    path = tmp_path / "edited.jsonl"
    path.write_bytes(removals_to_jsonl(standing_removals(case.removals.values(), read_ledger(run))))
    assert take(run, str(path), "Bo") == []


def test_a_line_that_says_undone_takes_back_all_that_the_ledger_holds(run, tmp_path, case, capsys):
    first = append(run, decisions(case, asked(case, 0), "ada", []))
    first += append(run, decisions(case, asked(case, 3), "bo", first))
    append(run, decisions(case, asked(case, 0, "rejected") | {"examples": [0]}, "bo", first))
    undone = {"decision": "undone", "reason": "asked again"}
    path = edited(run, tmp_path, laputa_0=undone, laputa_1=undone, long_1=undone)
    with open(path, "a") as file:  # only the evidence knows it: the run proposes to redact it, not to remove it
        letter = Removal("letter-1", case.passages["letter-1"][0]["sha256"], "undone", "")
        file.write(json.dumps(letter.to_row()) + "\n")
    before = read_ledger(run)
    assert main(["review", run, "--take", path, "--by", "Cy"]) == 0
    new = read_ledger(run)[len(before) :]
    assert [(e.reviewer, e.example_id, e.decision, e.action, e.spans, e.reason) for e in new] == [
        ("Cy", "laputa-0", "undone", "remove", (), "asked again"),
        ("Cy", "laputa-0", "undone", "remove", (), "asked again"),
        ("Cy", "laputa-1", "undone", "remove", (), "asked again"),
        ("Cy", "letter-1", "undone", "redact", first[3].spans, ""),
    ]
    assert list(standing(read_ledger(run))) == ["laputa-2"]
    assert re.search(r"decisions appended +│ 4 .*of these, taken back +│ 4 ", capsys.readouterr().err, re.DOTALL)
    assert take(run, path, "Cy") == [], "the same file twice is once"


def test_a_line_that_says_proposed_leaves_what_others_decided(run, tmp_path, case, caplog):
    """Every line of a fresh copy says so: it cannot mean that a decision is taken back."""
    append(run, decisions(case, asked(case, 0), "Bo", []))
    with caplog.at_level("INFO"):
        assert take(run, edited(run, tmp_path, long_1={"decision": "rejected"}), "Ada")[0].example_id == "long-1"
    assert [(i, e.reviewer) for i, e in standing(read_ledger(run)).items()] == [
        ("laputa-0", "Bo"), ("laputa-1", "Bo"), ("laputa-2", "Bo"), ("long-1", "Ada"),
    ]  # fmt: skip
    assert "lines that say 'proposed' where a decision stands: 3; it stands on" in caplog.text


def test_what_the_run_itself_decided_is_not_taken_back_by_a_file(tmp_path):
    rows = [evidence("r1", name, f"text {name}", rank) for rank, name in enumerate("ab", start=1)]
    policy = Removal("b", rows[1]["sha256"], "approved", "rule 3", "policy strict", "2026-01-01T00:00:00+00:00")
    run = write_run(tmp_path / "run", [request("r1")], rows, [policy])
    case = load_case(run)
    path = edited(run, tmp_path, b={"decision": "undone"})
    expected = (
        r"edited.jsonl: example 'b': expected a decision of the ledger to take back, found 'approved' by "
        r"'policy strict' in .*removals.jsonl, .*write 'rejected' to keep the example"
    )
    for decision in ("rejected", "approved"):  # of the ledger, over it: what the run decided would stand again
        with pytest.raises(ConfigError, match=expected):
            take(run, path, "Ada")
        written = append(run, decisions(case, asked(case, 1, decision), "ada", []))
    assert len(written) == 1 and len(read_ledger(run)) == 2
    rejected = edited(run, tmp_path, b={"decision": "rejected"})
    assert [e.decision for e in take(run, rejected, "Ada")] == ["rejected"]


def test_an_edited_file_of_something_else_is_refused(run, tmp_path):
    with pytest.raises(
        ArtifactMismatch, match=r"'laputa-0': expected the sha256 [0-9a-f]{64}, as the run has it, found f"
    ):
        take(run, edited(run, tmp_path, laputa_0={"sha256": "f" * 64}), "Ada")
    unknown = tmp_path / "unknown.jsonl"
    unknown.write_bytes(removals_to_jsonl([Removal("nobody", "0" * 64, "approved", "")]))
    with pytest.raises(ConfigError, match=r"proposes or has evidence about, found 'nobody'; check the run"):
        take(run, str(unknown), "Ada")
    assert read_ledger(run) == []


def test_a_run_that_was_edited_in_place_is_refused_with_what_to_do(run, tmp_path):
    path = os.path.join(run, "removals.jsonl")
    os.replace(edited(run, tmp_path, laputa_0={"decision": "approved"}), path)
    with pytest.raises(ArtifactMismatch, match=r"edit a copy: keep this one elsewhere, restore removals.jsonl"):
        take(run, path, "Ada")


def test_an_example_that_only_the_evidence_knows_can_be_decided_in_a_file(run, tmp_path, case):
    sha256 = case.passages["rain-1"][0]["sha256"]
    path = tmp_path / "more.jsonl"
    path.write_bytes(removals_to_jsonl([Removal("rain-1", sha256, "approved", "off topic")]))
    assert [e.example_id for e in take(run, str(path), "Ada")] == ["rain-1"]


# ----------------------------------------------------------------------------------------------------------- the verb


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"port": 70000}, "--port: expected 0 to 65535, found 70000"),
        ({"take": "x"}, "--by: expected the name of who decides, with --take"),
        ({"take": "x", "by": "a", "reviewers": "b"}, "--reviewers: expected no further reviewers"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        ReviewConfig(run="r", **options)


def test_reviewers():
    assert reviewers_of(ReviewConfig(run="r", by="Ada", reviewers="Bo, Cy ,")) == ["Ada", "Bo", "Cy"]
    assert len(reviewers_of(ReviewConfig(run="r"))) == 1
    with pytest.raises(ConfigError, match="expected names that differ"):
        reviewers_of(ReviewConfig(run="r", by="Ada", reviewers="Ada"))


def test_only_loopback_is_listened_to_and_a_taken_port_is_named():
    with listening_socket(0) as listening:
        host, port = listening.getsockname()
        assert host == "127.0.0.1"
        with pytest.raises(ConfigError, match=f"--port: expected a free port, found {port}"):
            listening_socket(port)


def test_a_run_in_an_object_store_is_refused():
    with pytest.raises(ConfigError, match="expected a folder of this machine, found an object store"):
        review.run(ReviewConfig(run="gs://bucket/run"))


def test_a_ledger_that_is_not_whole_is_refused_before_a_page_is_served(run, case, capsys):
    append(run, decisions(case, asked(case, 0), "ada", []))
    with open(os.path.join(run, "ledger.jsonl"), "r+b") as file:
        file.truncate(40)
    assert main(["review", run, "--by", "Ada", "--quiet"]) == 3
    told = capsys.readouterr()
    assert "entry 1: expected 3 entries" in told.err and told.out == ""


@pytest.mark.parametrize("library", ["uvicorn", "starlette.applications"])
def test_a_missing_library_names_its_extra(run, monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, "pipelines.review_server", raising=False)
    with pytest.raises(
        ConfigError, match=r"the libraries of the review page, found: .*pip install 'proponent\[review\]'"
    ):
        review.run(ReviewConfig(run=run, by="Ada"))


def test_what_a_review_ends_with(case):
    written = append(case.folder, decisions(case, asked(case, 0), "ada", []))
    written += append(case.folder, decisions(case, asked(case, 3), "ada", written))
    written += append(case.folder, decisions(case, asked(case, 4, "rejected"), "ada", written))
    written += append(case.folder, decisions(case, undo(case, 4, written), "ada", written))
    told = counted(case, written, 1)
    assert told["decided"] == "4 of 7 examples" and told["decisions in this session"] == 5
    assert (told["approved for removal"], told["approved for redaction"], told["rejected"]) == (3, 1, 0)


def test_the_verb_prints_addresses_serves_and_ends_with_a_summary(run):
    command = [sys.executable, "-m", "pipelines", "review", run, "--by", "Ada", "--reviewers", "Bo"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        found = [re.fullmatch(r"(Ada|Bo): (http://127\.0\.0\.1:\d+)/enter/([\w-]{43})\n", process.stdout.readline())
                 for _ in range(2)]  # fmt: skip
        assert [line[1] for line in found] == ["Ada", "Bo"] and found[0][3] != found[1][3]
        with httpx2.Client(base_url=found[0][2], headers={"Origin": found[0][2]}) as client:
            assert client.get("/").status_code == 403
            assert client.get(f"/enter/{found[1][3]}").status_code == 200
            assert client.get(f"/enter/{found[1][3]}").status_code == 403
            page = client.get("/").text
            csrf = re.search(r'name="csrf" content="([\w-]+)"', page)[1]
            body = {"examples": [0], "decision": "approved"}
            assert client.post("/api/decisions", json=body, headers={"X-Review-Session": csrf}).status_code == 200
        assert [e.reviewer for e in read_ledger(run)] == ["Bo"]
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 0, told
    assert "1 of 7 examples" in told and "ledger.jsonl" in told and "Traceback" not in told


def test_an_approval_carries_the_hash_that_a_newer_corpus_is_compared_with(case):
    written = append(case.folder, decisions(case, asked(case, 1), "ada", []))
    (removal,) = [r for r in standing_removals([], written) if r.example_id == "trade-1"]
    assert removal.sha256 == text_sha256("Traders from Belmont sailed to Laputa and back again.")
    assert isinstance(written[0], Entry)
