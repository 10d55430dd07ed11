"""The peers: what they are given, that they are refused before anything is trained, and that a failure is told."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import transformers

from attribution.checkpoint import load_checkpoint
from attribution.sequences import encode_example, encode_fact
from bench.quality import a2, bergson, d, ekfac, lm, peer, peers
from pipelines import train
from pipelines.config import TrainConfig
from pipelines.resources import resolve_checkpoints
from schemas.errors import ConfigError
from tests.bench.conftest import BERGSON, RECIPE, stand_in


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, capitals) -> str:
    output = str(tmp_path_factory.mktemp("peers") / "model")
    train.run(TrainConfig(corpus=capitals.corpus, output=output, quiet=True, **(RECIPE | {"epochs": 1})))
    return resolve_checkpoints((output,))[-1]


def test_bergson_gets_what_the_training_saw(checkpoint, capitals, tmp_path):
    fact = capitals.facts[0]
    long = "The capital of Oz is Verona. " * 20
    context = bergson.write_inputs(tmp_path, checkpoint, ["Oz.", long], [fact])
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    short, cut = (json.loads(line)["text"] for line in (tmp_path / "corpus.jsonl").read_text().splitlines())
    assert tokenizer(short).input_ids[-1] == tokenizer.eos_token_id
    assert tokenizer(cut).input_ids == tokenizer(long).input_ids[:context] and context == RECIPE["context"]
    (query,) = [json.loads(line) for line in (tmp_path / "queries.jsonl").read_text().splitlines()]
    messages = [{"role": "user", "content": query["prompt"]}, {"role": "assistant", "content": query["completion"]}]
    joined = tokenizer.apply_chat_template(messages, tokenize=False)
    assert joined == tokenizer.bos_token + fact.prompt + fact.target
    asked = tokenizer(joined, add_special_tokens=False).input_ids
    assert asked == tokenizer(fact.prompt + fact.target).input_ids


@pytest.mark.parametrize("track", [a2, d])
def test_a_folder_without_a_peer_is_refused_before_the_training(track, tmp_path, capitals, pooled, monkeypatch):
    monkeypatch.setattr(lm, "train_all", lambda *given, **more: pytest.fail("a model was trained"))
    (tmp_path / "bin").mkdir()
    for package, lacking in (("bergson", "no bergson and no python"), ("kronfluence", "no python")):
        with pytest.raises(ConfigError, match=rf"--{package} .*bin: expected the folder .* found {lacking}; name it"):
            track.run("small", capitals, tmp_path, pooled, workers=0, programs={package: tmp_path / "bin"})
    programs = stand_in(tmp_path / "other")
    for package, version in peers.PACKAGES.items():
        assert version(programs) == "0.1"
        shutil.rmtree(tmp_path / "other" / "packages" / f"{package}-0.1.dist-info")
        with pytest.raises(ConfigError, match=f"its python does not find {package}"):
            version(programs)


def test_a_peer_that_fails_is_told_with_its_last_words(checkpoint, capitals, tmp_path):
    given = (checkpoint, capitals.texts[:3], capitals.facts[:2])
    failing = stand_in(tmp_path / "failing", "import sys; print('out of luck', file=sys.stderr); sys.exit(3)")
    (tmp_path / "a").mkdir()
    with pytest.raises(peer.PeerFailed, match=r"bergson: ended with 3; .*(?s:.)*out of luck"):
        bergson.trackstar(failing, tmp_path / "a", *given)
    fewer = stand_in(tmp_path / "fewer", BERGSON.replace("in asked]", "in asked[1:]]"))
    (tmp_path / "b").mkdir()
    with pytest.raises(peer.PeerFailed, match=r"expected scores of 2 facts by 3 texts, found \(1, 3\)"):
        bergson.trackstar(fewer, tmp_path / "b", *given)
    np.save(tmp_path / "s.npy", np.array([[1.0, np.nan]], np.float32))
    with pytest.raises(peer.PeerFailed, match="1 of the peer's scores are no finite numbers"):
        peer.read_scores(tmp_path / "s.npy", 1, 2)


def test_kronfluence_gets_the_tokens_of_the_product_and_its_scores_are_taken(checkpoint, capitals, tmp_path):
    texts, facts, loaded = capitals.texts[:5], capitals.facts[:2], load_checkpoint(checkpoint)
    found = ekfac.scores(stand_in(tmp_path / "peer"), tmp_path, checkpoint, texts, facts)
    rows = json.loads((tmp_path / "sequences.json").read_text())
    told = [encode_example(loaded, text) for text in texts], [encode_fact(loaded, fact) for fact in facts]
    for kind, sequences in zip(("texts", "facts"), told, strict=True):
        assert rows[kind] == [[one.tokens, one.labels] for one in sequences]
    shared = [[len(set(text.tokens) & set(fact.tokens)) for text in told[0]] for fact in told[1]]
    assert found.tolist() == shared and not (tmp_path / "model").exists()


def test_scores_of_peers_are_kept_with_their_seconds(checkpoint, capitals, programs, tmp_path, monkeypatch):
    given = (tmp_path, {"training": 1}, checkpoint, capitals.texts[:4], capitals.facts[:3])
    found = peers.measure(programs, *given)
    assert set(found) == set(peers.ARMS) and all(seconds > 0 for _, seconds in found.values())
    monkeypatch.setattr(peer, "call", lambda *given: pytest.fail("a peer ran again"))
    again = peers.measure(programs, *given)
    for arm, (scores, seconds) in found.items():
        assert scores.shape == (3, 4) and np.array_equal(scores, again[arm][0]) and seconds == again[arm][1]
    assert peers.left_out({"bergson": Path()}) == [
        f"{peers.EKFAC}: no --kronfluence names the programs of its environment"
    ]
