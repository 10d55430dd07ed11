"""Records that are very large, and very many: `index` takes both in bounded memory."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines.storage import read_manifest

pytestmark = pytest.mark.runners
ROOT = Path(__file__).parents[2]


def index_of(corpus: Path, output: Path, *options: str) -> float:
    """Indexes in a process of its own; the peak of its memory beyond that of one that only loads the library, GiB."""
    told = "print([s for s in open('/proc/self/status') if s.startswith('VmHWM')][0].split()[1])"
    job = f"import sys; from pipelines.__main__ import main; code = main(sys.argv[1:]); {told}; sys.exit(code)"
    bare = f"import pipelines.index; {told}"
    arguments = ["index", "--corpus", str(corpus), "--output", str(output), "--quiet", *options]
    peaks = [
        int(subprocess.run([sys.executable, "-c", *command], cwd=ROOT, check=True, capture_output=True).stdout)
        for command in ([bare], [job, *arguments])
    ]
    return (peaks[1] - peaks[0]) / 2**20


def test_a_line_of_100_mb_is_passages_that_cover_it(tmp_path):
    words = " ".join(f"word{n % 5000}" for n in range(11_000_000))[: 10**8]
    with open(tmp_path / "c.jsonl", "w") as file:
        for name, text in (("before", "A short one."), ("long", words), ("after", "Another short one.")):
            file.write(json.dumps({"id": name, "text": text}) + "\n")
    peak = index_of(tmp_path / "c.jsonl", tmp_path / "index", "--num_pseudo_facts", "5")
    assert read_manifest(str(tmp_path / "index"), "index").counts["kept"] == 3
    covered = 0
    for path in sorted((tmp_path / "index/examples").iterdir()):
        table = pq.read_table(path, columns=["example_id", "start", "end", "text"])
        for row in table.to_pylist():
            if row["example_id"] == "long":
                assert row["start"] <= covered < row["end"] and words[row["start"] : row["end"]] == row["text"]
                covered = row["end"]
    assert covered == len(words)
    assert peak < 1.0  # the line, its JSON and its text take 0.3 GiB


def test_a_million_empty_documents_are_a_million_dead_letters(tmp_path):
    with open(tmp_path / "c.jsonl", "w") as file:
        file.writelines(f'{{"id": "{n}", "text": ""}}\n' for n in range(1_000_000))
        file.write('{"id": "one", "text": "The only one that says something."}\n')
    peak = index_of(tmp_path / "c.jsonl", tmp_path / "index", "--max_dead_fraction", "1")
    manifest = read_manifest(str(tmp_path / "index"), "index")
    assert manifest.counts == {"in": 1_000_001, "kept": 1, "removed": 0, "dead": 1_000_000}
    assert (tmp_path / "index/dead_letters/00000.jsonl").read_bytes().count(b"\n") == 1_000_000
    assert peak < 0.1
