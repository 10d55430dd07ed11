"""What the quality benchmark reads, what it refuses and with which words, and what it keeps."""

import json
from pathlib import Path

import pytest

from bench.quality import peers, synthetic
from bench.quality.__main__ import main, parse
from bench.quality.data import load, read
from bench.quality.kept import KEY, Kept, open_output
from schemas.errors import ConfigError
from tests.bench.conftest import PEOPLE, write_folder

CORPUS = [{"id": "b", "text": "Two.", "source": "s"}, {"id": "a", "text": "One.", "source": "s"}]
FACT = {
    "id": "f",
    "relation": "r",
    "subject": "S",
    "object": "O",
    "prompt": "S is",
    "target": " O",
    "suffix": ".",
    "proponents": ["b"],
}


def test_examples_stand_in_the_order_of_ids_and_zipped_data_is_the_same(tmp_path):
    plain = read(write_folder(tmp_path / "plain", CORPUS, [FACT]), "x")
    zipped = read(write_folder(tmp_path / "zipped", CORPUS, [FACT], zipped=True), "x")
    assert (plain.ids, plain.texts) == (["a", "b"], ["One.", "Two."])
    assert plain.proponents(plain.facts[0]) == {1}
    assert plain.sha256 == zipped.sha256
    changed = read(write_folder(tmp_path / "changed", [*CORPUS, {"id": "c", "text": ""}], [FACT]), "x")
    assert changed.sha256 != plain.sha256


@pytest.mark.parametrize(
    ("corpus", "facts", "told"),
    [
        ([*CORPUS, CORPUS[0]], [FACT], "corpus.jsonl, line 3: the id 'b' is used twice"),
        ([{"id": "a"}], [FACT], "corpus.jsonl, line 1: expected an object with the strings id and text"),
        (CORPUS, [FACT | {"proponents": ["z"]}], "fact 'f': expected proponents of .*corpus.jsonl, found 'z'"),
        (CORPUS, [FACT | {"proponents": []}], "fact 'f': expected relation, .* found no proponents; add them"),
        (
            CORPUS,
            [{n: FACT[n] for n in ("id", "prompt", "target")}],
            "found no relation, no subject, no object, no pro",
        ),
        (CORPUS, [], "facts.jsonl: expected at least one fact"),
    ],
)
def test_refusals_say_where_and_why(tmp_path, corpus, facts, told):
    with pytest.raises(ConfigError, match=told):
        read(write_folder(tmp_path, corpus, facts), "x")


def test_a_line_that_is_no_json_is_refused_by_number(tmp_path):
    write_folder(tmp_path, CORPUS, [FACT])
    (tmp_path / "corpus.jsonl").write_text('{"id": "a", "text": "One."}\n{oops\n')
    with pytest.raises(ConfigError, match=r"line 2: expected a JSON object, found b'\{oops'"):
        read(tmp_path, "x")


def test_absent_data_is_said_and_replaced(tmp_path, capsys):
    data = load(tmp_path / "nowhere", tmp_path / "out")
    assert f"looked for it in {tmp_path / 'nowhere'}: no such folder; running on a synthetic" in capsys.readouterr().err
    assert data.name == "synthetic"
    folder = write_folder(tmp_path / "half", CORPUS, [FACT])
    (folder / "facts.jsonl").unlink()
    assert load(folder, tmp_path / "out").sha256 == data.sha256
    assert f"{folder}: it has no facts.jsonl(.gz)" in capsys.readouterr().err
    assert load(write_folder(tmp_path / "whole", CORPUS, [FACT]), tmp_path / "out").name == "whole"


def test_synthetic_facts_are_stated_by_their_proponents():
    corpus, facts = synthetic.generate(people=PEOPLE)
    texts = {row["id"]: row["text"] for row in corpus}
    assert synthetic.generate(people=PEOPLE) == (corpus, facts)
    assert synthetic.generate(seed=1, people=PEOPLE) != (corpus, facts)
    stated = {example for fact in facts for example in fact["proponents"]}
    assert 0 < len(stated) < len(corpus) <= 3 * len(stated)
    by_alias = 0
    for fact in facts:
        for example in fact["proponents"]:
            assert fact["object"] in texts[example]
            assert fact["subject"].split()[-1] in texts[example] or fact["subject"].split()[0] in texts[example]
            by_alias += fact["subject"] not in texts[example]
    assert by_alias > 0
    # Some name both and state another relation: what BM25 alone cannot tell from the fact.
    others = [text for example, text in texts.items() if example not in stated]
    assert any(fact["subject"] in text and fact["object"] in text for fact in facts for text in others)


def test_an_output_that_holds_something_is_refused_without_resume(tmp_path):
    open_output(tmp_path / "new", resume=False)
    open_output(tmp_path / "new", resume=False)
    (tmp_path / "new" / "file").touch()
    with pytest.raises(ConfigError, match="expected a new or empty folder, found files; give another one, or --resume"):
        open_output(tmp_path / "new", resume=False)
    open_output(tmp_path / "new", resume=True)


def test_kept_folders_are_used_again_for_the_same_key_alone(tmp_path, capsys):
    made = []
    kept = Kept(tmp_path)
    first = kept.folder("index", {"data": "1", "k": 1}, made.append)
    assert kept.folder("index", {"k": 1, "data": "1"}, made.append) == first
    assert "used again" in capsys.readouterr().err
    second = kept.folder("index", {"data": "2", "k": 1}, made.append)
    assert "made anew, what is kept in " in capsys.readouterr().err
    assert made == [first, second] and not first.exists()
    (second / KEY).unlink()  # as if stopped
    kept.folder("index", {"data": "2", "k": 1}, made.append)
    assert made == [first, second, second]


def test_only_tracks_that_work_are_offered(capsys):
    for track in ("A", "E"):
        with pytest.raises(SystemExit) as stopped:
            parse([track, "--out", "x"])
        assert stopped.value.code == 2
        assert f"invalid choice: '{track}'" in capsys.readouterr().err
    for track in ("A1", "A2", "B", "C", "D"):
        assert parse([track, "--out", "x"]).track == track


def test_a_peer_is_for_the_tracks_that_have_it(capsys):
    for track in ("A2", "D"):
        for package in peers.PACKAGES:
            assert parse([track, "--out", "x", f"--{package}", "venv/bin"]).programs == {package: Path("venv/bin")}
    with pytest.raises(SystemExit) as stopped:
        parse(["A1", "--out", "x", "--bergson", "venv/bin"])
    assert stopped.value.code == 2
    assert "--bergson: expected it with A2, D, found it with A1" in capsys.readouterr().err


def test_the_command_refuses_an_existing_output(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["A1", "--out", str(tmp_path)]) == 2
    told = capsys.readouterr()
    assert told.out == "" and "--resume to use what is kept in it" in told.err


def test_the_command_prints_one_line(tmp_path, capsys, monkeypatch, encoder):
    folder = write_folder(tmp_path / "data", *synthetic.generate(people=2))
    monkeypatch.setattr("bench.quality.a1.default_encoder", lambda: (encoder, "tiny"))
    command = ["A1", "--data", str(folder), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    result = json.loads(printed)
    assert result == json.loads((tmp_path / "out" / "results.json").read_text())
    assert main([*command, "--resume"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in result.items() if k != "seconds"}
