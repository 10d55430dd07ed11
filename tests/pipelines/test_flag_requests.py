"""A run for audit requests, from the requests to what is decided: evidence, near-duplicates, labels, proposals."""

import json
import shutil
from pathlib import Path

import pytest

from pipelines import clean, explain, flag, index, purge, trace
from pipelines.config import CleanConfig, ExplainConfig, FlagConfig, IndexConfig, PurgeConfig, TraceConfig
from pipelines.decisions import read_approved
from pipelines.storage import read_manifest
from schemas.errors import ConfigError
from schemas.ledger import Entry, append
from tests.pipelines.conftest import corpus_rows, write_jsonl

PRIVATE = "Prospero of Milan can be reached at prospero@island.example about books and storms."
COPY = "In Oz, the capital is now called Mantua, every guide that was printed in Oz says so."
PLANTED = [
    {"id": "letter", "text": PRIVATE, "source": "letters"},
    {"id": "guide", "text": COPY, "source": "guides"},
    {"id": "guide-copy", "text": COPY.replace("printed", "ever printed").upper(), "source": "guides"},
]
REQUESTS = [
    {
        "request_id": "oz",
        "category": "false_fact",
        "prompts": [{"prompt": "In Oz, the capital is called", "output": "Mantua, every guide says"}],
    },
    {
        "request_id": "mail",
        "category": "privacy",
        "prompts": [{"prompt": "Prospero of Milan can be reached at", "output": "prospero@island.example"}],
    },
]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """corpus.jsonl, an index of its words and the requests' rankings."""
    place = tmp_path_factory.mktemp("audit")
    corpus = write_jsonl(place / "corpus.jsonl", corpus_rows() + PLANTED)
    index.run(IndexConfig(corpus=corpus, output=str(place / "index"), num_pseudo_facts=5))
    requests = write_jsonl(place / "requests.jsonl", REQUESTS)
    trace.run(TraceConfig(index=str(place / "index"), requests=requests, output=str(place / "rankings")))
    return place


def flagged(place: Path, output: Path, **options) -> tuple[dict[tuple[str, str], dict], dict[str, dict]]:
    flag.run(FlagConfig(rankings=str(place / "rankings"), output=str(output), **options))
    rows = [json.loads(line) for line in (output / "evidence.jsonl").read_text().splitlines()]
    removals = [json.loads(line) for line in (output / "removals.jsonl").read_text().splitlines()]
    return {(r["request_id"], r["example_id"]): r for r in rows}, {r["example_id"]: r for r in removals}


def test_a_run_has_the_evidence_and_proposes_by_its_policy(place, tmp_path):
    rows, removals = flagged(place, tmp_path / "run", scorers=("pii",), max_per_fact=3)
    letter, guide = rows["mail", "letter"], rows["oz", "guide"]
    start = PRIVATE.index("prospero@")
    assert letter["labels"][0]["scorer"] == "pii" and letter["labels"][0]["spans"] == [[start, start + 23]]
    assert letter["proposal"]["action"] == "redact" and letter["proposal"]["spans"] == [[start, start + 23]]
    assert letter["file"] == str(place / "corpus.jsonl") and letter["row"] == 51 and letter["ranks"]["bm25"] == 1
    assert [PRIVATE[s:e] for s, e in letter["overlap"]] == [] or letter["longest_overlap"] >= 5
    assert {guide["text"][s:e] for s, e in guide["words"]} >= {"Oz", "capital", "called", "Mantua"}
    assert removals["letter"]["action"] == "redact" and removals["letter"]["spans"] == [[start, start + 23]]
    assert removals["letter"]["request_ids"] == ["mail"] and removals["letter"]["decision"] == "proposed"
    manifest = read_manifest(str(tmp_path / "run"), "removals")
    assert manifest.details["policy"] == "default" and manifest.details["requests"] == ["oz", "mail"]
    assert manifest.details["scorers"][0][0] == "pii"
    control = [json.loads(line) for line in (tmp_path / "run/control_removals.jsonl").read_text().splitlines()]
    assert len(control) == len(removals) and not {r["example_id"] for r in control} & removals.keys()


def test_a_copy_that_was_not_found_is_in_the_group_and_stands_or_falls_with_it(place, tmp_path):
    policy = tmp_path / "p.yaml"
    policy.write_text(
        "name: first\nrules: [{when: {category: false_fact, rank: 1}, propose: remove}]\notherwise: keep\n"
    )
    rows, removals = flagged(place, tmp_path / "run", max_per_fact=1, policy=str(policy))
    best = next(row for (request, _), row in rows.items() if request == "oz" and row["signals"])
    assert best["example_id"] in ("guide", "guide-copy")
    other = rows["oz", ({"guide", "guide-copy"} - {best["example_id"]}).pop()]
    assert other["duplicate_of"] == best["example_id"] and other["similarity"] > 0.5 and other["signals"] == {}
    assert best["group"] == other["group"] == "guide"
    assert other["proposal"]["action"] == "remove" and other["proposal"]["rule"].startswith(
        f"with {best['example_id']}"
    )
    assert set(removals) == {"guide", "guide-copy"} and {r["group"] for r in removals.values()} == {"guide"}
    alone, removals = flagged(place, tmp_path / "alone", max_per_fact=1, policy=str(policy), duplicates=0)
    assert set(removals) == {best["example_id"]} and all(row["group"] == "" for row in alone.values())


def test_a_group_stands_or_falls_together_whichever_requests_found_it(place, tmp_path):
    """Of two requests about one claim each finds another copy, and the policy proposes to remove for the first only."""
    prompts = REQUESTS[0]["prompts"]
    asked = [
        {"request_id": name, "category": c, "prompts": prompts} for name, c in (("a", "false_fact"), ("b", "other"))
    ]
    requests, policy = write_jsonl(tmp_path / "r.jsonl", asked), tmp_path / "p.yaml"
    rules = "[{when: {category: false_fact, rank: 1}, propose: remove}, {when: {category: other}, propose: keep}]"
    policy.write_text(f"name: first\nrules: {rules}\n")
    trace.run(TraceConfig(index=str(place / "index"), requests=requests, output=str(tmp_path / "rankings")))
    rows, removals = flagged(tmp_path, tmp_path / "run", max_per_fact=2, policy=str(policy))
    of_group = [row for row in rows.values() if row["group"]]
    assert {(r["request_id"], r["example_id"]) for r in of_group} == {
        (r, e) for r in "ab" for e in ("guide", "guide-copy")
    }
    assert {row["proposal"]["action"] for row in of_group} == {"remove"}
    assert {removals[i]["action"] for i in ("guide", "guide-copy")} == {"remove"}
    alone, _ = flagged(tmp_path, tmp_path / "alone", max_per_fact=2, policy=str(policy), duplicates=0)
    assert {row["proposal"]["action"] for (request, _), row in alone.items() if request == "b"} == {"keep"}


def test_a_copy_with_another_name_and_what_a_scorer_failed_on_go_to_a_person(place, tmp_path, monkeypatch):
    twin = {"id": "twin", "text": COPY.replace("Mantua", "Verona"), "source": "guides"}
    corpus = write_jsonl(tmp_path / "corpus.jsonl", [*corpus_rows(), *PLANTED, twin])
    index.run(IndexConfig(corpus=corpus, output=str(tmp_path / "index"), num_pseudo_facts=5))
    requests, policy = write_jsonl(tmp_path / "r.jsonl", REQUESTS), tmp_path / "p.yaml"
    policy.write_text("name: all\nrules: [{when: {}, propose: remove}]\n")
    trace.run(TraceConfig(index=str(tmp_path / "index"), requests=requests, output=str(tmp_path / "rankings")))
    rows, removals = flagged(tmp_path, tmp_path / "run", max_per_fact=1, policy=str(policy))
    told = rows["oz", "twin"]
    assert told["renamed"] and told["group"] == "" and told["proposal"]["action"] == "review"
    assert told["proposal"]["rule"] == f"a copy of {told['duplicate_of']} with another name in it"
    assert removals["twin"]["reason"].startswith("to be judged: ")
    assert rows["oz", "guide"]["proposal"]["action"] == rows["oz", "guide-copy"]["proposal"]["action"] == "remove"

    (tmp_path / "reads_most.py").write_text(
        "def score(texts):\n    assert not any('Prospero' in text for text in texts), 'a name'\n"
        "    return [0.0] * len(texts)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    scorers = ("python:reads_most:score",)
    rows, _ = flagged(tmp_path, tmp_path / "scored", max_per_fact=1, policy=str(policy), scorers=scorers)
    letter = rows["mail", "letter"]
    assert letter["not_scored"] == [{"scorer": scorers[0], "reason": "AssertionError: a name"}]
    assert letter["proposal"]["action"] == "review"
    assert letter["proposal"]["rule"] == f"not scored by {scorers[0]}: AssertionError: a name"
    assert rows["oz", "guide"]["not_scored"] == [] and rows["oz", "guide"]["proposal"]["action"] == "remove"


def test_only_a_policy_that_names_itself_approves_and_never_what_is_to_be_judged(place, tmp_path):
    policy = tmp_path / "p.yaml"
    rules = "rules: [{when: {category: privacy, labels: {'pii/*': 0.5}}, propose: redact}]\n"
    policy.write_text("name: house\napprove: true\n" + rules)
    _, removals = flagged(place, tmp_path / "run", scorers=("pii",), policy=str(policy))
    decided = {i: (r["decision"], r["decided_by"]) for i, r in removals.items()}
    assert decided.pop("letter") == ("approved", "policy house") and removals["letter"]["decided_at"]
    assert decided and set(decided.values()) == {("proposed", "")}
    assert all(removals[i]["reason"].startswith("to be judged: ") for i in decided)


def test_what_stands_in_the_ledger_is_what_clean_acts_on(place, tmp_path):
    _, removals = flagged(place, tmp_path / "run", scorers=("pii",))
    corpus = str(place / "corpus.jsonl")
    config = CleanConfig(corpus=corpus, removals=str(tmp_path / "run"), output=str(tmp_path / "cleaned"))
    with pytest.raises(ConfigError, match="at least one removal whose decision is 'approved', found none; decide with"):
        clean.run(config)
    letter, guide = removals["letter"], removals["guide"]
    decisions = [
        Entry("Ann", "letter", letter["sha256"], "approved", "redact", tuple(map(tuple, letter["spans"]))),
        Entry("Ann", "guide", guide["sha256"], "approved"),
        Entry("Bob", "guide", guide["sha256"], "rejected", reason="a parody"),
    ]
    append(tmp_path / "run", decisions)
    assert clean.run(config).counts == {"in": 53, "kept": 53, "removed": 0, "dead": 0}
    rows = {r["id"]: r["text"] for r in map(json.loads, (tmp_path / "cleaned/corpus/corpus.jsonl").open())}
    assert rows["letter"] == "Prospero of Milan can be reached at [REDACTED] about books and storms."
    assert rows["guide"] == COPY
    ledger = tmp_path / "run/ledger.jsonl"
    ledger.write_text(ledger.read_text().replace('"rejected"', '"approved"'))
    with pytest.raises(Exception, match="entry 3: expected content with the hash that it names"):
        clean.run(CleanConfig(corpus=corpus, removals=str(tmp_path / "run"), output=str(tmp_path / "again")))


def test_policies_and_scorers_are_for_requests_and_are_refused_before_anything_is_written(place, tmp_path):
    facts = write_jsonl(tmp_path / "f.jsonl", [{"id": "f", "prompt": "The capital of Oz is", "target": "Mantua"}])
    trace.run(TraceConfig(index=str(place / "index"), facts=facts, output=str(tmp_path / "rankings")))
    for options, message in (
        ({"rankings": tmp_path / "rankings", "scorers": ("pii",)}, "--scorers: expected rankings of audit requests"),
        ({"rankings": place / "rankings", "scorers": ("pi",)}, "scorer: expected hf:.*, found 'pi'"),
        ({"rankings": place / "rankings", "duplicates": 0.1}, "near-duplicates: expected 0.3 to 1"),
    ):
        rankings = str(options.pop("rankings"))
        with pytest.raises(ConfigError, match=message):
            flag.run(FlagConfig(rankings=rankings, output=str(tmp_path / "run"), **options))
        assert not (tmp_path / "run").exists()


def test_a_removal_is_followed_from_the_request_to_the_bytes_that_are_gone(place, tmp_path, capsys):
    _, removals = flagged(place, tmp_path / "run", scorers=("pii",))
    run, letter, guide = tmp_path / "run", removals["letter"], removals["guide"]
    config = ExplainConfig(run=str(run), id="guide")
    assert explain.run(config)[-1] == "no decision stands: nothing is removed"
    spans = tuple(map(tuple, letter["spans"]))
    decisions = [Entry("Ann", "guide", guide["sha256"], "approved", reason="false \x1b[2J\u202e")]
    append(run, [*decisions, Entry("Ann", "letter", letter["sha256"], "approved", "redact", spans)])
    corpus, index_folder = str(place / "corpus.jsonl"), tmp_path / "index"
    shutil.copytree(place / "index", index_folder)
    clean.run(CleanConfig(corpus=corpus, removals=str(run), output=str(tmp_path / "cleaned")))
    purge.run(PurgeConfig(index=str(index_folder), removals=str(run)))
    options = {"cleaned": (str(tmp_path / "cleaned"),), "certificates": (f"{index_folder}.purged-2.json",)}
    lines = explain.run(ExplainConfig(run=str(run), id="guide", **options))
    text = "\n".join(lines)
    assert lines[0] == "request oz (false_fact)" and "proposed: remove, by 'default, rule" not in lines[0]
    for told in (
        "output complained of 'Mantua, every guide says'; the model was not asked",
        f"passage {corpus}, row 52",
        "decision 1, ",
        "'Ann': approved (remove): 'false ⟦ESC⟧[2J⟦U+202E⟧'",
        f"text with the sha256 {guide['sha256']}; its text is kept in removed/",
        "now: no record has this id",
        "purged in generation 2",
        "examples/00000-00000.parquet, sha256 ",
    ):
        assert told in text, told
    redacted = "\n".join(explain.run(ExplainConfig(run=str(run), id="letter", **options)))
    assert "now: 'Prospero of Milan can be reached at [REDACTED] about books and storms.'" in redacted
    assert "approved (redact of characters 36 to 59)" in redacted
    with pytest.raises(ConfigError, match=r"--id: expected an example that .* has evidence about, found 'nobody'"):
        explain.run(ExplainConfig(run=str(run), id="nobody"))
    explain.print_result(lines)
    assert capsys.readouterr().out == text + "\n"
    kept = explain.run(ExplainConfig(run=str(run), id="oz-0", **options)) if "oz-0" in removals else []
    assert not kept or kept[-1].endswith("the purge did not remove this example")


def test_a_runs_own_files_are_read_with_its_ledger_and_the_control_is_as_large_as_what_is_approved(place, tmp_path):
    policy = tmp_path / "p.yaml"
    policy.write_text("name: all\napprove: true\nrules: [{when: {category: false_fact, rank: 1}, propose: remove}]\n")
    _, removals = flagged(place, tmp_path / "run", policy=str(policy))
    run, by_policy = tmp_path / "run", [i for i, r in removals.items() if r["decision"] == "approved"]
    assert {"guide", "guide-copy"} == set(by_policy) and len(removals) > 3
    assert [r.example_id for r in read_approved(str(run / "removals.jsonl"))] == by_policy
    append(run, [Entry("Ann", "guide", removals["guide"]["sha256"], "rejected")])
    for path in (run, run / "removals.jsonl"):
        assert [r.example_id for r in read_approved(str(path))] == ["guide-copy"]
    control = read_approved(str(run / "control_removals.jsonl"))
    assert len(control) == 1 and control[0].example_id not in removals
    copied = shutil.copy(run / "removals.jsonl", tmp_path / "removals.jsonl")
    assert [r.example_id for r in read_approved(str(copied))] == by_policy  # a file on its own says what it says


def test_the_chain_tells_what_each_prompt_was_answered_and_forges_no_line(place, tmp_path, capsys):
    explain.print_result(["a\nb \x1b[2J"])
    assert capsys.readouterr().out == "a\\nb ⟦ESC⟧[2J\n"
