"""Output folders: one job at a time, a full disk, a place that cannot be written to."""

import errno
import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from apache_beam.io.filesystems import FileSystems

from pipelines import clean, evaluate, index, trace, train
from pipelines.config import CleanConfig, EvaluateConfig, IndexConfig, TraceConfig, TrainConfig
from pipelines.stage import Done, RunShard, Shard, run_stage
from pipelines.storage import MANIFEST, OutputFolder, output_lock, read_manifest, verified
from schemas.errors import ArtifactMismatch, ConfigError, DiskFull
from schemas.manifest import Manifest
from schemas.records import text_sha256
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


def test_a_job_killed_at_its_very_end_is_unfinished_and_ends_anew(tmp_path, monkeypatch):
    def killed(paths):
        raise KeyError("killed")

    with monkeypatch.context() as patch, pytest.raises(KeyError), OutputFolder(str(tmp_path / "out"), {}) as output:
        patch.setattr(FileSystems, "delete", killed)  # the plan goes once the manifest stands
        finish(output)
    assert sorted(os.listdir(tmp_path / ".out.partial")) == [MANIFEST, "plan.json"]
    with OutputFolder(str(tmp_path / "out"), {}) as output:
        assert os.listdir(output.path) == ["plan.json"]
        finish(output)
    assert os.listdir(tmp_path / "out") == [MANIFEST]


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
    os_replace = os.replace

    def full(source, target):
        if str(target).endswith("merged"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), target)
        os_replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DiskFull, match="merged"), OutputFolder(str(tmp_path / "out"), {}) as output:
        output.write("merged", b"data", 1)
    assert os.listdir(tmp_path / ".out.partial") == ["plan.json"]


def trace_into(folder: Path, index_folder: Path, facts: str) -> None:
    trace.run(TraceConfig(index=str(index_folder), facts=facts, output=str(folder / "rankings")))


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def test_each_file_of_an_index_is_compared_before_it_is_read_and_named(tmp_path, built_index, facts):
    spoiled = tmp_path / "index"
    shutil.copytree(built_index, spoiled)
    # An update reads the ids' files and the sample, a search does not.
    names = [info.name for info in read_manifest(built_index, "index").files]
    names = [name for name in names if not name.startswith(("ids/", "sample"))]
    assert {name.split("/")[0] for name in names} == {"examples", "bm25", "dense", "gradients"}
    for name in names:
        whole = (spoiled / name).read_bytes()
        flip_a_bit(spoiled / name)
        with pytest.raises(ArtifactMismatch, match=rf"{name}: expected {len(whole)} bytes with the sha256 .*restore"):
            trace_into(tmp_path, spoiled, facts)
        (spoiled / name).write_bytes(whole)
    (spoiled / name).write_bytes(whole[:-1])
    with pytest.raises(ArtifactMismatch, match=rf"{name}: expected .*found {len(whole) - 1} bytes"):
        trace_into(tmp_path, spoiled, facts)
    (spoiled / name).unlink()
    with pytest.raises(ArtifactMismatch, match=rf"{name}: expected .*found no such file"):
        trace_into(tmp_path, spoiled, facts)
    assert os.listdir(tmp_path) == ["index"]
    (spoiled / name).write_bytes(whole)
    trace_into(tmp_path, spoiled, facts)
    assert (tmp_path / "rankings" / MANIFEST).exists()


def test_a_file_is_hashed_once_a_job_and_again_when_it_changed(tmp_path, monkeypatch):
    hashed, digest = [], hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, name: hashed.append(file.name) or digest(file, name))
    with OutputFolder(str(tmp_path / "out"), {}) as output:
        manifest = Manifest("corpus", {}, {}, {"in": 0, "kept": 0, "removed": 0, "dead": 0})
        info = output.write("a", b"data", 1)
        assert verified(output.path, "a") == f"{output.path}/a"  # no manifest, nothing to compare with
        output.finish(replace(manifest, files=[info]))
    path = tmp_path / "out/a"
    assert verified(str(tmp_path / "out"), "a") == verified(str(tmp_path / "out"), "a") == str(path)
    assert hashed == [str(path)]
    path.write_bytes(b"DATA")
    os.utime(path, (1, 1))
    with pytest.raises(ArtifactMismatch, match="out/a: expected 4 bytes"):
        verified(str(tmp_path / "out"), "a")
    assert len(hashed) == 2


def test_an_edited_manifest_and_a_changed_ranking_are_refused(tmp_path, built_index, facts, room):
    trace_into(tmp_path, built_index, facts)
    manifest = tmp_path / "rankings" / MANIFEST
    flip_a_bit(tmp_path / "rankings/rankings.jsonl")
    config = EvaluateConfig(rankings=str(tmp_path / "rankings"), facts=facts)
    with pytest.raises(ArtifactMismatch, match=r"rankings\.jsonl: expected"):
        evaluate.run(config)
    manifest.write_text(manifest.read_text().replace('"top_k": 100', '"top_k": 10'))
    with pytest.raises(ArtifactMismatch, match=r"rankings/manifest\.json: .* it was changed after it was written"):
        evaluate.run(config)


def test_a_cleaned_corpus_is_read_only_as_its_manifest_knows_it(tmp_path):
    rows = corpus_rows()
    corpus = write_jsonl(tmp_path / "c.jsonl", rows)
    sha = text_sha256(rows[0]["text"])
    removal = {"example_id": rows[0]["id"], "sha256": sha, "reason": "r", "decision": "approved", "decided_by": "x"}
    removals = write_jsonl(tmp_path / "r.jsonl", [removal])
    clean.run(CleanConfig(corpus=corpus, removals=removals, output=str(tmp_path / "cleaned")))
    config = IndexConfig(corpus=str(tmp_path / "cleaned"), output=str(tmp_path / "index"))
    file = tmp_path / "cleaned/corpus/c.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b"rained", b"snowed"))
    for verb in (lambda: index.run(config), lambda: train.run(TrainConfig(corpus=config.corpus, output=config.output))):
        with pytest.raises(ArtifactMismatch, match=r"cleaned/corpus/c\.jsonl: expected .*restore the file"):
            verb()
    assert not (tmp_path / "index").exists()
    file.write_bytes(whole)
    assert index.run(config).counts["kept"] == len(rows) - 1


@pytest.mark.parametrize("spoil", ["missing", "short", "record"])
def test_a_shard_that_has_lost_a_file_is_worked_again(tmp_path, monkeypatch, spoil):
    worked, process = [], RunShard.process

    def noting(self, shard):
        worked.append(shard.name)
        return process(self, shard)

    monkeypatch.setattr(RunShard, "process", noting)
    monkeypatch.setitem(ROOM, "left", 10**9)
    shards = [Shard(str(n), {"name": str(n), "size": 100}) for n in range(3)]
    with pytest.raises(KeyError), OutputFolder(str(tmp_path / "out"), {}) as output:
        run_stage("s", shards, filling, output)
        raise KeyError("killed")
    place = tmp_path / ".out.partial"
    if spoil == "record":
        (place / ".stages/s/1.json").unlink()
    elif spoil == "missing":
        (place / "1.bin").unlink()
    else:
        (place / "1.bin").write_bytes(b"half")
    with OutputFolder(str(tmp_path / "out"), {}) as output:
        run_stage("s", shards, filling, output)
        finish(output)
    assert worked == ["0", "1", "2", "1"]
    assert (tmp_path / "out/1.bin").stat().st_size == 100


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
