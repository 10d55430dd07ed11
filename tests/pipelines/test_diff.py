"""diff: records and words counted by hand, for versions, their parents and restored ones."""

import json

import pytest

from pipelines import clean, diff, restore
from pipelines.__main__ import main
from pipelines.config import CleanConfig, DiffConfig, RestoreConfig
from schemas.errors import ConfigError
from schemas.records import Removal, text_sha256
from schemas.removals import removals_to_jsonl
from tests.pipelines.conftest import write_jsonl

ROWS = [
    {"id": "a", "text": "one two three", "source": "wiki"},
    {"id": "b", "text": "four five", "source": "wiki"},
    {"id": "c", "text": "six", "source": "web"},
    {"id": "d", "text": "seven eight nine ten"},
]


@pytest.fixture
def versions(tmp_path):
    """v0 (two files), v1 without b and d and with a span of a less, v2 with d back."""
    (tmp_path / "v0").mkdir()
    write_jsonl(tmp_path / "v0/x.jsonl", ROWS[:3])
    write_jsonl(tmp_path / "v0/y.jsonl", ROWS[3:])
    decided = [Removal(row["id"], text_sha256(row["text"]), "approved", "") for row in (ROWS[1], ROWS[3])]
    decided.append(Removal("a", text_sha256(ROWS[0]["text"]), "approved", "", action="redact", spans=((0, 7),)))
    (tmp_path / "r.jsonl").write_bytes(removals_to_jsonl(decided))
    corpus, removals = str(tmp_path / "v0/*.jsonl"), str(tmp_path / "r.jsonl")
    clean.run(CleanConfig(corpus=corpus, removals=removals, output=str(tmp_path / "v1")))
    restore.run(RestoreConfig(corpus=str(tmp_path / "v1"), output=str(tmp_path / "v2"), ids=("d",)))
    return tmp_path


def test_a_version_against_its_parent_files(versions):
    found = diff.run(DiffConfig(before=str(versions / "v0/*.jsonl"), after=str(versions / "v1")))
    sources = found.pop("sources")
    assert found == {
        "version_before": 0,
        "version_after": 1,
        "kept": 1,
        "redacted": 1,
        "removed": 2,
        "added": 0,
        "refused_before": 0,
        "refused_after": 0,
        "words_before": 3 + 2 + 1 + 4,
        "words_after": 2 + 1,  # "[REDACTED] three", "six"
        "words_lost": 7,
        "share_lost": 0.7,
    }
    assert list(sources) == ["(none)", "wiki", "web"]  # the most lost first
    assert sources["wiki"] == {
        "records_before": 2,
        "records_after": 1,
        "words_before": 5,
        "words_after": 2,
        "words_lost": 3,
        "share_lost": 0.6,
    }


def test_what_came_back_is_added_and_a_version_is_itself(versions):
    found = diff.run(DiffConfig(before=str(versions / "v1"), after=str(versions / "v2")))
    assert (found["version_before"], found["version_after"]) == (1, 2)
    assert [found[name] for name in ("kept", "redacted", "removed", "added", "words_lost")] == [2, 0, 0, 1, -4]
    same = diff.run(DiffConfig(before=str(versions / "v2"), after=str(versions / "v2")))
    assert [same[name] for name in ("kept", "redacted", "removed", "added", "share_lost")] == [3, 0, 0, 0, 0.0]


def test_what_clean_refuses_is_neither_kept_nor_removed(tmp_path):
    path = tmp_path / "x.jsonl"
    write_jsonl(path, [ROWS[0], ROWS[1], ROWS[0], {"id": "z"}])
    removals = tmp_path / "r.jsonl"
    removals.write_bytes(removals_to_jsonl([Removal("b", text_sha256("four five"), "approved", "")]))
    config = CleanConfig(corpus=str(path), removals=str(removals), output=str(tmp_path / "v1"), max_dead_fraction=0.5)
    counts = clean.run(config).counts
    found = diff.run(DiffConfig(before=str(path), after=str(tmp_path / "v1")))
    assert (found["kept"], found["removed"], found["refused_before"]) == (1, 1, 2)
    assert (counts["kept"], counts["removed"], counts["dead"]) == (1, 1, 2)


def test_the_command_line_prints_one_json_line_and_a_table_that_text_cannot_break(tmp_path, capsys):
    for name, rows in (("a", ROWS), ("b", ROWS[:2])):
        (tmp_path / name).mkdir()
        write_jsonl(tmp_path / name / "x.jsonl", [row | {"source": "\x1b[31m[bold]red"} for row in rows])
    arguments = ["--before", str(tmp_path / "a/*.jsonl"), "--after", str(tmp_path / "b/*.jsonl")]
    assert main(["diff", *arguments]) == 0
    told = capsys.readouterr()
    (line,) = told.out.splitlines()
    assert json.loads(line)["removed"] == 2
    assert "\x1b[31m" not in told.err and "[bold]red" in told.err and "50.00%" in told.err
    assert main(["diff", *arguments, "--quiet"]) == 0 and capsys.readouterr().err == ""


def test_corpora_without_a_file_name_in_common_are_refused(versions):
    with pytest.raises(ConfigError, match=r"found no file name in common \(x.jsonl and r.jsonl, for instance\)"):
        diff.run(DiffConfig(before=str(versions / "v1"), after=str(versions / "*.jsonl")))
