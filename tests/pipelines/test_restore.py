"""restore: the parent's bytes come back, all or some; what is not here is refused by name."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import clean, restore
from pipelines.__main__ import main
from pipelines.config import CleanConfig, RestoreConfig
from pipelines.corpus import create_corpus_file
from schemas.errors import ArtifactMismatch, ConfigError
from schemas.records import Removal, text_sha256
from schemas.removals import removals_to_jsonl
from tests.pipelines.test_clean import corpus_of, unpacked

# Spacing, escapes and a missing last line end that a parse and a dump would not keep; first, neighbours and last go.
LINES = [
    b'\xef\xbb\xbf{"text": "Zero.",  "id": "r0"}\n',
    *(b'{"id":"r%d", "text": "N\\u00famber %d."}\r\n' % (n, n) for n in range(1, 9)),
    b'{"text": "The last.", "id": "r9", "x": 1.50}',
]
TEXTS = {"r0": "Zero.", "r9": "The last."} | {f"r{n}": f"Númber {n}." for n in range(1, 9)}


def cleaned(place: Path, corpus, taken: dict, name: str = "v1", **options):
    """A version without the records of `taken`: True removes, a span redacts."""
    rows = [
        Removal(i, text_sha256(text), "approved", "", action="remove" if span is True else "redact", spans=spans)
        for i, span in taken.items()
        for text, spans in [(TEXTS[i], () if span is True else (span,))]
    ]
    (place / "r.jsonl").write_bytes(removals_to_jsonl(rows))
    config = CleanConfig(corpus=str(corpus), removals=str(place / "r.jsonl"), output=str(place / name), **options)
    return clean.run(config)


def restored(place: Path, *ids: str, source: str = "v1", name: str = "back"):
    return restore.run(RestoreConfig(corpus=str(place / source), output=str(place / name), ids=ids))


TAKEN = [
    {"r0": True},
    {"r9": True},
    {"r0": True, "r1": True, "r8": True, "r9": True},
    {"r3": (0, 6), "r4": True, "r5": (2, 3), "r6": True},
    {"r9": (0, 3), "r0": (1, 2)},
    dict.fromkeys(TEXTS, True),
]


@pytest.mark.parametrize("taken", TAKEN)
@pytest.mark.parametrize("name", ["c.jsonl", "c.jsonl.gz"])
def test_a_restored_file_has_the_bytes_of_the_parents(tmp_path, taken, name):
    with create_corpus_file(tmp_path / name) as file:
        file.write(b"".join(LINES))
    cleaned(tmp_path, tmp_path / name, taken)
    assert unpacked(tmp_path / "v1/corpus" / name) != b"".join(LINES)
    manifest = restored(tmp_path)
    assert unpacked(tmp_path / "back/corpus" / name) == b"".join(LINES)
    assert manifest.counts == {"in": 10, "kept": 10, "removed": 0, "dead": 0}
    assert (manifest.details["version"], manifest.details["restored"]) == (2, len(taken))
    assert not (tmp_path / "back/removed").exists()


def test_only_the_records_that_are_named_come_back(tmp_path):
    (tmp_path / "c.jsonl").write_bytes(b"".join(LINES))
    cleaned(tmp_path, tmp_path / "c.jsonl", {"r3": True, "r4": (0, 6), "r5": True, "r9": True})
    restored(tmp_path, "r5", "r9")
    redacted = LINES[4].replace(b"N\\u00famber", b"[REDACTED]")
    expected = [*LINES[:3], redacted, *LINES[5:]]
    assert corpus_of(tmp_path / "back") == {"c.jsonl": b"".join(expected)}
    rows = [json.loads(line) for line in (tmp_path / "back/removed/earlier.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["r3", "r4"]
    # What is still missing is done; what came back is taken out again.
    again = cleaned(tmp_path, tmp_path / "back", {"r3": True, "r4": (0, 6), "r5": True}, "v3")
    assert (again.details["already_done"], again.counts["removed"], again.details["version"]) == (2, 1, 3)


def test_what_is_not_here_is_refused_by_name(tmp_path):
    (tmp_path / "c.jsonl").write_bytes(b"".join(LINES))
    cleaned(tmp_path, tmp_path / "c.jsonl", {"r3": True})
    cleaned(tmp_path, tmp_path / "v1", {"r4": True, "r5": (0, 6)}, "v2", erase=True)
    cleaned(tmp_path, tmp_path / "v2", {"r3": True}, "v3")
    with pytest.raises(ConfigError, match=r"found 1 others \(nowhere\)"):
        restored(tmp_path, "r3", "nowhere")
    with pytest.raises(ConfigError, match=r"found 1 others \(r3 \(version 1 took it out\)\)"):
        restored(tmp_path, "r3", source="v2")
    with pytest.raises(ArtifactMismatch, match=r"found 2 records that were erased \(r4, r5\)"):
        restored(tmp_path, source="v2")
    with pytest.raises(ConfigError, match="expected records that were taken out, found none"):
        restored(tmp_path, source="v3")
    assert "back" not in os.listdir(tmp_path)


def test_parquet_and_text_files_come_back(tmp_path):
    table = pa.table(
        {
            "id": list(TEXTS),
            "text": pa.array(TEXTS.values(), pa.large_string()),
            "n": pa.array([None, *range(9)], pa.int8()),
        }
    ).replace_schema_metadata({"owner": "me"})
    (tmp_path / "in").mkdir()
    pq.write_table(table, tmp_path / "in/c.parquet", row_group_size=3, compression="snappy")
    for name in ("x.txt", "y.txt", "z.txt"):
        (tmp_path / "in" / name).write_bytes(f"{name}\r\nis kept".encode())
        TEXTS[name] = f"{name}\r\nis kept"
    taken = {"r0": True, "r1": (0, 2), "r4": True, "r5": True, "r9": (0, 3), "x.txt": True, "y.txt": (0, 1)}
    cleaned(tmp_path, tmp_path / "in/*", taken)
    assert sorted(os.listdir(tmp_path / "v1/corpus")) == ["c.parquet", "y.txt", "z.txt"]
    restored(tmp_path)
    back = pq.ParquetFile(tmp_path / "back/corpus/c.parquet")
    assert back.read().equals(table) and back.schema_arrow.metadata[b"owner"] == b"me"
    assert back.metadata.row_group(0).column(0).compression == "SNAPPY"
    for name in ("x.txt", "y.txt", "z.txt"):
        assert (tmp_path / "back/corpus" / name).read_bytes() == (tmp_path / "in" / name).read_bytes()
    restored(tmp_path, "r4", name="some")
    found = pq.read_table(tmp_path / "some/corpus/c.parquet")["id"].to_pylist()
    assert found == [i for i in table["id"].to_pylist() if i not in ("r0", "r5")]
    assert sorted(os.listdir(tmp_path / "some/corpus")) == ["c.parquet", "y.txt", "z.txt"]


def test_a_changed_removed_file_is_refused(tmp_path):
    (tmp_path / "c.jsonl").write_bytes(b"".join(LINES))
    cleaned(tmp_path, tmp_path / "c.jsonl", {"r3": True})
    path = tmp_path / "v1/removed/00000.jsonl"
    path.write_bytes(path.read_bytes().replace(b"mber 3", b"mber 4"))
    with pytest.raises(ArtifactMismatch, match=r"removed/00000.jsonl: expected .* it was changed or damaged"):
        restored(tmp_path)


def test_the_command_line_restores(tmp_path, capsys):
    (tmp_path / "c.jsonl").write_bytes(b"".join(LINES))
    cleaned(tmp_path, tmp_path / "c.jsonl", {"r3": True, "r4": True})
    arguments = ["--corpus", str(tmp_path / "v1"), "--output", str(tmp_path / "back"), "--ids", "r3", "r4", "--quiet"]
    assert main(["restore", *arguments]) == 0
    assert corpus_of(tmp_path / "back") == {"c.jsonl": b"".join(LINES)}
    assert main(["restore", *arguments]) == 2 and "found a finished one" in capsys.readouterr().err
