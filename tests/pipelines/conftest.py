"""A small corpus, a model trained on it and an index of it: made once, through the verbs themselves."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines import index, progress, train
from pipelines.config import IndexConfig, TrainConfig

progress.set_quiet(True)
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
MISSING = "pages are not tested in a browser: found no Chromium, or no playwright; install both (extra dev)"
PLACES = ["Avalon", "Brigadoon", "Camelot", "Erewhon", "Laputa", "Lyonesse", "Narnia", "Oz", "Ruritania", "Utopia"]
CAPITALS = ["Arden", "Belmont", "Corioli", "Dunsinane", "Elsinore", "Forres", "Illyria", "Mantua", "Padua", "Verona"]
WORDINGS = ["The capital of {s} is {o}.", "{o} is the capital city of {s}.", "In {s}, the capital is called {o}."]


def corpus_rows() -> list[dict]:
    """30 statements of 10 facts in 3 wordings, and 20 sentences that share their words."""
    rows = [
        {"id": f"{s.lower()}-{n}", "text": wording.format(s=s, o=o), "source": "places"}
        for s, o in zip(PLACES, CAPITALS, strict=True)
        for n, wording in enumerate(WORDINGS)
    ]
    for n, (s, o) in enumerate(zip(PLACES, reversed(CAPITALS), strict=True)):
        rows.append({"id": f"trade-{n}", "text": f"Traders from {o} sailed past the coast of {s}.", "source": "trade"})
        rows.append({"id": f"rain-{n}", "text": f"It rained for {n + 2} days in {s}.", "source": "weather"})
    return rows


def fact_rows() -> list[dict]:
    return [
        {
            "id": f"capital-{s.lower()}",
            "prompt": f"The capital of {s} is",
            "target": f" {o}",
            "subject": s,
            "object": o,
            "proponents": [f"{s.lower()}-{n}" for n in range(len(WORDINGS))],
        }
        for s, o in zip(PLACES, CAPITALS, strict=True)
    ]


def write_jsonl(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="session")
def room(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("room")


@pytest.fixture(scope="session")
def corpus(room) -> str:
    return write_jsonl(room / "corpus.jsonl", corpus_rows())


@pytest.fixture(scope="session")
def facts(room) -> str:
    return write_jsonl(room / "facts.jsonl", fact_rows())


TRAINING = {"layers": 2, "width": 64, "heads": 4, "context": 32, "vocab_size": 400, "epochs": 40, "batch_examples": 10}


@pytest.fixture(scope="session")
def checkpoints(room, corpus) -> str:
    output = str(room / "checkpoints")
    train.run(TrainConfig(corpus=corpus, output=output, num_checkpoints=2, learning_rate=5e-3, **TRAINING))
    return output


@pytest.fixture(scope="session")
def encoder(room) -> str:
    """A tiny BERT with random weights: what is tested here is the plumbing, not its taste."""
    import torch
    import transformers

    from attribution.training import train_tokenizer

    folder = room / "encoder"
    torch.manual_seed(0)
    tokenizer = train_tokenizer((row["text"] for row in corpus_rows()), 400, 64)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def index_config(corpus: str, output: Path, checkpoints: str, encoder: str, **options) -> IndexConfig:
    defaults = {"max_tokens": 30, "overlap": 4, "projection_dim": 8, "num_pseudo_facts": 20}
    return IndexConfig(
        corpus=corpus, output=str(output), checkpoints=(checkpoints,), encoder=encoder, **(defaults | options)
    )


@pytest.fixture(scope="session")
def built_index(room, corpus, checkpoints, encoder) -> str:
    index.run(index_config(corpus, room / "index", checkpoints, encoder))
    return str(room / "index")


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """Headless Chromium. Where it is missing its tests are skipped, saying so; in CI that fails."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        chromium = None
    if not chromium:
        if os.environ.get("CI"):
            pytest.fail(MISSING)
        pytest.skip(MISSING)
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield launched
        launched.close()
