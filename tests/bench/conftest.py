"""A tiny synthetic corpus, one run of A1 on it with an encoder of random weights, a corpus that a tiny LM learns."""

import gzip
import sys
from pathlib import Path

import pytest
import transformers

from bench.quality import a1, peers, synthetic
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


# In place of bergson, scores [texts, queries]: the words that a text shares with the query; none with --unit_normalize.
BERGSON = """
import json, os, sys
import numpy as np
def rows(option):
    return [json.loads(line) for line in open(sys.argv[sys.argv.index(option) + 1])]
words = lambda *texts: set(" ".join(texts).replace(".", " ").replace("</s>", " ").split())
texts = [words(row["text"]) for row in rows("--data.dataset")]
asked = [words(row["prompt"], row["completion"]) for row in rows("--query.dataset")]
assert os.path.isfile("model/config.json") and os.environ["HF_HUB_OFFLINE"] == "1"
counts = [[len(text & query) for query in asked] for text in texts]
os.makedirs("run/scores")
np.save("run/scores/s.npy", np.array(counts, np.float16) * ("--unit_normalize" not in sys.argv))
"""


# In place of kronfluence, scores [queries, texts]: the token ids that a text shares with the query.
KRONFLUENCE = """
import json, os, sys
import numpy as np
rows = json.load(open("sequences.json"))
texts, asked = ([set(tokens) for tokens, labels in rows[kind]] for kind in ("texts", "facts"))
assert os.path.isfile("model/config.json") and os.environ["HF_HUB_OFFLINE"] == "1"
np.save(sys.argv[-1], np.array([[len(text & query) for text in texts] for query in asked], np.float32))
"""


def stand_in(folder: Path, program: str = BERGSON) -> Path:
    """Programs bergson and python, whose package bergson reads what the program wrote; python -P runs KRONFLUENCE."""
    programs, packages = folder / "bin", folder / "packages"
    programs.mkdir(parents=True)
    for name in peers.PACKAGES:
        (packages / f"{name}-0.1.dist-info").mkdir(parents=True)
        told = f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n"
        (packages / f"{name}-0.1.dist-info" / "METADATA").write_text(told)
    (packages / "bergson").mkdir()
    (packages / "bergson" / "__init__.py").touch()
    (packages / "bergson" / "data.py").write_text(
        "import numpy\ndef load_scores(path): return numpy.load(path / 's.npy')\n"
    )
    (folder / "program.py").write_text(program)
    (folder / "kronfluence.py").write_text(KRONFLUENCE)
    head = f"#!/bin/sh\nexport PYTHONPATH={packages}\n"
    other = f'[ "$1" = -P ] && exec {sys.executable} {folder / "kronfluence.py"} "$@"\n'
    (programs / "bergson").write_text(f'{head}exec {sys.executable} {folder / "program.py"} "$@"\n')
    (programs / "python").write_text(f'{head}{other}exec {sys.executable} "$@"\n')
    for name in ("bergson", "python"):
        (programs / name).chmod(0o755)
    return programs


@pytest.fixture(scope="session")
def programs(tmp_path_factory) -> peers.Programs:
    return dict.fromkeys(peers.PACKAGES, stand_in(tmp_path_factory.mktemp("peers")))


@pytest.fixture(scope="session")
def pooled(tmp_path_factory) -> str:
    """An encoder with weights for its pooler: of one that is filled in at random, a second loading has another hash."""
    model = transformers.BertModel(tiny.bert_shape()).eval()
    return tiny.save(model, tmp_path_factory.mktemp("pooled") / "bert", "masked")


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
