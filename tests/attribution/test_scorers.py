"""Scorers: what a spec means, what becomes of results that are none, and a classifier trained here on a toy task."""

import hashlib
import json
import math
import random
import shutil
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from attribution.checkpoint import model_hash
from attribution.classifier import classify, load_classifier, probabilities
from attribution.scorers import (
    BATCH,
    MOST_OF_AN_ERROR,
    Failure,
    Scorer,
    load_scorer,
    parse_spec,
    require_results,
    score_texts,
)
from attribution.training import train_tokenizer
from schemas.errors import ConfigError
from schemas.records import Label

CLEAN = ["the sun is warm today", "we walk in the park", "the park is warm", "today we walk", "the sun is in the park"]
AWFUL = [text.replace("the", "the awful") + " awful" for text in CLEAN]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A BERT of 16 tokens that was trained to tell texts with the word `awful`, of any length and anywhere in them."""
    place = tmp_path_factory.mktemp("classifier")
    torch.manual_seed(0)
    generator, words = random.Random(0), sorted(set(" ".join(CLEAN).split()))
    texts = [generator.choices(words, k=generator.randint(1, 13)) for _ in range(200)]
    for words_of in texts[100:]:
        words_of[generator.randrange(len(words_of))] = "awful"
    tokenizer = train_tokenizer(iter(CLEAN + AWFUL), 300, 16)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=16, id2label={0: "fine", 1: "toxic"}, label2id={"fine": 0, "toxic": 1},
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config)
    encoded = tokenizer(
        [" ".join(words_of) for words_of in texts], padding=True, truncation=True, max_length=16, return_tensors="pt"
    )
    wanted = torch.tensor([0] * 100 + [1] * 100)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(60):
        asked = {name: encoded[name] for name in ("input_ids", "attention_mask")}
        loss = torch.nn.functional.cross_entropy(model(**asked).logits, wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


def test_the_classifier_labels_what_it_was_trained_on(folder):
    scorer = load_scorer(f"hf:{folder}@0.8")
    labels, failures = score_texts(scorer, CLEAN + AWFUL)
    assert failures == {}
    assert [[label.label for label in of_text] for of_text in labels] == [["fine"]] * 5 + [["toxic"]] * 5
    loaded = load_classifier(str(folder))
    version = f"transformers {metadata.version('transformers')} model {model_hash(loaded.model)}"
    (label,) = labels[-1]
    assert label == Label(f"hf:{folder}", version, 0.8, "toxic", label.score) and 0.8 <= label.score <= 1


def test_scores_are_the_models_own_in_any_batch(folder):
    loaded = load_classifier(str(folder))
    texts = [*CLEAN, *AWFUL, "sun"]
    scores = classify(loaded, texts)
    for text, row in zip(texts, scores, strict=True):
        logits = loaded.model(**loaded.tokenizer(text, return_tensors="pt", return_token_type_ids=False)).logits[0]
        expected = (logits - logits.max()).exp() / (logits - logits.max()).exp().sum()
        assert np.allclose(row, expected.numpy(), atol=1e-6)
    assert np.allclose(classify(loaded, texts, batch_tokens=1), scores, atol=1e-6)
    assert np.allclose(classify(loaded, texts[::-1])[::-1], scores, atol=1e-6)
    assert classify(loaded, []).shape == (0, 2)


def test_a_long_text_has_its_worst_window(folder):
    loaded = load_classifier(str(folder))
    long = " ".join(CLEAN * 4)
    assert len(loaded.tokenizer(long).input_ids) > 4 * loaded.max_tokens
    middle = " ".join(CLEAN * 2) + " " + AWFUL[0] + " " + " ".join(CLEAN * 2)
    scores = classify(loaded, [long, middle, AWFUL[0]])
    toxic = loaded.labels.index("toxic")
    assert scores[0, toxic] < 0.5 < 0.9 < scores[1, toxic]
    assert classify(loaded, [AWFUL[0]])[0, toxic] == pytest.approx(scores[2, toxic], abs=1e-6)


@pytest.mark.parametrize("family", ["roberta", "gpt2"])
def test_other_families_take_texts_of_any_length_in_any_batch(tmp_path, family):
    """RoBERTa's positions begin after the padding's; GPT-2 has no token for padding and reads its last token."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(iter(CLEAN + AWFUL), 300, 16)
    tokenizer.model_max_length = 10**30  # as where no limit was saved
    if family == "roberta":
        config = transformers.RobertaConfig(
            vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            max_position_embeddings=18, pad_token_id=tokenizer.pad_token_id, num_labels=3,
        )  # fmt: skip
        model = transformers.RobertaForSequenceClassification(config)
    else:
        config = transformers.GPT2Config(
            vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=16, num_labels=3
        )
        model = transformers.GPT2ForSequenceClassification(config)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_classifier(str(tmp_path))
    texts = [CLEAN[0], " ".join(CLEAN * 4), AWFUL[1]]
    scores = classify(loaded, texts)
    alone = [classify(loaded, [text])[0] for text in texts]
    assert loaded.labels == ("LABEL_0", "LABEL_1", "LABEL_2") and np.isfinite(scores).all()
    assert np.allclose(scores, alone, atol=1e-6)


def test_the_config_says_what_the_outputs_are():
    logits = torch.tensor([[0.0, 2.0]])
    one = 1 / (1 + math.exp(-2.0))
    assert probabilities(logits, None)[0].tolist() == pytest.approx([1 - one, one])
    assert probabilities(logits, "multi_label_classification")[0].tolist() == pytest.approx([0.5, one])
    assert probabilities(torch.tensor([[2.0]]), None)[0].tolist() == pytest.approx([one])
    assert probabilities(logits, "regression")[0].tolist() == [0.0, 2.0]


def test_a_classifier_without_its_head_or_with_twice_a_label_is_refused(folder, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare)
    transformers.BertModel.from_pretrained(folder).save_pretrained(bare)
    with pytest.raises(ConfigError, match=r"weights are missing \(classifier"):
        load_scorer(f"hf:{bare}")
    twice = tmp_path / "twice"
    shutil.copytree(folder, twice)
    config = json.loads((twice / "config.json").read_text())
    (twice / "config.json").write_text(json.dumps(config | {"id2label": {"0": "toxic", "1": "toxic"}}))
    with pytest.raises(ConfigError, match="a name of its own for each label"):
        load_scorer(f"hf:{twice}")
    with pytest.raises(ConfigError, match="expected a Hugging Face name, a folder"):
        load_scorer("hf:./not-here")


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("pii", ("pii", "", 0.5)),
        ("secrets@1", ("secrets", "", 1.0)),
        ("hf:owner/name@0.8", ("hf", "owner/name", 0.8)),
        ("hf:/a/b@c/d", ("hf", "/a/b@c/d", 0.5)),
        ("hf:/a/b@c/d@0.25", ("hf", "/a/b@c/d", 0.25)),
        ("python:own.module:rate@-3", ("python", "own.module:rate", -3.0)),
    ],
)
def test_a_spec_says_kind_place_and_threshold(spec, expected):
    assert parse_spec(spec) == expected


@pytest.mark.parametrize(
    "spec", ["", "toxic", "hf:", "hf", "pii:x", "python:module", "python::f", "python:a:b:c", "@1"]
)
def test_a_spec_that_is_none_is_refused_with_the_forms(spec):
    with pytest.raises(ConfigError, match=r"expected hf:NAME_OR_FOLDER, pii, secrets or python:module:function"):
        parse_spec(spec)


@pytest.mark.parametrize("spec", ["pii@2", "hf:x@80", "secrets@nan", "python:a:b@inf"])
def test_a_threshold_that_is_none_is_refused(spec):
    with pytest.raises(ConfigError, match="expected a threshold from 0 to 1, found"):
        parse_spec(spec)


def test_personal_data_and_secrets_have_spans_and_the_libraries_versions():
    text = "Write to ann@x.org or +44 20 7946 0958, bob@x.org reads it too."
    (labels,), _ = score_texts(load_scorer("pii"), [text])
    assert {label.label: [text[a:b] for a, b in label.spans] for label in labels} == {
        "email": ["ann@x.org", "bob@x.org"],
        "phone": ["+44 20 7946 0958"],
    }
    assert {(label.scorer, label.score, label.threshold) for label in labels} == {("pii", 1.0, 0.5)}
    assert f"phonenumberslite {metadata.version('phonenumberslite')}" in labels[0].version
    labels, failures = score_texts(load_scorer("secrets"), ["none here", "AKIAIOSFODNN7EXAMPLE"])
    assert failures == {} and labels[0] == () and labels[1][0].spans == ((0, 20),)
    assert labels[1][0].version.endswith(f"detect-secrets {metadata.version('detect-secrets')}")
    assert json.loads(json.dumps(labels[1][0].to_row()))["scorer"] == "secrets"


OWN = '''
import numpy
calls = []

def rate(texts):
    calls.append(len(texts))
    for text in texts:
        if text == "bad":
            raise RuntimeError("cannot read this")
        if text == "quoted":
            raise RuntimeError("\\ud800" + "x" * 5000)
    return [float("nan") if text == "nan" else len(text) / 10 for text in texts]

def spotted(texts):
    return [{"label": "shout", "score": 1, "spans": [(0, len(text))]} if text.isupper() else 0.0 for text in texts]

def too_many(texts):
    return numpy.array([1.0 for text in texts for _ in range(2 if text == "two" else 1)])

def outside(texts):
    return [{"score": 1.0, "spans": [(0, 99)]} for text in texts]

def flat(texts):
    return [{"score": 1.0, "spans": [0, 4]} for text in texts]

def words(texts):
    return ["very toxic" for text in texts]

def one_number(texts):
    return 0.5

def wrong_for_one(texts):
    return [None if text == "none" else 1.0 for text in texts]
'''  # fmt: skip


@pytest.fixture
def own(tmp_path, monkeypatch) -> Path:
    """A module of a user in the folder that the command is given in; each test has it under a name of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [place for place in __import__("sys").path if place])
    path = tmp_path / f"own_{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:8]}.py"
    path.write_text(OWN)
    return path


def test_a_users_function_gives_scores_and_its_file_is_the_version(own):
    scorer = load_scorer(f"python:{own.stem}:rate@0.4")
    labels, failures = score_texts(scorer, ["12345", "1234", "123"])
    version = f"sha256 {hashlib.sha256(own.read_bytes()).hexdigest()}"
    made = [Label(f"python:{own.stem}:rate", version, 0.4, "rate", score) for score in (0.5, 0.4)]
    assert labels == [(made[0],), (made[1],), ()] and failures == {}
    labels, _ = score_texts(load_scorer(f"python:{own.stem}:spotted"), ["HELLO", "hello"])
    assert [[(label.label, label.score, label.spans) for label in of] for of in labels] == [
        [("shout", 1.0, ((0, 5),))],
        [],
    ]


def test_a_text_that_it_raises_for_or_that_gets_nan_costs_no_other_one(own):
    texts = ["a" * 10, "bad", "nan", "b" * 10] + ["c" * 9] * BATCH
    labels, failures = score_texts(load_scorer(f"python:{own.stem}:rate"), texts)
    assert failures == {
        1: Failure("RuntimeError: cannot read this"),
        2: Failure("expected a finite score, found nan"),
    }
    assert [len(of) for of in labels] == [1, 0, 0, 1] + [1] * BATCH
    calls = __import__(own.stem).calls
    assert calls == [BATCH] + [1] * BATCH + [4]  # the batch with them again, text by text; the other one once


def test_what_a_scorer_says_of_a_text_is_told_as_text_that_can_be_written_and_in_short(own):
    _, failures = score_texts(load_scorer(f"python:{own.stem}:rate"), ["quoted"])
    assert failures[0].reason == ("RuntimeError: ?" + "x" * 5000)[:MOST_OF_AN_ERROR]


def test_a_wrong_number_of_results_is_told_of_the_text_it_is_for(own):
    labels, failures = score_texts(load_scorer(f"python:{own.stem}:too_many"), ["one", "two", "three"])
    assert failures == {1: Failure("expected as many results as texts, 1, found 2")}
    assert [len(of) for of in labels] == [1, 0, 1]


def test_spans_outside_the_text_are_refused(own):
    _, failures = score_texts(load_scorer(f"python:{own.stem}:outside"), ["short"])
    assert failures == {0: Failure("expected spans inside the text's 5 characters, found [(0, 99)]")}
    _, failures = score_texts(load_scorer(f"python:{own.stem}:flat"), ["short"])
    assert failures[0].reason.startswith("expected spans as pairs of start and end, found {'score': 1.0")


@pytest.mark.parametrize(("function", "told"), [("words", "found 'very toxic'"), ("one_number", "found float")])
def test_the_wrong_type_for_all_is_refused(own, function, told):
    scorer = load_scorer(f"python:{own.stem}:{function}")
    _, failures = score_texts(scorer, ["a", "b"])
    with pytest.raises(ConfigError, match=rf"scorer {scorer.name}: expected a list with a number.*{told}; correct"):
        require_results(scorer.name, 2, list(failures.values()))


def test_the_wrong_type_for_one_is_that_ones_failure(own):
    labels, failures = score_texts(load_scorer(f"python:{own.stem}:wrong_for_one"), ["a", "none"])
    assert len(labels[0]) == 1 and failures[1].wrong_type and "found None" in failures[1].reason
    require_results("own", 2, list(failures.values()))
    require_results("own", 0, [])
    require_results("own", 1, [Failure("RuntimeError: cannot read this")])  # not a matter of type


@pytest.mark.parametrize(
    ("module", "function", "told"),
    [
        ("not_here_at_all", "f", "a module that can be imported, found ModuleNotFoundError"),
        ("{own}", "nothing", "expected a function 'nothing' in .*, found none"),
        ("{own}", "calls", "expected a function 'calls'"),
        ("sys", "exc_info", "expected a module with a file"),
    ],
)
def test_a_function_that_is_not_there_is_refused(own, module, function, told):
    with pytest.raises(ConfigError, match=told):
        load_scorer(f"python:{module.format(own=own.stem)}:{function}")


def test_a_module_that_raises_when_imported_is_refused(own):
    own.write_text("raise OSError('no disk')")
    with pytest.raises(ConfigError, match="found OSError: no disk"):
        load_scorer(f"python:{own.stem}:rate")


def test_nothing_of_a_user_is_imported_but_what_is_named(own):
    for spec in ("pii", "secrets"):
        load_scorer(spec)
    assert own.stem not in __import__("sys").modules


def test_batches_are_cut_and_no_text_is_lost():
    seen = []
    scorer = Scorer("own", "1", 0.0, "length", lambda texts: seen.append(len(texts)) or [float(t) for t in texts])
    labels, failures = score_texts(scorer, [str(n) for n in range(2 * BATCH + 1)])
    assert seen == [BATCH, BATCH, 1] and failures == {}
    assert [of[0].score for of in labels] == list(range(2 * BATCH + 1))
