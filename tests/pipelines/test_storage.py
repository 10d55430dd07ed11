"""Output folders: one job at a time, a full disk, a place that cannot be written to."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipelines import index
from pipelines.config import IndexConfig
from pipelines.stage import Done, Shard, run_stage
from pipelines.storage import MANIFEST, OutputFolder, output_lock
from schemas.errors import ConfigError, DiskFull
from schemas.manifest import Manifest
from tests.pipelines.conftest import corpus_rows, write_jsonl

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time
from pipelines.storage import OutputFolder
with OutputFolder(sys.argv[1], {}):
    print("held", flush=True)
    time.sleep(60)
"""


def hold(path: Path) -> subprocess.Popen:
    """Another process in the middle of writing an output."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def finish(output: OutputFolder) -> None:
    output.finish(Manifest("corpus", {}, {}, {"in": 0, "kept": 0, "removed": 0, "dead": 0}))


def test_a_second_job_on_an_output_is_refused_and_told_who_has_it(tmp_path):
    process = hold(tmp_path / "out")
    try:
        with (
            pytest.raises(ConfigError, match=rf"no other job writes, found one at it \(process {process.pid} on .+\)"),
            OutputFolder(str(tmp_path / "out"), {}),
        ):
            raise AssertionError("both are in")
        assert (tmp_path / ".out.partial/plan.json").exists()  # the first one's
    finally:
        process.kill()
        process.wait()
    with OutputFolder(str(tmp_path / "out"), {}) as output:  # a killed job holds nothing
        finish(output)
    assert os.listdir(tmp_path) == ["out"]


def test_jobs_on_two_outputs_and_one_after_another_go_on(tmp_path):
    with OutputFolder(str(tmp_path / "one"), {}) as one, OutputFolder(str(tmp_path / "two"), {}) as two:
        finish(one)
        finish(two)
    with (
        output_lock(str(tmp_path / "one")),
        pytest.raises(ConfigError, match="found one"),
        output_lock(str(tmp_path / "one") + "/"),
    ):
        raise AssertionError("both are in")
    with output_lock(str(tmp_path / "one")):
        pass
    assert sorted(os.listdir(tmp_path)) == ["one", "two"]


def test_an_error_lets_go_of_the_output(tmp_path):
    for error in (ConfigError("wrong"), KeyError("a bug")):
        with pytest.raises(type(error)), OutputFolder(str(tmp_path / "out"), {}):
            raise error
    with OutputFolder(str(tmp_path / "out"), {}) as output:
        finish(output)


def test_an_output_that_cannot_be_written_is_refused_with_the_remedy(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    config = IndexConfig(corpus=write_jsonl(tmp_path / "c.jsonl", corpus_rows()), output=str(tmp_path / "file/index"))
    with pytest.raises(
        ConfigError, match=r"file/index: expected a place that can be written to, found: .*another --out"
    ):
        index.run(config)
    makedirs = os.makedirs

    def read_only(path, *args, **options):
        if str(path).startswith(str(tmp_path)):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        makedirs(path, *args, **options)

    monkeypatch.setattr(os, "makedirs", read_only)
    with pytest.raises(ConfigError, match="Read-only file system"), OutputFolder(str(tmp_path / "out"), {}):
        pass
    assert sorted(os.listdir(tmp_path)) == ["c.jsonl", "file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="permission bits do not stop root")
def test_a_folder_without_permission_is_refused(tmp_path):
    (tmp_path / "shut").mkdir(mode=0o500)
    with pytest.raises(ConfigError, match="Permission denied"), OutputFolder(str(tmp_path / "shut/out"), {}):
        pass


ROOM = {"left": 10**9}


def filling(spec: dict, folder: str, out: Path) -> Done:
    """Writes until the pretended room has gone."""
    if ROOM["left"] < spec["size"]:
        raise OSError(spec["errno"], os.strerror(spec["errno"]))
    ROOM["left"] -= spec["size"]
    (out / f"{spec['name']}.bin").write_bytes(bytes(spec["size"]))
    return Done({"in": 1}, {f"{spec['name']}.bin": 1})


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_keeps_what_is_finished_and_the_same_job_resumes(tmp_path, monkeypatch, number):
    shards = [Shard(str(n), {"name": str(n), "size": 100, "errno": number}) for n in range(4)]
    monkeypatch.setitem(ROOM, "left", 250)
    with (
        pytest.raises(
            DiskFull, match=rf"out: expected room .* found a full disk or quota \(.*{os.strerror(number)}.*\)"
        ),
        OutputFolder(str(tmp_path / "out"), {}) as output,
    ):
        run_stage("s", shards, filling, output)
    assert os.listdir(tmp_path) == [".out.partial"]
    kept = sorted(path.name for path in (tmp_path / ".out.partial").glob("*.bin"))
    assert kept == ["0.bin", "1.bin"]
    monkeypatch.setitem(ROOM, "left", 200)  # enough for the two that are left, not for all four
    with OutputFolder(str(tmp_path / "out"), {}) as output:
        run_stage("s", shards, filling, output)
        finish(output)
    assert (tmp_path / "out" / MANIFEST).exists() and len(list((tmp_path / "out").glob("*.bin"))) == 4


def test_a_full_disk_in_the_driver_is_told_alike_and_leaves_no_half_file(tmp_path, monkeypatch):
    replace = os.replace

    def full(source, target):
        if str(target).endswith("merged"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DiskFull, match="merged"), OutputFolder(str(tmp_path / "out"), {}) as output:
        output.write("merged", b"data", 1)
    assert os.listdir(tmp_path / ".out.partial") == ["plan.json"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    told = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)], capture_output=True, text=True
    )
    if told.returncode:
        pytest.skip(f"no small file system can be mounted here: {told.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def saving(spec: dict, folder: str, out: Path) -> Done:
    """A short write of numpy's, which says neither errno nor cause."""
    np.save(out / f"{spec['name']}.npy", np.arange(spec["numbers"]))
    return Done({"in": 1}, {f"{spec['name']}.npy": 1})


def test_a_short_write_on_a_disk_that_is_full_is_known_for_what_it_is(small_disk):
    shards = [Shard(str(n), {"name": str(n), "numbers": 120_000}) for n in range(4)]
    with pytest.raises(DiskFull, match="No space left on device"), OutputFolder(str(small_disk / "out"), {}) as output:
        run_stage("s", shards, saving, output)
    assert [path.name for path in small_disk.iterdir()] == [".out.partial"]
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    with OutputFolder(str(small_disk / "out"), {}) as output:
        run_stage("s", shards, saving, output)
        finish(output)
    assert len(list((small_disk / "out").glob("*.npy"))) == 4


def test_an_index_on_a_full_disk_is_no_index_until_there_is_room(small_disk, tmp_path):
    rows = [{"id": str(n), "text": f"{os.urandom(400).hex()} {n}"} for n in range(4000)]
    corpus = write_jsonl(tmp_path / "c.jsonl", rows)

    def build(output: Path) -> Manifest:
        return index.run(IndexConfig(corpus=corpus, output=str(output), passages_per_shard=500, num_pseudo_facts=5))

    with pytest.raises(DiskFull, match=r"index: expected room .*make room and run the same command"):
        build(small_disk / "index")
    assert not list(small_disk.rglob(MANIFEST))
    subprocess.run(["mount", "-o", "remount,size=40m", str(small_disk)], check=True)
    resumed, whole = build(small_disk / "index"), build(tmp_path / "whole")
    assert [f.sha256 for f in resumed.files] == [f.sha256 for f in whole.files]
    shutil.rmtree(small_disk / "index")


def test_the_error_has_an_exit_code_of_its_own(tmp_path, monkeypatch, capsys):
    from pipelines.__main__ import main

    def full(self):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(OutputFolder, "_open", full)
    corpus = write_jsonl(tmp_path / "c.jsonl", corpus_rows())
    assert main(["index", "--corpus", corpus, "--output", str(tmp_path / "index")]) == DiskFull.exit_code
    assert "found a full disk or quota" in capsys.readouterr().err
