"""An index job that is killed again and again ends with the bytes of one that was left in peace; two do not mix."""

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from glob import glob
from pathlib import Path
from random import Random

import pytest

from pipelines.storage import MANIFEST, read_manifest
from schemas.manifest import Manifest
from tests import tiny
from tests.pipelines.conftest import corpus_rows, write_jsonl

pytestmark = pytest.mark.runners
ROOT = Path(__file__).parents[2]
KILLS = 10
Start = Callable[[Path], subprocess.Popen]


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Start:
    """Starts an index job of 3 files and 11 shards: words, vectors of the corpus, gradients of a tiny model."""
    room, random = tmp_path_factory.mktemp("killed"), Random(0)
    rows = [row | {"v": [random.gauss(0, 1) for _ in range(8)]} for row in corpus_rows()]
    for number in range(3):
        write_jsonl(room / f"{number}.jsonl", rows[number::3])
    model = tiny.save(tiny.gpt2(), room / "model")
    options = ["--embedding_field", "v", "--checkpoints", model, "--projection_dim", "4", "--num_pseudo_facts", "10"]
    options += ["--passages_per_shard", "5", "--max_tokens", "30", "--overlap", "4", "--quiet"]

    def started(output: Path) -> subprocess.Popen:
        command = [
            sys.executable,
            "-m",
            "pipelines",
            "index",
            "--corpus",
            str(room / "*.jsonl"),
            "--output",
            str(output),
        ]
        return subprocess.Popen([*command, *options], cwd=ROOT, stderr=subprocess.PIPE, text=True)

    return started


def records_of(output: Path) -> int:
    # The job may be deleting them: Path.glob would raise.
    return len(glob(f"{output.parent}/.{output.name}.partial/.stages/[!.]*/*.json"))


def wait_for(condition: Callable[[], object], process: subprocess.Popen) -> None:
    while not condition():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.001)


@pytest.fixture(scope="module")
def in_peace(start, tmp_path_factory) -> tuple[Manifest, int]:
    """(the manifest of an undisturbed job, how many records its shards leave)."""
    output, most = tmp_path_factory.mktemp("peace") / "index", 0
    process = start(output)
    while process.poll() is None:
        most = max(most, records_of(output))
        time.sleep(0.001)
    assert process.returncode == 0, process.stderr.read()
    return read_manifest(str(output), "index"), most


def test_ten_kills_at_random_moments_leave_the_same_bytes(start, in_peace, tmp_path):
    manifest, most = in_peace
    assert most > 40
    output, random = tmp_path / "index", Random(0)
    for wanted in sorted(random.sample(range(1, most - 3), KILLS)):
        before, process = records_of(output), start(output)
        wait_for(lambda wanted=wanted: records_of(output) >= wanted, process)
        time.sleep(random.uniform(0, 0.02))
        assert process.poll() is None, "it ended before it was killed"
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not output.exists() and records_of(output) >= max(before, wanted)  # what is finished stays
    process = start(output)
    _, told = process.communicate()
    assert process.returncode == 0, told
    resumed = read_manifest(str(output), "index")
    assert resumed.files == manifest.files and resumed.counts == manifest.counts
    assert resumed.details == manifest.details
    for info in resumed.files:
        assert hashlib.sha256((output / info.name).read_bytes()).hexdigest() == info.sha256
    on_disk = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}
    assert on_disk == {info.name for info in resumed.files} | {MANIFEST, "metrics.json"}
    assert os.listdir(tmp_path) == ["index"]


def test_of_two_jobs_that_start_on_one_output_one_is_refused_and_the_other_finishes(start, in_peace, tmp_path):
    output, lock = tmp_path / "index", tmp_path / ".index.lock"
    both = {process.pid: process for process in (start(output), start(output))}
    holder: list[int] = []

    def held() -> bool:
        holder[:] = map(int, re.findall(r"process (\d+) on", lock.read_text() if lock.exists() else ""))
        return bool(holder)

    jobs = list(both.values())
    try:
        wait_for(held, jobs[0])
        first = both.pop(holder[0])
        first.send_signal(signal.SIGSTOP)  # so that it is there when the other one comes
        (second,) = both.values()
        _, told = second.communicate(timeout=60)
        assert second.returncode == 2 and f"found one at it (process {first.pid} on " in told
        first.send_signal(signal.SIGCONT)
        _, told = first.communicate(timeout=60)
        assert first.returncode == 0, told
    finally:
        for job in jobs:
            job.kill()
            job.wait()
    assert read_manifest(str(output), "index").files == in_peace[0].files
    assert os.listdir(tmp_path) == ["index"]
