"""K-FAC: unit labels, the factors against plain autograd, the whitened feature against the whole whitened gradient."""

import numpy as np
import pytest
import torch

from attribution import kfac
from attribution.backward import Backward, to_loss_gradient
from attribution.checkpoint import load_checkpoint
from attribution.gradients import FeatureExtractor
from attribution.kfac import DAMPING, estimate_roots, load_roots, roots_bytes, save_roots
from attribution.layers import tracked_layers
from attribution.projection import Projection
from attribution.sequences import causal
from tests import tiny

WHOLE = Projection(dim=10**6)
DRAWN = np.random.default_rng(0)
EXAMPLES = [causal(DRAWN.integers(2, tiny.VOCABULARY, size).tolist()) for size in (5, 9, 9, 14, 3)]


@pytest.fixture(params=["gpt2", "llama"])
def checkpoint(request, tiny_paths):
    loaded = load_checkpoint(tiny_paths[request.param])
    loaded.model.double()
    return loaded


def backward_of(checkpoint) -> Backward:
    layers, _ = tracked_layers(checkpoint.model, checkpoint.trainable, 1.0, True)
    return Backward(checkpoint, layers, unit_labels=True)


def sides_by_autograd(checkpoint, layers, sequence) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(d `[tokens, out]`, a `[tokens, in]`) of one sequence by layer name, by PyTorch's own hooks."""
    kept: dict[str, list] = {}
    hooks = []
    for layer in layers:

        def hook(module, inputs, output, name=layer.name):
            kept[name] = [inputs[0].detach()[0]]
            output.register_hook(lambda d: kept[name].append(d[0]))

        hooks.append(layer.uses[0].module.register_forward_hook(hook))
    tokens = torch.tensor([sequence.tokens])
    with torch.enable_grad():
        embedded = checkpoint.model.get_input_embeddings()(tokens).detach().requires_grad_()
        logits = checkpoint.model(inputs_embeds=embedded, use_cache=False).logits[0]
        rows = [(t, label) for t, label in enumerate(sequence.labels) if label >= 0]
        loss = 0.0
        for t, label in rows:
            gradient = logits[t].detach().softmax(0)
            gradient[label] -= 1
            loss = loss + (gradient / gradient.norm() * logits[t]).sum()
        loss.backward()
    for one in hooks:
        one.remove()
    return {name: (d.numpy(), a.numpy()) for name, (a, d) in kept.items()}


def test_unit_labels_have_unit_length_and_the_direction_of_the_loss():
    logits = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 3, 6, 1, 2])
    plain, unit = to_loss_gradient(logits.clone(), targets), to_loss_gradient(logits.clone(), targets, unit=True)
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(unit, plain / plain.norm(dim=1, keepdim=True))


def test_the_roots_are_those_of_the_means_over_all_tokens_with_a_gradient(checkpoint):
    backward = backward_of(checkpoint)
    found = estimate_roots(backward, EXAMPLES, 2048)
    sides = [sides_by_autograd(checkpoint, backward.layers, sequence) for sequence in EXAMPLES]
    for layer in backward.layers:
        d, a = (np.concatenate([one[layer.name][place] for one in sides]) for place in (0, 1))
        told = np.linalg.norm(d, axis=1) > 1e-6  # not where nothing is told, nor a query or key that sees one token
        assert len(d) - told.sum() in (0, len(EXAMPLES), 2 * len(EXAMPLES))
        for place, root in enumerate(found[layer.name]):
            side = (d, a)[place][told]
            moment = side.T @ side / len(side)
            damping = DAMPING * np.trace(moment) / len(moment)
            values, vectors = np.linalg.eigh(moment + damping * np.eye(len(moment)))
            np.testing.assert_allclose(root, (vectors * values**-0.5) @ vectors.T, rtol=2e-3, atol=2e-3 * root.max())


def test_a_feature_is_the_whole_gradient_whitened_from_both_sides(checkpoint):
    backward = backward_of(checkpoint)
    roots = estimate_roots(backward, EXAMPLES, 2048)
    made = FeatureExtractor(checkpoint, WHOLE, blocks_only=True, scales=roots, unit_labels=True)
    features = made.features(EXAMPLES)
    for row, sequence in zip(features, EXAMPLES, strict=True):
        sides = sides_by_autograd(checkpoint, made.layers, sequence)
        for layer, columns in made.columns.items():
            d, a = sides[layer.name]
            out, into = roots[layer.name]
            expected = out.astype(float) @ d.T @ a @ into.astype(float)
            np.testing.assert_allclose(row[columns].reshape(expected.shape), expected, rtol=1e-6, atol=1e-9)


def test_roots_do_not_depend_on_the_batches(checkpoint):
    backward = backward_of(checkpoint)
    whole, cut = estimate_roots(backward, EXAMPLES, 2048), estimate_roots(backward, EXAMPLES, 15)
    for name, pair in whole.items():
        for a, b in zip(pair, cut[name], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * a.max())


@pytest.mark.parametrize("family", ["gpt2", "mixtral"])
def test_wide_sides_and_experts_have_diagonals(tmp_path, family, monkeypatch):
    monkeypatch.setattr(kfac, "WIDEST", 20)
    loaded = load_checkpoint(str(tiny.save(tiny.FAMILIES[family](), tmp_path / family, "causal")))
    backward = backward_of(loaded)
    roots = estimate_roots(backward, EXAMPLES, 2048)
    assert {root.ndim for pair in roots.values() for root in pair} == {1, 2}
    for layer in backward.layers:
        for root, size in zip(roots[layer.name], layer.shape, strict=True):
            fused = layer.uses[0].kind == "experts"
            assert root.shape == ((size,) if fused or size > 20 else (size, size)) and np.isfinite(root).all()
    made = FeatureExtractor(loaded, Projection(4), blocks_only=True, scales=roots, unit_labels=True, norm_a_layer=True)
    features = made.features(EXAMPLES)
    norms = [np.linalg.norm(features[:, columns], axis=1) for columns in made.columns.values()]
    np.testing.assert_allclose(norms, len(norms) ** -0.5, rtol=1e-4)


def test_roots_read_back_from_their_file(checkpoint, tmp_path):
    backward = backward_of(checkpoint)
    roots = estimate_roots(backward, EXAMPLES, 2048)
    assert sum(root.nbytes for pair in roots.values() for root in pair) == roots_bytes(backward.layers)
    save_roots(roots, tmp_path / "roots.safetensors")
    back = load_roots(str(tmp_path / "roots.safetensors"))
    assert back.keys() == roots.keys()
    assert all(np.array_equal(a, b) for name, pair in roots.items() for a, b in zip(pair, back[name], strict=True))
