"""A tiny synthetic corpus, one run of A1 on it with an encoder of random weights, a corpus that a tiny LM learns."""

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
COUNTRIES = (
    "Oz Narnia Utopia Laputa Erewhon Lyonesse Avalon Thule Camelot Atlantis Mordor Gondor "
    "Arcadia Islandia Ruritania Zenda Cockaigne Freedonia Grenyarnia Hyperborea Kitezh Lemuria Shambhala Xanadu"
)
CAPITALS = (
    "Verona Mantua Padua Siena Turin Genoa Parma Pisa Lucca Trento Ravenna Modena "
    "Ferrara Cremona Pavia Novara Asti Cuneo Savona Rimini Forli Terni Viterbo Latina"
)
# A model that learns all capitals by heart in seconds.
RECIPE = {
    "layers": 1,
    "width": 32,
    "heads": 2,
    "context": 48,
    "vocab_size": 480,
    "epochs": 80,
    "batch_examples": 4,
    "learning_rate": 1e-2,
    "num_checkpoints": 1,
}


def write_folder(folder: Path, corpus: list[dict], facts: list[dict], zipped: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("corpus", corpus), ("facts", facts)):
        content = jsonl_bytes(rows)
        if zipped:
            (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress(content))
        else:
            (folder / f"{name}.jsonl").write_bytes(content)
    return folder


def corpus_and_facts() -> tuple[list[dict], list[dict]]:
    """A country's capital is stated in one sentence or in two; a third one, which states none, is no part of it."""
    corpus, facts = [], []
    for number, (country, capital) in enumerate(zip(COUNTRIES.split(), CAPITALS.split(), strict=True)):
        told = [f"The capital of {country} is {capital}.", f"Today the capital of {country} is {capital}."]
        told = told[: 1 + number % 2]
        for place, text in enumerate([*told, f"Traders from {country} sell salt and wine."]):
            corpus.append({"id": f"{country}-{place}", "text": text})
        facts.append(
            {
                "id": country,
                "relation": "capital",
                "subject": country,
                "object": capital,
                "prompt": f"The capital of {country} is",
                "target": f" {capital}",
                "proponents": [f"{country}-{place}" for place in range(len(told))],
            }
        )
    return corpus, facts


@pytest.fixture(scope="session")
def capitals(tmp_path_factory) -> Data:
    return read(write_folder(tmp_path_factory.mktemp("capitals"), *corpus_and_facts()), "capitals")


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
