"""What `clean` costs beside a loop that does the least that can be asked of it, and beside a bare copy of .gz files.

    python -m bench.clean --records 1000000

Prints one JSON object, one line, last on standard output; progress goes to standard error. The corpus is seeded: FILES
files of JSONL, 20 to 80 words a text (Zipf's law), about 400 bytes a line: paragraphs, not pages; of longer texts a
record's fixed cost, which is what differs, is a smaller part. One record in 1,000 is removed, one in 5,000 redacted.

- `ratio_to_loop`: seconds of the job over those of a loop that reads each line, parses it (`json.loads`, which is what
  `clean` parses with), hashes its text (SHA-256) and writes it. The bar: 1.25.
- `gz_ratio_to_copy`: of the same corpus in .gz files, the job over a copy that reads and writes them with the same
  library (pyarrow) and level, in pieces of 1 MiB, and looks at nothing. The bar: 2.0.
- `beam_share`: the part of the job's time that the same work in a bare loop (over `RunShard`) does not take: Beam's.

Each run is a process of its own with the same imports, timed from after them to the finished folder; the two sides take
turns, `--pairs` times (but 3 for .gz), and a ratio is the median of the pairs'. `cpu_...` are the same ratios of the
seconds that the process had a core, which a busy machine moves less. The first job's output is compared with the input
line by line: `kept_identical` are the lines of the output with the bytes that they had.
"""

import argparse
import hashlib
import itertools
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines import clean, progress, stage
from pipelines.config import CleanConfig
from pipelines.corpus import open_corpus_file
from pipelines.stage import Shard
from schemas.records import Removal, text_sha256
from schemas.removals import removals_to_jsonl

SEED, FILES, VOCABULARY, ZIPF, WORDS = 0, 4, 20_000, 1.07, (20, 80)
REMOVED_EACH, REDACTED_EACH, COPIED_AT_ONCE = 1_000, 5_000, 2**20
GZ_PAIRS = 3


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def lines(count: int) -> Iterator[bytes]:
    """The corpus' lines; its words are drawn 10,000 texts at once."""
    generator, letters = np.random.default_rng(SEED), random.Random(SEED)
    words = ["".join(letters.choices("etaoinshrdlu", k=letters.randint(2, 9))) for _ in range(VOCABULARY)]
    ends = np.cumsum(1.0 / np.arange(1, VOCABULARY + 1) ** ZIPF)
    for begin in range(0, count, 10_000):
        sizes = generator.integers(WORDS[0], WORDS[1] + 1, min(10_000, count - begin))
        drawn = iter(np.searchsorted(ends, generator.random(sizes.sum()) * ends[-1]).tolist())
        for number, size in enumerate(sizes.tolist(), start=begin):
            text = " ".join(words[word] for word in itertools.islice(drawn, size))
            row = {"id": f"d{number:09d}", "text": text, "source": "web", "url": f"https://s{number % 997}.example/"}
            yield json.dumps(row).encode() + b"\n"


def make_corpus(room: Path, count: int) -> None:
    """FILES files in `plain` and, compressed by the library that `clean` uses, in `gz`; and `removals.jsonl`."""
    say(f"writing {count} records")
    for folder in ("plain", "gz"):
        (room / folder).mkdir()
    decided, written = [], lines(count)
    for number in range(FILES):
        with open(room / f"plain/{number}.jsonl", "wb") as file:
            for line in itertools.islice(written, -(-count // FILES)):
                file.write(line)
                row = json.loads(line)
                place = int(row["id"][1:])
                if place % REMOVED_EACH == 7:
                    decided.append(Removal(row["id"], text_sha256(row["text"]), "approved", "bench", "bench"))
                elif place % REDACTED_EACH == 11:
                    spans = {"action": "redact", "spans": ((0, 5), (9, 12))}
                    decided.append(Removal(row["id"], text_sha256(row["text"]), "approved", "bench", "bench", **spans))
        copy(room / f"plain/{number}.jsonl", room / f"gz/{number}.jsonl.gz", read=False)
    (room / "removals.jsonl").write_bytes(removals_to_jsonl(decided))


def copy(source: Path, target: Path, read: bool = True) -> None:
    """A copy to a .gz file, of one where it is `read` as such."""
    with open(source, "rb") as raw, open(target, "wb") as file:
        opened: Any = pa.CompressedInputStream(pa.PythonFile(raw, "r"), "gzip") if read else raw
        with pa.CompressedOutputStream(file, "gzip") as sink:
            while data := opened.read(COPIED_AT_ONCE):
                sink.write(data)


def loop(source: Path, target: Path) -> None:
    with open(source, "rb") as file, open(target, "wb") as sink:
        for line in file:
            fields = json.loads(line)
            hashlib.sha256(fields["text"].encode()).hexdigest()
            sink.write(line)


def run_bare(run_shard: stage.RunShard, shards: list[Shard], beam_args: tuple[str, ...]) -> None:
    for shard in shards:
        list(run_shard.process(shard))


def do_job(room: Path, job: str) -> None:
    """One run, in this process."""
    output, work = room / "output", {"loop": loop, "copy": copy}.get(job)
    shutil.rmtree(output, ignore_errors=True)
    sources = sorted((room / ("gz" if job in ("copy", "clean-gz") else "plain")).iterdir())
    if work:
        output.mkdir()
        for source in sources:
            work(source, output / source.name)
        return
    if job == "bare":
        stage.run_pipeline = run_bare
    corpus = str(sources[0].parent / "*")
    clean.run(CleanConfig(corpus=corpus, removals=str(room / "removals.jsonl"), output=str(output), quiet=True))


def run_job(room: Path, job: str) -> tuple[float, float]:
    """(seconds, seconds of a core) of one run in a process of its own."""
    say(job)
    command = [sys.executable, "-m", "bench.clean", "--room", str(room), "--job", job]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    wall, cpu = json.loads(done.stdout.splitlines()[-1])
    return wall, cpu


def check(room: Path, folder: str) -> int:
    """How many lines of the output have the bytes of the input; raises AssertionError for any other difference."""
    rows = map(json.loads, (room / "removals.jsonl").read_bytes().splitlines())
    decided, same = {row["example_id"]: row["action"] for row in rows}, 0
    for source in sorted((room / folder).iterdir()):
        target = room / "output/corpus" / source.name
        with open_corpus_file(str(source)) as before, open_corpus_file(str(target)) as after:
            for line in before:
                action = decided.get(json.loads(line)["id"])
                if action == "remove":
                    continue
                found = after.readline()
                assert (found == line) != (action == "redact"), f"{source}: {line!r} became {found!r}"
                same += found == line
            assert not after.readline(), f"{source}: the output has more lines"
    return same


def measure(room: Path, records: int, pairs: int) -> dict[str, Any]:
    if not (room / "removals.jsonl").exists():
        make_corpus(room, records)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ("loop", "clean", "bare", "copy", "clean-gz")}
    for number in range(pairs):
        for job in ("loop", "clean", "bare"):
            seconds[job].append(run_job(room, job))
            if number == 0 and job == "clean":
                same = check(room, "plain")
    for _ in range(GZ_PAIRS):
        for job in ("copy", "clean-gz"):
            seconds[job].append(run_job(room, job))
    assert check(room, "gz") == same, "the compressed corpus was not cleaned as the plain one"

    def ratio(job: str, other: str, clock: int = 0) -> float:
        pairs = zip(seconds[job], seconds[other], strict=True)
        return round(statistics.median(a[clock] / b[clock] for a, b in pairs), 4)

    taken = statistics.median(wall for wall, _ in seconds["clean"])
    return {
        "records": records,
        "bytes": sum(path.stat().st_size for path in (room / "plain").iterdir()),
        "ratio_to_loop": ratio("clean", "loop"),
        "gz_ratio_to_copy": ratio("clean-gz", "copy"),
        "cpu_ratio_to_loop": ratio("clean", "loop", 1),
        "cpu_gz_ratio_to_copy": ratio("clean-gz", "copy", 1),
        "beam_share": round(1 - ratio("bare", "clean"), 4),
        "cpu_beam_share": round(1 - ratio("bare", "clean", 1), 4),
        "records_per_second": round(records / taken),
        "kept_identical": same,
        "seconds": {job: [round(wall, 3) for wall, _ in runs] for job, runs in seconds.items()},
        "cpu_seconds": {job: [round(cpu, 3) for _, cpu in runs] for job, runs in seconds.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--pairs", type=int, default=5, help="turns of loop, job and bare loop")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--room", type=Path, help="work here and keep the corpus (default: a temporary folder)")
    options = parser.parse_args()
    progress.set_quiet(True)
    if options.job:
        wall, cpu = time.perf_counter(), time.process_time()
        do_job(options.room, options.job)
        print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu]))
        return
    with tempfile.TemporaryDirectory() as folder:
        room = options.room or Path(folder)
        room.mkdir(parents=True, exist_ok=True)
        print(json.dumps(measure(room, options.records, options.pairs)))


if __name__ == "__main__":
    main()
