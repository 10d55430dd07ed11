"""The command line: exit codes, messages, the last line of evaluate, the runner that is chosen."""

import json
import os
import re
import subprocess
import sys

import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.portability.portable_runner import PortableRunner

from pipelines import runners
from pipelines.__main__ import main
from pipelines.config import FlagConfig, IndexConfig, VerifyConfig
from pipelines.runners import make_pipeline, make_runner
from schemas.errors import ConfigError


@pytest.mark.parametrize("name", [(), ("--runner=direct",), ("--runner=DirectRunner",)])
def test_the_local_runner_is_chosen_explicitly(name):
    assert isinstance(make_runner(name)[0], FnApiRunner)


def test_another_runner_is_left_to_beam():
    runner, options = make_runner(("--runner=PortableRunner", "--job_endpoint=localhost:1"))
    assert isinstance(runner, PortableRunner) and options.get_all_options()["runner"] == "PortableRunner"


@pytest.mark.parametrize(
    "beam_args, message",
    [
        ("--runner=DaskRuner", "--runner: expected direct, DaskRunner, .*FlinkRunner.* found 'DaskRuner'; check"),
        ("--runner=pipelines.stage.NoRunner", "found 'pipelines.stage.NoRunner'"),
        ("--runner=no.such.Runner", "--runner: expected no.such.Runner to be installed, found: No module named 'no'"),
        ("--direct_num_workers=3", "=3: expected --direct_running_mode=multi_processing beside it, found in_memory"),
    ],
)
def test_a_runner_that_cannot_be_had_is_refused_before_anything_is_written(
    tmp_path, corpus, capsys, beam_args, message
):
    arguments = ["index", "--corpus", corpus, "--output", str(tmp_path / "out"), "--quiet", "--", beam_args]
    assert main(arguments) == 2
    assert re.search(message, capsys.readouterr().err) and os.listdir(tmp_path) == []


@pytest.mark.parametrize("name, extra", [("DaskRunner", "dask"), ("dataflow", "gcp")])
def test_a_runner_whose_extra_is_not_installed_names_it(monkeypatch, name, extra):
    def not_installed(asked):
        raise ImportError("No module named 'it'")

    monkeypatch.setattr(runners, "create_runner", not_installed)
    with pytest.raises(ConfigError, match=rf"found: No module named 'it'; pip install 'proponent\[{extra}\]'"):
        make_runner((f"--runner={name}",))


def test_options_that_beam_refuses_are_refused_by_us():
    contradicting = ("--runner=PortableRunner", "--environment_type=LOOPBACK", "--environment_config=localhost:1")
    with pytest.raises(ConfigError, match=r"(?s)options after --: .*not compatible with environment type LOOPBACK"):
        make_pipeline(contradicting)


def test_help_and_unknown_verbs(capsys):
    assert main([]) == 0 and "usage: proponent VERB" in capsys.readouterr().out
    assert main(["rank"]) == 2 and "expected a verb (train, index" in capsys.readouterr().err


def test_bad_input_has_exit_code_2_and_one_message(tmp_path, capsys):
    arguments = ["index", "--corpus", str(tmp_path / "*.jsonl"), "--output", str(tmp_path / "o"), "--quiet"]
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith("proponent index: ")
    assert main(["train", "--corpus", "c", "--output", "o", "--", "--runner=direct"]) == 2
    assert "train runs without Beam" in capsys.readouterr().err


def test_a_mistyped_option_is_refused_not_handed_to_beam(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["index", "--corpus", "c", "--output", "o", "--max_tokns", "9"])
    assert stop.value.code == 2


@pytest.mark.parametrize(
    "config, options, message",
    [
        (IndexConfig, {"signals": "bm25,tracin"}, "--signals: expected some of bm25, dense, gradient, found 'tracin'"),
        (IndexConfig, {"signals": "bm25,dense"}, "--encoder: expected one, or --embedding_field, for dense"),
        (IndexConfig, {"signals": "bm25,gradient"}, "--checkpoints: expected some for gradient"),
        (IndexConfig, {"overlap": 256}, "--overlap: expected 0 to --max_tokens - 1, found 256"),
    ],
)
def test_options_are_checked_by_name(config, options, message):
    with pytest.raises(ConfigError, match=message):
        config(corpus="c", output="o", **options)


def test_approval_needs_a_name_and_verify_its_arms():
    with pytest.raises(ConfigError, match="--by: expected the name of who approves"):
        FlagConfig(rankings="r", output="o", approve="all")
    with pytest.raises(ConfigError, match="--after: expected either a checkpoint or --after_corpus"):
        VerifyConfig(before=("b",), facts="f", retain_facts="r", output="o", control=("c",))


def test_evaluate_prints_one_json_object_last(room, built_index, facts, tmp_path):
    assert main(["trace", "--index", built_index, "--facts", facts, "--output", str(tmp_path / "r"), "--quiet"]) == 0
    command = [sys.executable, "-m", "pipelines", "evaluate", "--rankings", str(tmp_path / "r"), "--facts", facts]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["num_facts"] == 10
    for name in ("bm25", "dense", "gradient", "fused"):
        assert set(result["signals"][name]) == {"mrr", "recall_at_10", "recall_at_100"}
