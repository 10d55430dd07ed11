"""D from end to end with an LM of two thousand parameters, its scores by hand, and controls that must fail."""

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.stats import spearmanr
from torch.nn import functional

from attribution.checkpoint import load_checkpoint
from bench.quality import a2, d, lm, peer, peers, raw, report
from bench.quality.__main__ import main
from schemas.errors import ConfigError
from tests.bench.conftest import RECIPE

PLAN = d.Plan(
    part=lm.Part(sentences=100, most_words=20, most_statements=3, per_object=3, cue=2),
    recipe=RECIPE | {"epochs": 30},
    facts=20,
    subsets=12,
    gradients=(a2.GRADIENTS[0], a2.Gradient("gradient_kfac", True)),
)
ARMS = {"fused", "bm25", "dense", "gradient", "gradient_cosine", "gradient_kfac", *d.RAW, "random"}
GENERATOR = np.random.default_rng(0)


@pytest.fixture(scope="module")
def measured(tmp_path_factory, capitals, pooled, programs):
    """(D's result, its folder)."""
    out = tmp_path_factory.mktemp("d")
    return d.run("small", capitals, out, pooled, PLAN, workers=0, programs=programs), out


def test_rank_correlations_are_spearmans_with_ties():
    a, b = GENERATOR.integers(0, 5, (6, 20)), GENERATOR.normal(size=(6, 20))
    expected = [spearmanr(left, right).statistic for left, right in zip(a, b, strict=True)]
    np.testing.assert_allclose(d.rank_correlations(a, b), expected, atol=1e-12)
    assert d.rank_correlations(np.ones((1, 4)), np.arange(4.0)[None]) == [0]


def test_subsets_are_halves_and_differ():
    drawn = d.draw(11, 30)
    assert drawn.shape == (30, 11) and (drawn.sum(axis=1) == 5).all() and len({row.tobytes() for row in drawn}) > 25
    assert np.array_equal(drawn, d.draw(11, 30)) and drawn.any(axis=0).all()


def test_what_adds_up_is_predicted_by_its_own_parts():
    """An outcome that is a sum over the examples has an LDS of 1 by its terms, of -1 by their negatives."""
    terms, drawn = GENERATOR.normal(size=(4, 40)), d.draw(40, 100)
    outcomes = terms @ drawn.T
    np.testing.assert_allclose(d.lds(terms, outcomes, drawn), 1)
    np.testing.assert_allclose(d.lds(-3 * terms, outcomes, drawn), -1)
    assert abs(d.lds(terms[::-1].copy(), outcomes, drawn)).max() < 0.5


def test_the_gain_at_k_is_the_mean_of_the_best_k():
    scores = np.array([[0.5, 2.0, 0.5, 1.0]])
    gains = np.array([[10.0, 1.0, 20.0, 4.0]])
    assert d.patched(scores, gains, (1, 2, 3, 10)).tolist() == [[1.0, 2.5, 5.0, 8.75]]


def test_a_step_on_one_text_is_that_of_the_optimizer(measured, capitals):
    """By hand: p -= lr / tokens * g / (sqrt(V / (1 - beta2^t)) + eps), the target before and after."""
    (place,) = measured[1].glob("train-*/model/step-*")
    fact = capitals.facts[0]
    own, rate = capitals.texts[min(capitals.proponents(fact))], 1e-4
    gains = d.tail_patch(str(place), [own, "It rained."], [fact], rate)
    loaded, moments = load_checkpoint(str(place)), load_file(place / "optimizer.safetensors")
    meta = json.loads((place / "checkpoint.json").read_text())
    model = loaded.model.requires_grad_(True)

    def probability() -> float:
        tokens = torch.tensor([loaded.tokenizer(fact.prompt + fact.target).input_ids])
        start = len(loaded.tokenizer(fact.prompt).input_ids)
        found = model(input_ids=tokens).logits[0].log_softmax(-1)
        return sum(found[t - 1, tokens[0, t]] for t in range(start, tokens.shape[1])).exp().item()

    before = probability()
    tokens = torch.tensor([[*loaded.tokenizer(own).input_ids, loaded.tokenizer.eos_token_id]])
    logits = model(input_ids=tokens).logits[0, :-1]
    functional.cross_entropy(logits, tokens[0, 1:], reduction="sum").backward()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            moment = moments[name] / (1 - meta["beta2"] ** meta["step"])
            step = parameter.grad / (moment.sqrt() + meta["eps"])
            parameter -= rate / meta["recipe"]["tokens_per_batch"] * step
    assert gains[0, 0] == pytest.approx(probability() - before, abs=1e-5)
    assert gains[0, 0] > gains[0, 1] and gains[0, 0] > 1e-4


def test_raw_scores_are_what_they_are_named(measured, capitals):
    """Dot products grow with a text's gradient, means of cosines do not exceed 1; none depends on the others' order."""
    (place,) = measured[1].glob("train-*/model/step-*")
    texts, facts = capitals.texts[:5], capitals.facts[:3]
    found = raw.scores(str(place), texts, facts, d.RAW)
    turned = raw.scores(str(place), texts[::-1], facts, d.RAW)
    assert list(found) == list(d.RAW) and len({scores.tobytes() for scores in found.values()}) == len(d.RAW)
    for arm, scores in found.items():
        assert scores.shape == (3, 5)
        np.testing.assert_allclose(turned[arm][:, ::-1], scores, rtol=2e-3, atol=2e-3 * np.abs(scores).max())
        if arm not in ("gradient_dot", "kfac_dot", "kfac_influence", "kfac_contrast"):
            assert np.abs(scores).max() <= 1 + 1e-6
    assert list(raw.scores(str(place), texts, facts, raw.PLAIN)) == list(raw.PLAIN)
    told = raw.contrast(np.array([[3.0, 0.0], [4.0, 0.0]]))
    np.testing.assert_allclose(told, [[3 / 12.5**0.5, 0], [4 / 12.5**0.5, 0]])


def test_every_arm_is_measured(measured, capitals):
    result, _ = measured
    assert set(result["arms"]) == ARMS | set(peers.ARMS)
    assert result["facts"] == PLAN.facts and result["examples"] == sum(len(fact.proponents) for fact in capitals.facts)
    for name, row in result["arms"].items():
        for measure in ("lds", *(f"tail_patch_at_{k}" for k in d.KS)):
            low, high = row[f"{measure}_interval"]
            assert -1 <= low <= row[measure] <= high <= 1
        assert name == "random" or row["seconds"] > 0
    for arm in ("fused", "bm25", "gradient", "gradient_kfac"):
        assert result["arms"][arm]["lds"] > 0.2 and result["arms"][arm]["tail_patch_at_1"] > 0
        assert result["arms"][arm]["tail_patch_at_1"] > 2 * result["arms"]["random"]["tail_patch_at_1"]
    assert result["arms"]["random"]["lds"] == 0
    (best,) = {name.partition(" - ")[0] for name in result["paired"]}
    pure = ("gradient_cosine", "gradient_kfac", *d.RAW)
    assert result["arms"][best]["lds"] == max(result["arms"][arm]["lds"] for arm in pure)
    assert len(result["checks"]) == 6 * len(peers.ARMS)
    json.dumps(result)


def test_other_facts_outcomes_are_not_predicted(measured):
    """The control: scores of one fact beside what the subsets do to another."""
    result, out = measured
    with np.load(next(out.glob("scores_index-*/scores.npz"))) as kept:
        scores = dict(kept)
    (subset,) = {len(list(out.glob("train_subset*-*")))}
    assert subset == PLAN.subsets
    answers = sorted(out.glob("train_subset*-*/answers.jsonl"))
    said = [json.loads(line) for path in answers for line in path.read_text().splitlines()]
    outcomes = np.array([row["log_probability"] for row in said]).reshape(PLAN.subsets, PLAN.facts).T
    drawn = d.draw(result["examples"], PLAN.subsets)
    for arm, found in scores.items():
        right = d.lds(found, outcomes, drawn).mean()
        assert right == pytest.approx(result["arms"][arm]["lds"], abs=1e-6)
        if arm in ("fused", "bm25"):
            assert d.lds(np.roll(found, 7, axis=0), outcomes, drawn).mean() < right / 2


def test_a_resumed_run_says_the_same_and_makes_nothing(measured, capitals, pooled, programs, monkeypatch):
    result, out = measured
    for module, name in ((lm.train, "run"), (d.index, "run"), (d, "tail_patch"), (d, "traced"), (peer, "call")):
        monkeypatch.setattr(module, name, lambda *given, **more: pytest.fail("something was made again"))
    again = d.run("small", capitals, out, pooled, PLAN, workers=0, programs=programs)
    assert again["arms"] == result["arms"] and again["checks"] == result["checks"]


def test_the_report_names_every_arm(measured, tmp_path):
    result, _ = measured
    report.write(result, tmp_path)
    table, plot = ((tmp_path / name).read_text() for name in ("table.md", "agreement.svg"))
    ElementTree.parse(tmp_path / "agreement.svg")
    for arm in result["arms"]:
        assert f"| {arm} | {result['arms'][arm]['lds']:.3f} [" in table and arm in plot
    assert (
        f"learning rate {result['config']['learning_rate']:g})" in table
        and "tail patch at 10" in table
        and "## What is to hold" in table
    )


def test_a_part_with_too_few_facts_is_refused(capitals, pooled, tmp_path, monkeypatch):
    monkeypatch.setattr(d, "LEAST_FACTS", 1000)
    with pytest.raises(ConfigError, match="at least 1000 facts that 100 short sentences state, found 24; give others"):
        d.run("small", capitals, tmp_path, pooled, PLAN, workers=0)


def test_the_command_runs_the_track(measured, capitals, pooled, programs, tmp_path, capsys, monkeypatch):
    result, out = measured
    monkeypatch.setitem(d.SETTINGS, "small", PLAN)
    monkeypatch.setattr("bench.quality.a1.default_encoder", lambda: (pooled, "given"))
    command = ["D", "--data", str(Path(capitals.corpus).parent), "--out", str(out), "--resume"]
    for package, folder in programs.items():
        command += [f"--{package}", str(folder)]
    monkeypatch.setattr(lm.train, "run", lambda config: pytest.fail("a model was trained again"))
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["arms"].keys() == result["arms"].keys()
