"""The same corpus and facts on four settings of the runner: the same rankings. `make test-runners` runs this."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipelines.stage import RunShard
from tests.runners.conftest import FACTS, RECORDS, REFUSED, Made

pytestmark = pytest.mark.runners


def assert_complete(made: Made) -> None:
    """in = out + dead for the corpus, and every stage saw every passage."""
    assert made.manifest.counts == {"in": RECORDS, "kept": RECORDS - REFUSED, "removed": 0, "dead": REFUSED}
    assert made.metrics["scan"]["shards"] == 3 and made.metrics["bm25"]["shards"] == 8
    for stage in ("bm25", "dense", "gradient-00-step-000200"):
        assert made.metrics[stage]["counts"]["in"] == RECORDS - REFUSED
    assert len(made.rankings) == FACTS
    # top_k is more than the corpus holds: every passage that shares a word, and by the vectors all others
    assert all(len(ranking) == RECORDS - REFUSED for ranking in made.rankings.values())


def bm25_order(ranking: list) -> list[tuple[str, float]]:
    found = [(p.example_id, p.signals["bm25"]) for p in ranking]
    return sorted(found, key=lambda pair: (-pair[1], pair[0]))


def assert_same(made: Made, expected: Made) -> None:
    """BM25 rankings identical; dense and gradient scores within 1e-5 relative, near 0 within 1e-7."""
    assert_complete(made)
    assert made.rankings.keys() == expected.rankings.keys()
    for fact, ranking in made.rankings.items():
        assert bm25_order(ranking) == bm25_order(expected.rankings[fact])
        by_id = {p.example_id: p for p in expected.rankings[fact]}
        for proponent in ranking:
            for signal in ("dense", "gradient"):
                other = by_id[proponent.example_id].signals[signal]
                assert proponent.signals[signal] == pytest.approx(other, rel=1e-5, abs=1e-7)
    hashes = [{f.name: f.sha256 for f in m.manifest.files if f.name.startswith("bm25/")} for m in (made, expected)]
    assert hashes[0] == hashes[1]


@pytest.fixture
def elsewhere(monkeypatch) -> None:
    """A shard that is worked in the driver's own process fails; others import the class anew."""

    def process(self: RunShard, shard: object) -> None:
        raise AssertionError("a shard was worked in the driver's process")

    monkeypatch.setattr(RunShard, "process", process)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


@contextmanager
def serving(module: str, *arguments: str, port: int) -> Iterator[None]:
    """A server of Beam's in its own process, until the end."""
    # The pool starts its workers as `python` from PATH, which must be this environment's.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    process = subprocess.Popen([sys.executable, "-m", module, *arguments], env=os.environ | {"PATH": path})
    try:
        for _ in range(300):
            with socket.socket() as tried:
                if tried.connect_ex(("localhost", port)) == 0:
                    break
            assert process.poll() is None, f"{module} ended with {process.returncode} before it answered"
            time.sleep(0.1)
        else:
            raise AssertionError(f"{module} does not answer at port {port} after 30 s")
        yield
    finally:
        process.terminate()
        process.wait(30)


def test_direct_in_memory_twice(in_memory, make, tmp_path, caplog):
    with caplog.at_level("INFO", "pipelines"):
        again = make(tmp_path, ())
    assert caplog.text.count("runner: FnApiRunner (Beam, local, in this process)") == 2
    assert_same(again, in_memory)
    assert {f.name: f.sha256 for f in again.manifest.files} == {f.name: f.sha256 for f in in_memory.manifest.files}
    assert {stage["workers"] for stage in again.metrics.values()} == {1}


def test_direct_with_two_processes(in_memory, make, tmp_path, caplog, elsewhere):
    with caplog.at_level("INFO", "pipelines"):
        made = make(tmp_path, ("--direct_running_mode=multi_processing", "--direct_num_workers=2"))
    assert "runner: FnApiRunner (Beam, local, 2 worker processes)" in caplog.text
    assert_same(made, in_memory)
    assert made.metrics["bm25"]["workers"] == 2


def test_portable_with_a_separate_worker(in_memory, make, tmp_path, caplog, elsewhere):
    jobs, pool = free_port(), free_port()
    args = ("--runner=PortableRunner", f"--job_endpoint=localhost:{jobs}")
    args += ("--environment_type=EXTERNAL", f"--environment_config=localhost:{pool}")
    with (
        serving("apache_beam.runners.portability.local_job_service_main", f"--port={jobs}", port=jobs),
        serving("apache_beam.runners.worker.worker_pool_main", f"--service_port={pool}", port=pool),
        caplog.at_level("INFO", "pipelines"),
    ):
        made = make(tmp_path, args)
    assert "runner: PortableRunner (--runner=PortableRunner" in caplog.text
    assert_same(made, in_memory)


def test_dask_with_two_workers(in_memory, make, tmp_path, caplog, elsewhere):
    import dask
    from dask.distributed import LocalCluster

    assert dask.config.get("distributed.worker.multiprocessing-method") == "spawn"  # a fork after torch would hang
    # Two threads a worker, so that shards come to a process at once.
    with (
        LocalCluster(n_workers=2, threads_per_worker=2, processes=True, dashboard_address=None) as cluster,
        caplog.at_level("INFO", "pipelines"),
    ):
        made = make(tmp_path, ("--runner=DaskRunner", f"--dask_client_address={cluster.scheduler_address}"))
    assert "runner: DaskRunner (--runner=DaskRunner" in caplog.text
    assert_same(made, in_memory)
    assert made.metrics["bm25"]["workers"] == 2
