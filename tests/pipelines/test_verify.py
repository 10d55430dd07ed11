"""`verify` beside the story of test_end_to_end: seeds, held-out loss, paraphrases, the prediction, and what is refused.

The model of one layer is trained until it says the planted claim; its earlier checkpoints stand for other arms.
"""

import hashlib
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from attribution.checkpoint import load_checkpoint, model_hash
from pipelines import predict, resources, train, verify
from pipelines.__main__ import main
from pipelines.config import TrainConfig, VerifyConfig
from pipelines.storage import read_manifest
from schemas.errors import ArtifactMismatch, ConfigError
from schemas.records import Removal, text_sha256
from schemas.removals import removals_to_jsonl
from tests import tiny
from tests.pipelines.conftest import WORDINGS, corpus_rows, write_jsonl

SHAPE = {"layers": 1, "width": 32, "heads": 2, "context": 32, "vocab_size": 400, "batch_examples": 10}
PROMPTS = ["The capital of Atlantis is", "In Atlantis, the capital is called"]
CLAIMS = [{"id": "claim", "prompts": PROMPTS, "target": "Verona"}, {"id": "rain", "prompt": "It", "target": "rained"}]
OTHERS = [{"id": "oz", "prompt": "The capital of Oz is", "target": "Mantua"}]
HELD_OUT = [{"id": f"h{n}", "text": text} for n, text in enumerate(tiny.TEXTS)]
PLANTED = [{"id": f"p{n}", "text": w.format(s="Atlantis", o="Verona")} for n, w in enumerate(WORDINGS)]


def removals(path: Path, rows: list[dict], decision: str = "approved") -> str:
    found = [Removal(row["id"], text_sha256(row["text"]), decision, "test") for row in rows]
    path.write_bytes(removals_to_jsonl(found))
    return str(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """The corpora of the three arms, the questions, the removals, and `before` trained with seed 0."""
    out, rows = tmp_path_factory.mktemp("verify"), corpus_rows()
    write_jsonl(out / "corpus.jsonl", rows + PLANTED)
    write_jsonl(out / "cleaned.jsonl", rows)
    write_jsonl(out / "control.jsonl", rows[3:] + PLANTED)
    for name, questions in (("claims", CLAIMS), ("others", OTHERS), ("held_out", HELD_OUT)):
        write_jsonl(out / f"{name}.jsonl", questions)
    removals(out / "removals.jsonl", PLANTED)
    removals(out / "control_removals.jsonl", rows[:3])
    train.run(
        TrainConfig(
            corpus=str(out / "corpus.jsonl"), output=str(out / "before"), epochs=40, learning_rate=1e-2, **SHAPE
        )
    )
    return out


def config(place: Path, output: Path, **options) -> VerifyConfig:
    asked = {"facts": str(place / "claims.jsonl"), "retain_facts": str(place / "others.jsonl")}
    defaults = {"before": (str(place / "before"),), "output": str(output), **asked}
    return VerifyConfig(**(defaults | options))


def given(place: Path, count: int = 1) -> dict:
    """Arms of checkpoints that are there: the earlier ones of `before` stand for others."""
    steps = sorted(str(folder) for folder in (place / "before").glob("step-*"))
    return {"before": (steps[2],) * count, "after": (steps[0],) * count, "control": (steps[1],) * count}


def predicting(place: Path) -> dict:
    return {
        "predict": True, "corpus": str(place / "corpus.jsonl"), "removals": str(place / "removals.jsonl"),
        "control_removals": str(place / "control_removals.jsonl"),
    }  # fmt: skip


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def weights(folder: Path) -> str:
    return model_hash(load_checkpoint(resources.resolve_checkpoints((str(folder),))[-1]).model)


def test_one_seed_keeps_its_keys_and_adds_the_new_ones(place, tmp_path):
    summary = verify.run(config(place, tmp_path / "v", **given(place)), None).details
    kept = [
        "num_facts", "num_retain_facts", "known_before", "known_after", "known_control", "others_known_before",
        "others_retained", "others_retained_control",
    ]  # fmt: skip
    written = json.loads((tmp_path / "v/summary.json").read_text())
    assert list(written)[: len(kept)] == kept and written == summary
    assert (summary["seeds"], summary["num_seeds"]) == ([0], 1)
    assert "held_out_loss_before" not in summary
    answers, effects = rows_of(tmp_path / "v/answers.jsonl"), rows_of(tmp_path / "v/effects.jsonl")
    assert [(r["arm"], r["seed"], r["fact_id"]) for r in answers[:4]] == [
        ("before", 0, "claim"), ("after", 0, "claim"), ("control", 0, "claim"), ("before", 0, "rain")
    ]  # fmt: skip
    assert [p["prompt"] for p in answers[0]["paraphrases"]] == PROMPTS and "paraphrases" not in answers[3]
    assert [row["fact_id"] for row in effects] == ["claim", "rain", "oz"]
    for arm in ("before", "after", "control"):
        [probability] = [math.exp(r["log_probability"]) for r in answers if (r["arm"], r["fact_id"]) == (arm, "claim")]
        assert effects[0][f"probability_{arm}"] == pytest.approx(probability)


def test_held_out_loss_is_that_of_each_arms_model_per_token(place, tmp_path):
    arms = given(place)
    held = {"held_out": str(place / "held_out.jsonl")}
    summary = verify.run(config(place, tmp_path / "v", **arms, **held), None).details
    for arm, (path,) in arms.items():
        loaded, loss, tokens = load_checkpoint(path), 0.0, 0
        for text in tiny.TEXTS:
            ids = [*loaded.tokenizer(text).input_ids, loaded.tokenizer.eos_token_id][:32]
            batch = torch.tensor([ids])
            loss += loaded.model(input_ids=batch, labels=batch).loss.item() * (len(ids) - 1)
            tokens += len(ids) - 1
        assert summary[f"held_out_loss_{arm}"] == pytest.approx(loss / tokens, rel=1e-5)
    assert (summary["held_out_examples"], summary["held_out_tokens"], summary["held_out_cut"]) == (6, tokens, 1)
    difference = summary["effects"]["held_out"]["loss_per_token"]["after_minus_control"]
    assert difference["mean"] == pytest.approx(summary["held_out_loss_after"] - summary["held_out_loss_control"])
    assert difference["low"] < difference["mean"] < difference["high"]
    assert abs(difference["mean"]) > 0.01  # they are different models


def test_arms_are_trained_for_every_seed_and_before_is_taken_where_it_has_the_seed(place, tmp_path):
    corpora = {name: str(place / f"{name}.jsonl") for name in ("corpus", "cleaned", "control")}
    short = tmp_path / "before"
    train.run(TrainConfig(corpus=corpora["corpus"], output=str(short), epochs=2, num_checkpoints=1, **SHAPE))
    trained: list[TrainConfig] = []

    def recording(asked: TrainConfig):
        trained.append(asked)
        return train.run(asked)

    options = {
        "before": (str(short),), "seeds": "0,1", "before_corpus": corpora["corpus"],
        "after_corpus": corpora["cleaned"], "control_corpus": corpora["control"],
    }  # fmt: skip
    summary = verify.run(config(place, tmp_path / "v", **options), recording).details
    assert (summary["seeds"], summary["num_seeds"]) == ([0, 1], 2)
    assert summary["intervals"]["over"].startswith("seeds, and facts")
    names = ["after-checkpoints-0", "control-checkpoints-0", "before-checkpoints-1", "after-checkpoints-1"]
    names.append("control-checkpoints-1")
    assert [Path(asked.output).name for asked in trained] == names
    assert [asked.like for asked in trained[:3]] == [str(short)] * 3
    assert {Path(asked.like).name for asked in trained[3:]} == {"before-checkpoints-1"}
    made = {name: read_manifest(str(tmp_path / "v" / name), "checkpoints") for name in names}
    assert [manifest.details["recipe"]["seed"] for manifest in made.values()] == [0, 0, 1, 1, 1]
    # Another seed's `before` is what a training with that seed gives, and its `after` is trained like it.
    for name, corpus in (("before", "corpus"), ("after", "cleaned")):
        again = tmp_path / f"{name}-again"
        train.run(TrainConfig(corpus=corpora[corpus], output=str(again), like=str(short), seed=1))
        assert weights(again) == weights(tmp_path / "v" / f"{name}-checkpoints-1") != weights(short)
    answers = rows_of(tmp_path / "v/answers.jsonl")
    assert [(r["seed"], r["arm"]) for r in answers[:6]] == [
        (seed, arm) for seed in (0, 1) for arm in ("before", "after", "control")
    ]
    found = {(r["seed"], r["arm"]): math.exp(r["log_probability"]) for r in answers[:6]}
    effects = rows_of(tmp_path / "v/effects.jsonl")
    mean = np.mean([found[seed, "after"] - found[seed, "control"] for seed in (0, 1)])
    assert effects[0]["probability_after_minus_control"] == pytest.approx(mean)


def test_like_keeps_the_seed_that_is_not_given(place, tmp_path):
    again = TrainConfig(corpus=str(place / "cleaned.jsonl"), output=str(tmp_path / "a"), like=str(place / "before"))
    assert again.seed is None
    assert verify._own_seed(str(place / "before")) == 0
    short = {"corpus": str(place / "cleaned.jsonl"), "epochs": 1, "num_checkpoints": 1, **SHAPE}
    train.run(TrainConfig(output=str(tmp_path / "seven"), seed=7, **short))
    like = {"corpus": str(place / "cleaned.jsonl"), "like": str(tmp_path / "seven")}
    assert train.run(TrainConfig(output=str(tmp_path / "b"), **like)).details["recipe"]["seed"] == 7
    assert weights(tmp_path / "b") == weights(tmp_path / "seven")
    assert train.run(TrainConfig(output=str(tmp_path / "c"), seed=8, **like)).details["recipe"]["seed"] == 8


def test_a_checkpoint_a_seed_may_be_given_for_every_arm(place, tmp_path):
    arms = given(place, 2)
    arms["after"] = (arms["after"][0], arms["before"][0])
    summary = verify.run(config(place, tmp_path / "v", **arms), None).details
    answers = {(r["seed"], r["arm"], r["fact_id"]): r for r in rows_of(tmp_path / "v/answers.jsonl")}
    for seed, path in enumerate(arms["after"]):
        same = verify.run(config(place, tmp_path / str(seed), **given(place) | {"after": (path,)}), None)
        alone = {r["fact_id"]: r for r in rows_of(tmp_path / f"{seed}/answers.jsonl") if r["arm"] == "after"}
        assert answers[seed, "after", "claim"]["log_probability"] == alone["claim"]["log_probability"]
        assert same.kind == "verification"
    assert summary["seeds"] == [0, 1]


def digest(folder: Path) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


def test_a_prediction_steps_on_a_copy_and_says_that_it_is_one(place, tmp_path):
    before = digest(place / "before")
    options = predicting(place) | {"held_out": str(place / "held_out.jsonl"), "step_size": 3.0}
    manifest = verify.run(config(place, tmp_path / "p", **options), None)
    assert digest(place / "before") == before
    assert manifest.kind == "prediction"
    names = {"predictions.jsonl", "predicted_effects.jsonl", "summary.json", "manifest.json"}
    assert {p.name for p in (tmp_path / "p").iterdir()} == names
    summary = json.loads((tmp_path / "p/summary.json").read_text())
    assert (summary["step_size"], summary["num_removed"], summary["num_control"]) == (3.0, 3, 3)
    assert summary["predicted"].endswith("no model was trained")
    assert all(said.startswith("Predicted, not measured: ") for said in summary["predicted_statements"])
    measured_names = ("known_after", "known_control", "others_retained", "held_out_loss_after", "effects", "statements")
    assert not set(measured_names) & summary.keys()
    assert "predicted_held_out_loss_after" in summary and "held_out_loss_before" in summary
    claim = rows_of(tmp_path / "p/predicted_effects.jsonl")[0]
    assert claim["prompts_known_before"] == 2  # the model was trained until it said the claim
    drop, control = (claim[f"predicted_probability_{arm}_minus_before"] for arm in ("after", "control"))
    assert drop < -0.01 and drop < 2 * control and claim["predicted_probability_after_minus_control"] < -0.01
    with pytest.raises(ArtifactMismatch, match="expected a folder of kind 'verification', found 'prediction'"):
        read_manifest(str(tmp_path / "p"), "verification")


def test_a_longer_step_predicts_a_larger_change(place, tmp_path):
    drops = []
    for size in (0.5, 2.0):
        verify.run(config(place, tmp_path / str(size), **predicting(place), step_size=size), None)
        claim = rows_of(tmp_path / str(size) / "predicted_effects.jsonl")[0]
        drops.append(claim["predicted_probability_after_minus_before"])
    assert drops[1] < drops[0] < 0


def test_an_example_counts_for_what_it_did_in_a_step_however_many_others_are_taken(place, tmp_path):
    """The gradient is a sum over nominal tokens: the nominal tokens are the recipe's, or those that are given."""
    recipe = json.loads((place / "before/manifest.json").read_text())["details"]["recipe"]
    predicted = []
    for name, options in {"own": {}, "given": {"tokens_per_batch": 2 * recipe["tokens_per_batch"]}}.items():
        size = {"step_size": 1.0 if name == "own" else 2.0}
        verify.run(config(place, tmp_path / name, **predicting(place), **size, **options), None)
        predicted.append([r["log_probability"] for r in rows_of(tmp_path / name / "predictions.jsonl")])
    assert predicted[0] == pytest.approx(predicted[1], abs=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"before": ("a", "b"), "after": ("c",), "control": ("e", "f")},
         "--after: expected as many checkpoints as --before has, 2, found 1"),
        ({"after": ("c",), "control": ("e", "f")}, "--control: expected as many checkpoints as .* has, 1, found 2"),
        ({"after": ("c",)}, "--control: expected either a checkpoint or --control_corpus, found ''"),
        ({"after": ("c",), "control": ("d",), "control_corpus": "e"}, "--control: expected either .*, found 'both'"),
        ({"before": ()}, "--before: expected at least one checkpoint"),
        ({"before": "b", "after": ("c",), "control": ("d",)}, "--before: expected a tuple of checkpoints, found 'b'"),
        ({"seeds": "0,x"}, "--seeds: expected different whole numbers, as 0,1,2, found '0,x'"),
        ({"seeds": "0,1,0"}, "--seeds: expected different whole numbers, as 0,1,2, found '0,1,0'"),
        ({"seeds": "0,1", "after": ("c",)}, "--after: expected --after_corpus instead, with --seeds"),
        ({"seeds": "0,1", "before": ("a", "b")}, "--before: expected one checkpoint, with --seeds"),
        ({"seeds": "0,1", "after_corpus": "c", "control_corpus": "d"}, "--before_corpus: expected the corpus that"),
        ({"seeds": "0,1", "before_corpus": "c", "after_corpus": "c"}, "--control: expected either a checkpoint or"),
        ({"before_corpus": "c", "after": ("c",), "control": ("d",)}, "--before_corpus: expected it with --seeds"),
        ({"removals": "r", "after": ("c",), "control": ("d",)}, "--removals: expected it with --predict alone"),
        ({"predict": True}, "--corpus: expected a file, with --predict, found ''"),
        ({"predict": True, "corpus": "c", "removals": "r"}, "--control_removals: expected a file, with --predict"),
        ({"predict": True, "after": ("c",)}, "--after: expected nothing with --predict, which trains no model"),
        ({"predict": True, "corpus": "c", "removals": "r", "control_removals": "n", "step_size": 0.0},
         "--step_size: expected more than 0, found 0.0"),
    ],
)  # fmt: skip
def test_options_that_do_not_go_together_are_refused_by_name(place, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        config(place, tmp_path / "v", **options)


def refused(place: Path, tmp_path: Path, error: type[Exception], message: str, **options) -> None:
    with pytest.raises(error, match=message):
        verify.run(config(place, tmp_path / "v", **options), train=None)
    assert not (tmp_path / "v").exists() and not (tmp_path / ".v.partial").exists()


def test_a_held_out_corpus_without_a_record_is_refused(place, tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    message = "--held_out .*empty.jsonl: expected records to measure the loss on, found none"
    refused(place, tmp_path, ConfigError, message, **given(place), held_out=str(empty))
    refused(place, tmp_path, ConfigError, message, **predicting(place), held_out=str(empty))


def test_a_bad_held_out_record_is_named(place, tmp_path):
    bad = write_jsonl(tmp_path / "bad.jsonl", [*HELD_OUT[:2], {"id": "x", "text": " "}])
    message = "bad.jsonl, row 3: field 'text' must be text that is not empty, found ' '; mend the record"
    refused(place, tmp_path, ConfigError, message, **given(place), held_out=bad)


def test_held_out_losses_of_two_tokenizers_are_not_compared(place, tmp_path):
    other = tiny.save(tiny.gpt2(), tmp_path / "other")
    message = "--held_out: expected checkpoints with one tokenizer.*found another in .*/step-"
    arms = given(place) | {"control": (other,)}
    refused(place, tmp_path, ArtifactMismatch, message, **arms, held_out=str(place / "held_out.jsonl"))
    verify.run(config(place, tmp_path / "without", **arms), None)  # answers need no tokenizer in common


def test_a_checkpoint_without_optimizer_state_is_not_predicted_from(place, tmp_path):
    bare = tiny.save(tiny.gpt2(), tmp_path / "bare")
    message = r"bare: expected an optimizer state beside the weights \(optimizer.safetensors, .*found none; --predict"
    refused(place, tmp_path, ConfigError, message, **predicting(place) | {"before": (bare,)})


def test_a_checkpoint_without_its_rate_or_its_tokens_a_step_is_not_predicted_from(place, tmp_path):
    folder = tmp_path / "bare"
    model = tiny.gpt2()
    tiny.save(model, folder)
    tiny.save_moments(model, folder)
    meta = {"step": 3, "beta2": 0.9, "eps": 1e-8}
    (folder / "checkpoint.json").write_text(json.dumps(meta))
    options = predicting(place) | {"before": (str(folder),)}
    refused(place, tmp_path, ConfigError, "bare: expected its learning rate in checkpoint.json", **options)
    rated = shutil.copytree(folder, tmp_path / "rated")
    (rated / "checkpoint.json").write_text(json.dumps(meta | {"learning_rate": 1e-3}))
    options = predicting(place) | {"before": (str(rated),)}
    message = "rated: expected the tokens that a training step took in checkpoint.json, found no recipe there; give --t"
    refused(place, tmp_path, ConfigError, message, **options)
    assert verify.run(config(place, tmp_path / "p", **options, tokens_per_batch=100.0), None).kind == "prediction"


def test_removals_that_are_not_approved_missing_or_changed_are_refused(place, tmp_path):
    proposed = removals(tmp_path / "proposed.jsonl", PLANTED, "proposed")
    message = "expected at least one removal whose decision is 'approved', found none"
    refused(place, tmp_path, ConfigError, message, **predicting(place) | {"removals": proposed})
    gone = {"corpus": str(place / "cleaned.jsonl")}
    message = r"expected every approved removal as it was judged, found 3 that stand nowhere in it \(p0, p1, p2\)"
    refused(place, tmp_path, ArtifactMismatch, message, **predicting(place) | gone)
    other = removals(tmp_path / "other.jsonl", [PLANTED[0] | {"text": "Another text."}])
    message = r"found 1 whose text is another there \(p0\); give the corpus that was indexed"
    refused(place, tmp_path, ArtifactMismatch, message, **predicting(place) | {"removals": other})


def test_a_redaction_is_not_predicted_as_if_the_whole_text_went():
    found = [Removal("a", "0", "approved", "test"), Removal("b", "0", "approved", "test", action="redact")]
    predict.require_whole(found[:1], "r.jsonl", "removals")
    with pytest.raises(ConfigError, match=r"--removals r.jsonl: expected removals of whole examples, found 1 .* \(b\)"):
        predict.require_whole(found, "r.jsonl", "removals")


def test_another_corpus_than_the_one_of_before_is_refused(place, tmp_path):
    corpora = {name: str(place / f"{name}.jsonl") for name in ("cleaned", "control")}
    options = {"seeds": "0,1", "after_corpus": corpora["cleaned"], "control_corpus": corpora["control"]}
    message = "--before_corpus .*cleaned.jsonl: expected the 53 examples that .*before was trained on, found 50; give"
    refused(place, tmp_path, ArtifactMismatch, message, **options, before_corpus=corpora["cleaned"])


def test_a_prompt_of_a_fact_that_does_not_fit_the_model_is_refused_before_any_training(place, tmp_path):
    long = {"id": "long", "prompts": ["Oz is", "Oz " * 60], "target": "Verona"}
    facts = write_jsonl(tmp_path / "facts.jsonl", [long])
    refused(place, tmp_path, ConfigError, "fact 'long': .* tokens, but .* takes 32", **given(place), facts=facts)


def test_the_command_line_takes_several_checkpoints_an_arm(place, tmp_path, capsys):
    arms = given(place, 2)
    command = ["verify", *(word for arm, paths in arms.items() for word in (f"--{arm}", *paths)), "--quiet"]
    asked = ["--facts", str(place / "claims.jsonl"), "--retain_facts", str(place / "others.jsonl")]
    assert main([*command, *asked, "--output", str(tmp_path / "v")]) == 0
    assert json.loads((tmp_path / "v/summary.json").read_text())["num_seeds"] == 2
    assert main(["verify", "--before", "a", "b", "--after", "c", *asked, "--output", str(tmp_path / "w")]) == 2
    assert "--after: expected as many checkpoints as --before has, 2, found 1" in capsys.readouterr().err
