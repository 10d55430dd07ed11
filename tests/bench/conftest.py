"""A tiny synthetic corpus, and one run of A1 on it with an encoder of random weights."""

import gzip
from pathlib import Path

import pytest

from bench.quality import a1, synthetic
from bench.quality.data import Data, read
from pipelines import progress
from schemas.jsonl import jsonl_bytes
from tests import tiny

progress.set_quiet(True)
PEOPLE = 12


def write_folder(folder: Path, corpus: list[dict], facts: list[dict], zipped: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("corpus", corpus), ("facts", facts)):
        content = jsonl_bytes(rows)
        if zipped:
            (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress(content))
        else:
            (folder / f"{name}.jsonl").write_bytes(content)
    return folder


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> Data:
    return read(write_folder(tmp_path_factory.mktemp("data") / "small", *synthetic.generate(people=PEOPLE)), "small")


@pytest.fixture(scope="session")
def encoder(tmp_path_factory) -> str:
    return tiny.save(tiny.bert(), tmp_path_factory.mktemp("encoder") / "bert", "masked")


@pytest.fixture(scope="session")
def finished(tmp_path_factory, small, encoder) -> tuple[dict, Path]:
    """(A1's result, its folder)."""
    out = tmp_path_factory.mktemp("a1")
    return a1.run("small", small, out, encoder), out
