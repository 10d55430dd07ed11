"""The one Beam stage: what a process holds, what is kept of a stage's work, and the runners' own counters."""

import json
import tempfile
import threading
import time
from functools import lru_cache
from pathlib import Path

import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from pipelines import index, resources, stage
from pipelines.runners import cores_shared, make_pipeline, run_to_end
from pipelines.stage import METRICS, Done, RunShard, Shard, run_stage
from pipelines.storage import OutputFolder
from schemas.errors import ConfigError
from tests.pipelines.conftest import index_config

SEEN = {"loads": 0, "inside": 0, "most": 0}


@lru_cache(maxsize=1)
def slow_load(path: str) -> str:
    SEEN["loads"] += 1
    time.sleep(0.05)
    return path


def watched(spec: dict, folder: str, out: Path) -> Done:
    """Loads a thing and counts how many are at it at once."""
    SEEN["inside"] += 1
    SEEN["most"] = max(SEEN["most"], SEEN["inside"])
    slow_load("model")
    time.sleep(0.01)
    SEEN["inside"] -= 1
    return Done({"in": spec["rows"], "dead": 1}, {})


def in_threads(folder: Path, job: str) -> None:
    def one(number: int) -> None:
        list(RunShard("s", watched, str(folder), job, quiet=True).process(Shard(f"{number}", {"rows": 3})))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.fixture
def fresh(monkeypatch):
    slow_load.cache_clear()
    SEEN.update(loads=0, inside=0, most=0)
    # As if it stood in one of our modules, whose caches last for a job.
    monkeypatch.setattr(stage, "slow_load", slow_load, raising=False)


def test_threads_of_a_process_load_once_and_work_one_at_a_time(tmp_path, fresh):
    in_threads(tmp_path, "job")
    assert SEEN == {"loads": 1, "inside": 0, "most": 1}
    assert len(list((tmp_path / ".stages/s").glob("*.json"))) == 6


def test_a_worker_that_outlives_a_job_loads_anew_for_the_next(tmp_path, fresh):
    for job, loads in (("first", 1), ("first", 1), ("second", 2)):
        in_threads(tmp_path, job)
        assert SEEN["loads"] == loads


def test_a_model_is_loaded_once_for_all_stages_of_an_index(tmp_path, monkeypatch, corpus, checkpoints, encoder):
    loaded, load = [], resources.load_checkpoint

    def counting(path, *options):
        loaded.append(path)
        return load(path, *options)

    monkeypatch.setattr(resources, "load_checkpoint", counting)
    resources._extractor.cache_clear()
    checkpoint = str(Path(checkpoints, "step-000200"))
    options = {"passages_per_shard": 20, "gradients": "trackstar"}
    index.run(index_config(corpus, tmp_path / "index", checkpoint, encoder, **options))
    assert loaded == [checkpoint]
    loaded.clear()
    index.run(index_config(corpus, tmp_path / "kfac", checkpoint, encoder, passages_per_shard=20))
    assert loaded == [checkpoint] * 2  # once to estimate what the features are whitened by


def test_two_outputs_are_two_jobs_and_one_output_is_one(tmp_path, monkeypatch):
    jobs, process = [], RunShard.process

    def noting(self, shard):
        jobs.append(self.job)
        return process(self, shard)

    monkeypatch.setattr(RunShard, "process", noting)
    for name in ("one", "two"):
        with OutputFolder(str(tmp_path / name), {}) as output:
            for number in range(2):
                run_stage(f"stage-{number}", [Shard("a", {"rows": 1})], watched, output)
    assert jobs[0] == jobs[1] != jobs[2] == jobs[3]


def test_metrics_sum_over_the_shards_those_of_a_killed_run_among_them(tmp_path):
    shards = [Shard(f"{number}", {"rows": number}) for number in range(1, 5)]
    with OutputFolder(str(tmp_path / "out"), {}) as output:
        run_stage("s", shards[:2], watched, output)
        before = json.loads(Path(output.path, METRICS).read_text())["s"]
        run_stage("s", shards, watched, output)
        after = json.loads(Path(output.path, METRICS).read_text())["s"]
    assert before["counts"] == {"in": 3, "dead": 2} and before["shards"] == 2
    assert (after["shards"], after["workers"], after["rows"]) == (4, 1, 10)
    assert after["counts"] == {"in": 10, "dead": 4}
    assert after["seconds"] > before["seconds"] >= 0.02
    assert after["rows_per_second"] == pytest.approx(10 / after["seconds"], rel=0.05)


def test_the_runner_counts_in_our_namespace(tmp_path):
    import apache_beam as beam

    pipeline = make_pipeline(())
    shards = [Shard(f"{number}", {"rows": number}) for number in range(1, 5)]
    _ = pipeline | beam.Create(shards) | beam.ParDo(RunShard("s", watched, str(tmp_path), "job", quiet=True))
    assert run_to_end(pipeline) == {"s/in": 10, "s/dead": 4}


def test_a_mistake_found_in_a_worker_ends_the_stage_with_its_message(tmp_path):
    with pytest.raises(ConfigError, match="mend it"), OutputFolder(str(tmp_path / "out"), {}) as output:
        run_stage("s", [Shard("a", {})], failing, output)
    assert list(tmp_path.iterdir()) == []


def failing(spec: dict, folder: str, out: Path) -> Done:
    raise ConfigError("expected this, found that: mend it")


def test_workers_that_see_another_folder_are_named_as_the_cause(tmp_path, monkeypatch):
    monkeypatch.setattr(RunShard, "process", lambda self, shard: [shard.name])
    with (
        pytest.raises(RuntimeError, match=r"shard a has no record in .*must see the same folder as the driver"),
        OutputFolder(str(tmp_path / "out"), {}) as output,
    ):
        run_stage("s", [Shard("a", {})], failing, output)


def test_worker_processes_share_the_cores_and_the_driver_keeps_its_own(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    import os

    two = make_pipeline(("--direct_running_mode=multi_processing", "--direct_num_workers=2"))
    assert isinstance(two.runner, FnApiRunner)
    with cores_shared(two):
        assert os.environ["OMP_NUM_THREADS"] == "4"
    assert "OMP_NUM_THREADS" not in os.environ
    with cores_shared(make_pipeline(())):
        assert "OMP_NUM_THREADS" not in os.environ
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    with cores_shared(two):
        assert os.environ["OMP_NUM_THREADS"] == "3"


def test_a_pipeline_that_is_never_run_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    make_pipeline(())
    assert not list(tmp_path.iterdir())
