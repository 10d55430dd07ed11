"""Training leaves holes: what is taken out moves nothing else, and the same recipe gives the same weights."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch.nn import functional

from attribution.checkpoint import OPTIMIZER, load_checkpoint, model_hash
from attribution.sequences import causal, encode_example
from attribution.training import BOS, EOS, PACKED_ATTENTION, Recipe, batch_loss, batch_of, new_model, train
from tests import tiny

TOKENIZER = tiny.make_tokenizer()
EXAMPLES = [
    (f"z{i}", [*TOKENIZER(text, verbose=False).input_ids, TOKENIZER.eos_token_id][: tiny.CONTEXT])
    for i, text in enumerate(tiny.TEXTS)
]
EVERY_STEP = replace(tiny.RECIPE, epochs=1, num_checkpoints=3)


def hashes(folders: list[Path]) -> list[str]:
    return [model_hash(load_checkpoint(str(folder)).model) for folder in folders]


def without(example_id: str) -> list[tuple[str, list[int]]]:
    return [example for example in EXAMPLES if example[0] != example_id]


def test_an_examples_batch_depends_on_nothing_but_seed_epoch_id_and_number_of_batches():
    ids = [f"z{n}" for n in range(300)]
    batches = [batch_of(0, 0, i, 5) for i in ids]
    assert set(batches) == set(range(5))
    assert min(np.bincount(batches)) > 30  # 60 a batch, standard deviation 6.9
    assert [batch_of(0, 0, i, 5) for i in reversed(ids)] == batches[::-1]
    for other in ([batch_of(1, 0, i, 5) for i in ids], [batch_of(0, 1, i, 5) for i in ids]):
        assert 20 < sum(a == b for a, b in zip(batches, other, strict=True)) < 100


def test_taking_an_example_out_leaves_all_others_in_their_batches(tmp_path, monkeypatch):
    seen: list[list[list[int]]] = []
    monkeypatch.setattr(
        "attribution.training.batch_loss", lambda model, batch: seen.append(batch) or batch_loss(model, batch)
    )
    train(EXAMPLES, tiny.RECIPE, TOKENIZER, tmp_path / "all")
    whole, gone = [list(batch) for batch in seen], EXAMPLES[2][1]
    seen.clear()
    train(without("z2"), tiny.RECIPE, TOKENIZER, tmp_path / "without")
    assert sum(batch.count(gone) for batch in whole) == tiny.RECIPE.epochs
    expected = [[tokens for tokens in batch if tokens != gone] for batch in whole]
    assert seen == [batch for batch in expected if batch]


def test_weights_before_the_removed_examples_batch_are_the_same_bit_by_bit_and_change_after_it(tmp_path):
    last = [i for i, _ in EXAMPLES if batch_of(0, 0, i, 3) == 2]
    assert last and {batch_of(0, 0, i, 3) for i, _ in EXAMPLES} == {0, 1, 2}
    before = hashes(train(EXAMPLES, EVERY_STEP, TOKENIZER, tmp_path / "all"))
    after = hashes(train(without(last[0]), EVERY_STEP, TOKENIZER, tmp_path / "without"))
    assert (after[:2], after[2] != before[2]) == (before[:2], True)


def test_same_recipe_gives_the_same_weights_whatever_the_order_of_the_examples(tmp_path):
    first = hashes(train(EXAMPLES, tiny.RECIPE, TOKENIZER, tmp_path / "first"))
    assert hashes(train(EXAMPLES[::-1], tiny.RECIPE, TOKENIZER, tmp_path / "second")) == first
    assert len(set(first)) == tiny.RECIPE.num_checkpoints
    assert hashes(train(EXAMPLES, replace(tiny.RECIPE, seed=1), TOKENIZER, tmp_path / "third")) != first


def test_an_empty_batch_keeps_its_step_and_adam_counts_and_forgets_in_it(tmp_path):
    """One example, in the second of three batches: an empty one before it and an empty one after it."""
    [example_id] = [f"x{n}" for n in range(20) if batch_of(0, 0, f"x{n}", 3) == 1][:1]
    tokens, calls = EXAMPLES[0][1], []
    folders = train(
        [(example_id, tokens)], EVERY_STEP, TOKENIZER, tmp_path, lambda steps, count, _: calls.append((steps, count))
    )
    assert calls == [(1, 0), (1, len(tokens) - 1), (1, 0)]
    loaded = [load_checkpoint(str(folder)) for folder in folders]
    assert [(c.step, c.learning_rate) for c in loaded] == [(step + 1, EVERY_STEP.rate(step)) for step in range(3)]
    first, second, third = (load_file(folder / OPTIMIZER) for folder in folders)
    assert not any(moment.any() for moment in first.values())
    assert any(moment.any() for moment in second.values())
    for name, moment in second.items():
        np.testing.assert_allclose(third[name], EVERY_STEP.beta2 * moment, rtol=1e-6)
    assert model_hash(loaded[0].model) == model_hash(new_model(EVERY_STEP, len(TOKENIZER)))
    # Adam corrects the bias as of its second step: lr (1 - b1) g / (1 - b1^2) / sqrt((1 - b2) g^2 / (1 - b2^2)).
    before, after = (c.model.transformer.h[0].mlp.c_fc.weight for c in loaded[:2])
    expected = EVERY_STEP.rate(1) * math.sqrt(1 + EVERY_STEP.beta2) / (1 + EVERY_STEP.beta1)
    assert float((after - before).abs().median()) == pytest.approx(expected, rel=1e-3)


def test_loss_is_the_sum_over_the_batch_divided_by_the_nominal_tokens(tmp_path):
    """After one step of Adam V is (1 - beta2) g^2: the second moments show the gradient that was taken."""
    recipe = replace(tiny.RECIPE, epochs=1, batches_per_epoch=1, num_checkpoints=1, tokens_per_batch=1000.0)
    [folder] = train(EXAMPLES, recipe, TOKENIZER, tmp_path)
    model = new_model(recipe, len(TOKENIZER))
    total = sum(
        functional.cross_entropy(
            model(input_ids=torch.tensor([tokens])).logits[0, :-1], torch.tensor(tokens[1:]), reduction="sum"
        )
        for _, tokens in EXAMPLES
    )
    (total / 1000.0).backward()
    norm = math.sqrt(sum(float((p.grad**2).sum()) for p in model.parameters()))
    assert norm < 1.0  # not clipped
    found = load_file(folder / OPTIMIZER)
    assert found.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        expected = (1 - recipe.beta2) * parameter.grad.numpy() ** 2
        np.testing.assert_allclose(found[name], expected, rtol=1e-3, atol=1e-12)


def test_gradients_are_clipped_at_norm_one(tmp_path):
    recipe = replace(tiny.RECIPE, epochs=1, batches_per_epoch=1, num_checkpoints=1, tokens_per_batch=0.1)
    [folder] = train(EXAMPLES, recipe, TOKENIZER, tmp_path)
    total = sum(float(moment.astype(np.float64).sum()) for moment in load_file(folder / OPTIMIZER).values())
    assert total / (1 - recipe.beta2) == pytest.approx(1.0, rel=1e-3)


def test_batch_loss_is_the_sum_of_the_sequences_losses():
    model = tiny.gpt2()
    batch = [*(tokens for _, tokens in EXAMPLES), [5]]  # one token alone predicts nothing
    expected = 0.0
    for tokens in batch[:-1]:
        ids = torch.tensor([tokens])
        expected += model(input_ids=ids, labels=ids).loss.item() * (len(tokens) - 1)
    model.set_attn_implementation(PACKED_ATTENTION)
    assert batch_loss(model, batch).item() == pytest.approx(expected, rel=1e-5)
    parts = batch_loss(model, batch[:1]).item() + batch_loss(model, batch[1:]).item()
    assert parts == pytest.approx(expected, rel=1e-5)


def test_training_lowers_the_loss(tmp_path):
    losses: list[float] = []
    recipe = replace(tiny.RECIPE, epochs=10, batches_per_epoch=1, num_checkpoints=1)
    train(EXAMPLES, recipe, TOKENIZER, tmp_path, lambda steps, tokens, loss: losses.append(loss))
    assert losses[0] == pytest.approx(math.log(len(TOKENIZER)), rel=0.05)  # it begins knowing nothing
    assert losses[-1] < 0.9 * losses[0]


def test_rate_warms_up_linearly_and_falls_on_a_cosine_that_does_not_reach_zero():
    recipe = replace(tiny.RECIPE, epochs=10, batches_per_epoch=10, learning_rate=0.5, warmup_fraction=0.1)
    assert [recipe.rate(step) for step in (0, 4, 9)] == pytest.approx([0.5 * 1 / 10, 0.5 * 5 / 10, 0.5 * 10 / 10])
    assert recipe.rate(10) == pytest.approx(0.5)
    assert recipe.rate(55) == pytest.approx(0.5 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 45 / 90))))
    assert recipe.rate(100) == pytest.approx(0.5 * 0.1)
    assert all(recipe.rate(step) > recipe.rate(step + 1) for step in range(10, 99))


@pytest.mark.parametrize(
    ("steps", "checkpoints", "expected"), [(10, 2, [5, 10]), (7, 3, [2, 5, 7]), (3, 3, [1, 2, 3]), (5, 1, [5])]
)
def test_checkpoints_are_spread_evenly_and_the_last_is_the_end(steps, checkpoints, expected):
    recipe = replace(tiny.RECIPE, epochs=steps, batches_per_epoch=1, num_checkpoints=checkpoints)
    assert recipe.checkpoint_steps() == expected


def test_a_checkpoint_holds_its_recipe_and_what_attribution_reads(tmp_path):
    noted = {"corpus": "c.jsonl", "step": -1}  # a note cannot stand for what was done
    folders = train(EXAMPLES, tiny.RECIPE, TOKENIZER, tmp_path, noted=noted)
    assert [folder.name for folder in folders] == ["step-000003", "step-000006"]
    meta = json.loads((folders[-1] / "checkpoint.json").read_text())
    assert Recipe(**meta.pop("recipe")) == tiny.RECIPE
    rate = tiny.RECIPE.rate(5)
    own = {"step": 6, "learning_rate": rate, "beta2": 0.99, "eps": 1e-8, "add_eos": True}
    assert meta == {"corpus": "c.jsonl", **own}
    assert "proponent" not in (folders[-1] / "config.json").read_text()  # the attention of the training is its own
    loaded = load_checkpoint(str(folders[-1]))
    assert encode_example(loaded, tiny.TEXTS[0]) == causal(EXAMPLES[0][1])
    assert (loaded.step, loaded.learning_rate) == (6, rate)


def test_new_model_depends_on_the_recipes_seed_and_has_no_dropout():
    def weights(seed: int) -> str:
        return model_hash(new_model(replace(tiny.RECIPE, seed=seed), 300))

    torch.manual_seed(123)
    assert weights(0) == weights(0) != weights(1)
    model = new_model(tiny.RECIPE, 300).train()
    tokens = torch.tensor([EXAMPLES[0][1]])
    assert torch.equal(model(input_ids=tokens).logits, model(input_ids=tokens).logits)
    assert asdict(tiny.RECIPE)["layers"] == model.config.n_layer


def test_tokenizer_puts_bos_before_a_text_and_loses_no_character():
    assert (TOKENIZER.bos_token, TOKENIZER.eos_token, TOKENIZER.model_max_length) == (BOS, EOS, tiny.CONTEXT)
    assert len(TOKENIZER) == tiny.VOCABULARY
    for text in ("", "The capital of Oz", " two  spaces\n", "日本 🙂 \x00"):
        tokens = TOKENIZER(text).input_ids
        assert tokens[0] == TOKENIZER.bos_token_id == 0
        assert TOKENIZER.decode(tokens[1:]) == text


def test_tokenizer_of_the_same_texts_is_the_same():
    assert TOKENIZER.backend_tokenizer.to_str() == tiny.make_tokenizer().backend_tokenizer.to_str()
