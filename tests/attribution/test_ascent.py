"""The step up a loss: its formula by hand, and that it is taken on a copy."""

import pytest
import torch

from attribution import ascent
from attribution.ascent import ascended, loss_gradient
from attribution.checkpoint import Checkpoint, load_checkpoint, model_hash
from attribution.held_out import losses
from attribution.optimizer_state import read_whole_moments
from attribution.sequences import Sequence, encode_example
from tests import tiny


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def checkpoint(request, tiny_paths) -> Checkpoint:
    return load_checkpoint(tiny_paths[request.param])


@pytest.fixture(scope="module")
def sequences(checkpoint) -> list[Sequence]:
    return [encode_example(checkpoint, text) for text in tiny.TEXTS]


def test_the_gradient_is_that_of_the_summed_loss_whatever_the_batches(checkpoint, sequences, monkeypatch):
    model = load_checkpoint(checkpoint.path).model.double().requires_grad_()
    for sequence in sequences:
        labels = torch.tensor(sequence.labels)
        log_probabilities = model(input_ids=torch.tensor([sequence.tokens])).logits[0].log_softmax(-1)
        (-log_probabilities.gather(1, labels[:, None]).sum()).backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    for batch_tokens in (1024, 30):
        monkeypatch.setattr(ascent, "BATCH_TOKENS", batch_tokens)
        found = loss_gradient(checkpoint, sequences)
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            torch.testing.assert_close(gradient.double(), expected[name], rtol=1e-3, atol=1e-4)
    assert not any(p.requires_grad for p in checkpoint.model.parameters())


def test_a_parameter_moves_by_rate_times_gradient_over_the_root_of_its_second_moment_plus_eps(checkpoint):
    first = {name: p.clone() for name, p in checkpoint.model.named_parameters()}
    name, other = list(first)[:2]
    gradient, moment = torch.full_like(first[name], 3.0), torch.full_like(first[name], 0.25)
    moved = ascended(checkpoint, {name: gradient}, {name: moment}, eps=0.5, rate=0.1)
    found = dict(moved.model.named_parameters())
    torch.testing.assert_close(found[name], first[name] + 0.1 * 3.0 / (0.25**0.5 + 0.5))
    assert torch.equal(found[other], first[other])


def test_the_step_raises_the_loss_of_its_examples_on_a_copy_and_leaves_the_checkpoint(checkpoint, sequences):
    hashed = model_hash(checkpoint.model)
    ones = {name: torch.ones_like(p) for name, p in checkpoint.model.named_parameters()}
    chosen = sequences[:2]
    moved = ascended(checkpoint, loss_gradient(checkpoint, chosen), ones, 1e-8, rate=1e-3)
    before, after = losses(checkpoint, chosen), losses(moved, chosen)
    assert (after > before).all()
    assert model_hash(checkpoint.model) == hashed != model_hash(moved.model)
    gradient = loss_gradient(checkpoint, chosen)
    slope = sum(float((g.double() ** 2).sum()) for g in gradient.values())
    tiny_step = ascended(checkpoint, gradient, ones, 0.0, rate=1e-6)
    assert losses(tiny_step, chosen).sum() - before.sum() == pytest.approx(1e-6 * slope, rel=0.1)


def test_only_what_training_moves_has_a_gradient(tiny_paths, tmp_path):
    pytest.importorskip("peft")
    path = tiny.save_adapter(tiny_paths["llama"], tmp_path / "adapter", **tiny.ADAPTERS["lora"])
    adapted = load_checkpoint(path)
    gradient = loss_gradient(adapted, [encode_example(adapted, tiny.TEXTS[0])])
    assert gradient.keys() == adapted.trainable and all("lora" in name for name in gradient)


def test_the_second_moments_of_a_training_here_are_read_whole(tmp_path):
    model = tiny.gpt2()
    folder = tmp_path / "c"
    tiny.save(model, folder)
    saved = tiny.save_moments(model, folder)
    names = frozenset(saved)
    found, eps, file = read_whole_moments(str(folder), model, {"step": 3, "beta2": 0.9, "eps": 1e-7}, names)
    assert (eps, file) == (1e-7, "optimizer.safetensors") and found.keys() == names
    for name, moment in found.items():
        torch.testing.assert_close(moment, saved[name] / (1 - 0.9**3))
