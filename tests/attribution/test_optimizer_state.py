"""Second moments from the states that real optimizers save, by name and shape; and the estimate where none was kept."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch.nn import functional

from attribution.backward import Backward
from attribution.checkpoint import load_checkpoint
from attribution.layers import tracked_layers
from attribution.optimizer_state import NO_DECAY, read_moments
from attribution.preconditioner import estimate_moments, load_moments, save_moments, scales
from attribution.sequences import causal
from schemas.errors import ConfigError
from tests import tiny

STEPS, BETA2, EPS = 3, 0.95, 1e-6
TOKENS = torch.tensor([[0, 5, 9, 200, 31], [0, 80, 81, 82, 83]])


def trained(name: str, make_optimizer) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = tiny.MODELS[name]().requires_grad_(True)
    optimizer = make_optimizer(model)
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(input_ids=TOKENS, labels=TOKENS).loss.backward()
        optimizer.step()
    return model, optimizer


def one_group(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, BETA2), eps=EPS)


def trainer_groups(model):
    """As transformers' Trainer makes them: with weight decay first, biases and norms second."""
    decayed = set(transformers.trainer_pt_utils.get_parameter_names(model, [torch.nn.LayerNorm], list(NO_DECAY)))
    split = [[p for n, p in model.named_parameters() if (n in decayed) == first] for first in (True, False)]
    groups = [{"params": split[0], "weight_decay": 0.1}, {"params": split[1], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, BETA2), eps=EPS)


def named_groups(model):
    reversed_names = list(model.named_parameters())[::-1]  # an order that only the names tell
    return torch.optim.AdamW(reversed_names, lr=1e-3, betas=(0.9, BETA2), eps=EPS)


def read(folder: Path, model: torch.nn.Module, trainable: frozenset[str] | None = None):
    names = frozenset(name for name, _ in model.named_parameters()) if trainable is None else trainable
    layers, _ = tracked_layers(model, names)
    return layers, read_moments(str(folder), layers, model, {}, names)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("file", ["optimizer.pt", "optimizer.bin"])
@pytest.mark.parametrize("make", [one_group, trainer_groups, named_groups])
def test_adams_second_moments_are_found_by_name_and_corrected_for_the_bias(architecture, file, make, tmp_path):
    model, optimizer = trained(architecture, make)
    torch.save(optimizer.state_dict(), tmp_path / file)
    layers, (moments, eps, source) = read(tmp_path, model)
    assert eps == EPS and source == file and set(moments) == {layer.name for layer in layers}
    for layer in layers:
        v = optimizer.state[layer.parameter]["exp_avg_sq"].double() / (1 - BETA2**STEPS)
        v = layer.as_matrix(v).numpy()
        np.testing.assert_allclose(moments[layer.name].rows, v.mean(axis=1), rtol=1e-10)
        np.testing.assert_allclose(moments[layer.name].columns, v.mean(axis=0), rtol=1e-10)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_adafactors_row_and_column_means_are_taken_as_they_are(architecture, tmp_path):
    options = {"lr": 1e-3, "scale_parameter": False, "relative_step": False}
    model, optimizer = trained(architecture, lambda m: transformers.Adafactor(m.parameters(), **options))
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    layers, (moments, _, _) = read(tmp_path, model)
    for layer in layers:
        out, size = layer.shape
        moment = moments[layer.name]
        assert moment.rows.shape == (out,) and moment.columns.shape == (size,)
        np.testing.assert_allclose(moment.rows.mean(), moment.columns.mean(), rtol=1e-4)  # both are the mean of V


def test_an_adapters_state_counts_its_own_parameters_alone(tmp_path):
    model = tiny.MODELS["llama"]()
    trainable = frozenset(name for name, _ in model.named_parameters() if "q_proj" in name or "up_proj" in name)
    chosen = [parameter.requires_grad_(True) for name, parameter in model.named_parameters() if name in trainable]
    optimizer = one_group(torch.nn.ParameterList(chosen))
    model(input_ids=TOKENS, labels=TOKENS).loss.backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    layers, (moments, _, _) = read(tmp_path, model, trainable)
    assert len(moments) == len(layers) == 4
    v = optimizer.state[layers[1].parameter]["exp_avg_sq"].double() / (1 - BETA2)
    np.testing.assert_allclose(moments[layers[1].name].rows, v.mean(1).numpy(), rtol=1e-10)


def test_a_folder_without_a_state_gives_none(tmp_path):
    assert read(tmp_path, tiny.MODELS["gpt2"]())[1] is None


def test_the_state_of_another_model_is_refused_with_names_and_shapes(tmp_path):
    _, optimizer = trained("gpt2", one_group)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    with pytest.raises(ConfigError, match=r"expected the state of a model of \d+ parameters, found one of \d+"):
        read(tmp_path, tiny.MODELS["llama"]())
    other = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=300, n_positions=32, n_embd=24, n_layer=2, n_head=2, n_inner=40)
    )
    with pytest.raises(ConfigError, match=r"wte\.weight \[300, 24\], found \[300, 16\]; .*--optimizer_correction"):
        read(tmp_path, other)


@pytest.mark.parametrize("make", [lambda m: torch.optim.SGD(m.parameters(), lr=1e-3, momentum=0.9)])
def test_an_optimizer_without_second_moments_is_refused_with_what_it_keeps(make, tmp_path):
    model, optimizer = trained("gpt2", make)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    with pytest.raises(ConfigError, match=r"expected a second moment \(exp_avg_sq\) of .*, found momentum_buffer"):
        read(tmp_path, model)


@pytest.mark.parametrize("value", [float("nan"), -1.0])
def test_values_that_are_no_second_moments_are_refused(value, tmp_path):
    model, optimizer = trained("gpt2", one_group)
    optimizer.state[next(model.parameters())]["exp_avg_sq"][3, 2] = value
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    with pytest.raises(ConfigError, match=r"second moments of transformer\.wte\.weight that are numbers of at least 0"):
        read(tmp_path, model)


class Hostile:
    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_state_that_would_run_code_is_refused_and_runs_none(tmp_path):
    torch.save({"state": {}, "param_groups": [], "more": Hostile(str(tmp_path / "ran"))}, tmp_path / "optimizer.pt")
    with pytest.raises(ConfigError, match="expected a torch optimizer state that holds tensors alone"):
        read(tmp_path, tiny.MODELS["gpt2"]())
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_the_estimate_is_the_mean_of_squared_gradients_with_one_mean_example_more(architecture, tiny_paths):
    checkpoint = load_checkpoint(tiny_paths[architecture])
    model = checkpoint.model.double()
    layers, _ = tracked_layers(model, checkpoint.trainable)
    sequences = [causal(tokens) for tokens in ([0, 5, 9, 200, 31, 7], [0, 80, 81], [0, 4, 4, 4, 250])]
    moments = estimate_moments(Backward(checkpoint, layers), [*sequences, causal([3])], batch_tokens=7)
    squares = [np.zeros(layer.shape) for layer in layers]
    model.requires_grad_(True)
    for sequence in sequences:
        logits = model(input_ids=torch.tensor([sequence.tokens])).logits[0]
        loss = functional.cross_entropy(logits, torch.tensor(sequence.labels), reduction="sum")
        gradients = torch.autograd.grad(loss, [layer.parameter for layer in layers])
        for square, layer, gradient in zip(squares, layers, gradients, strict=True):
            square += layer.as_matrix(gradient).numpy() ** 2
    model.requires_grad_(False)
    for square, layer in zip(squares, layers, strict=True):
        v = square / len(sequences)
        rows = (v.mean(1) * len(sequences) + v.mean()) / (len(sequences) + 1)
        columns = (v.mean(0) * len(sequences) + v.mean()) / (len(sequences) + 1)
        np.testing.assert_allclose(moments[layer.name].rows, rows, rtol=1e-9)
        np.testing.assert_allclose(moments[layer.name].columns, columns, rtol=1e-9)


def test_a_row_that_the_sample_never_reached_is_rare_and_no_more(tiny_paths):
    checkpoint = load_checkpoint(tiny_paths["llama"])
    layers, _ = tracked_layers(checkpoint.model, checkpoint.trainable)
    moments = estimate_moments(Backward(checkpoint, layers), [causal([0, 5, 9, 31, 7])] * 8, batch_tokens=64)
    rows, columns = scales(moments["model.embed_tokens"], 1e-8)
    assert np.isfinite(rows).all() and np.isfinite(columns).all()
    assert rows[100] == rows[200] == rows.max() and rows.max() < 20 * rows[5]


def test_moments_survive_their_file(tiny_paths, tmp_path):
    checkpoint = load_checkpoint(tiny_paths["gpt2"])
    layers, _ = tracked_layers(checkpoint.model, checkpoint.trainable)
    moments = estimate_moments(Backward(checkpoint, layers), [causal([0, 5, 9])], batch_tokens=64)
    save_moments(moments, tmp_path / "a")
    found = load_moments(str(tmp_path / "a"))
    assert found.keys() == moments.keys()
    for name, moment in moments.items():
        np.testing.assert_array_equal(found[name].rows, moment.rows)
        np.testing.assert_array_equal(found[name].columns, moment.columns)
    save_moments(moments, tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
