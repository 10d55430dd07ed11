"""Where a stage runs: in this process, unless the arguments after `--` name another of Beam's runners.

Beam's own default tries to download a runner at its start and falls back without a word; so "direct" means FnApiRunner
here. What it, Dask and the others need of us beyond their options is in this file; docs/runners.md has their commands.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import apache_beam as beam
from apache_beam.metrics.metric import MetricsFilter
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.runner import PipelineResult, PipelineRunner, create_runner

from schemas.errors import ConfigError

NAMESPACE = "proponent"  # of our counters
DASK = "apache_beam.runners.dask.dask_runner.DaskRunner"  # Beam's table of names leaves it out
THREADS = "OMP_NUM_THREADS"  # what torch and FAISS size their pools by


def make_runner(beam_args: tuple[str, ...]) -> tuple[PipelineRunner, PipelineOptions]:
    """(runner, options) of the arguments after `--`. Raises ConfigError for a runner that cannot be had."""
    options = PipelineOptions(list(beam_args))
    name = options.view_as(StandardOptions).runner or "direct"
    short = name.lower().removesuffix("runner")
    if short in ("direct", "fnapi"):
        _require_a_mode(options.view_as(DirectOptions))
        return FnApiRunner(), options
    try:
        return create_runner(DASK if short == "dask" else name), options
    except ImportError as error:
        extra = {"dask": "dask", "dataflow": "gcp"}.get(short)
        remedy = f"pip install 'proponent[{extra}]'" if extra else "install what it needs, or check the name"
        raise ConfigError(f"--runner: expected {name} to be installed, found: {error}; {remedy}") from error
    except (AttributeError, ValueError) as error:
        names = sorted(n for n in StandardOptions.KNOWN_RUNNER_NAMES if "Test" not in n)
        raise ConfigError(
            f"--runner: expected direct, DaskRunner, {', '.join(names)} or the full name of a runner's class, found "
            f"{name!r}; check its spelling"
        ) from error


def _require_a_mode(direct: DirectOptions) -> None:
    """Beam would go on with one worker."""
    if direct.direct_num_workers != 1 and direct.direct_running_mode == "in_memory":
        raise ConfigError(
            f"--direct_num_workers={direct.direct_num_workers}: expected --direct_running_mode=multi_processing beside "
            "it, found in_memory, which has one worker whatever their number; add it, or leave both out"
        )


def make_pipeline(beam_args: tuple[str, ...], num_shards: int = 1) -> beam.Pipeline:
    """An empty pipeline on the runner that the arguments name. Raises ConfigError where Beam refuses its options."""
    runner, options = make_runner(beam_args)
    if type(runner).__name__ == "DaskRunner":
        from apache_beam.runners.dask.dask_runner import DaskOptions

        dask = options.view_as(DaskOptions)
        if not (dask.npartitions or dask.partition_size):
            dask.npartitions = num_shards  # else 128 shards make one partition, which one worker works alone
    try:
        pipeline = beam.Pipeline(runner=runner, options=options)
    except ValueError as error:
        raise ConfigError(f"options after --: {error}") from error
    os.rmdir(pipeline.local_tempdir)  # for other languages' transforms; one that is never run would leave it behind
    return pipeline


def describe(pipeline: beam.Pipeline, beam_args: tuple[str, ...]) -> str:
    """The runner by its class and where it works, for the log."""
    name, given = type(pipeline.runner).__name__, " ".join(beam_args)
    if not isinstance(pipeline.runner, FnApiRunner):
        return f"{name} ({given})"
    direct = pipeline.options.view_as(DirectOptions)
    where = "in this process"
    if direct.direct_running_mode == "multi_processing":
        where = f"{_num_processes(direct)} worker processes"
    return f"{name} (Beam, local, {where})"


def _num_processes(direct: DirectOptions) -> int:
    return direct.direct_num_workers or os.cpu_count() or 1


@contextmanager
def cores_shared(pipeline: beam.Pipeline) -> Iterator[None]:
    """While a local runner starts worker processes: each gets its share of the cores for its thread pools.

    Pools of all cores in each process fight: two jobs of torch on 2 cores took far more than twice the time of one.
    On a cluster the pools follow the machine, or what its operator sets (docs/runners.md).
    """
    direct = pipeline.options.view_as(DirectOptions)
    local = isinstance(pipeline.runner, FnApiRunner) and direct.direct_running_mode == "multi_processing"
    if not local or THREADS in os.environ:
        yield
        return
    os.environ[THREADS] = str(max(1, (os.cpu_count() or 1) // _num_processes(direct)))
    try:
        yield
    finally:
        del os.environ[THREADS]


def run_to_end(pipeline: beam.Pipeline) -> dict[str, int] | None:
    """Runs the pipeline and returns our counters as the runner kept them, or None where it keeps none (Dask)."""
    with cores_shared(pipeline):
        result = pipeline.run()
        try:
            result.wait_until_finish()
        finally:
            # Each run of the Dask runner opens a client of its own, with a cluster where no address was given.
            if hasattr(result, "client"):
                result.client.close()
    return _counters(result)


def _counters(result: PipelineResult) -> dict[str, int] | None:
    try:
        found = result.metrics().query(MetricsFilter().with_namespace(NAMESPACE))["counters"]
    except NotImplementedError:
        return None
    return {counter.key.metric.name: counter.result for counter in found}
