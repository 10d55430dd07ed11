"""Second moments from the states that real optimizers save: by name, by number and by shape, or not at all."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

from attribution.checkpoint import load_checkpoint, read_meta
from attribution.layers import tracked_layers
from attribution.optimizer_state import SCRIPTS_NO_DECAY, read_moments, read_whole_moments
from attribution.preconditioner import scales
from attribution.training import train
from schemas.errors import ConfigError
from tests import tiny

STEPS, BETA2, EPS = 2, 0.95, 1e-6
OPTIONS = {"lr": 1e-3, "betas": (0.9, BETA2), "eps": EPS}
TOKENS = torch.tensor([[0, 5, 9, 200, 31], [0, 80, 81, 82, 83]])
NAMES = ["gpt2", "llama", "llama-tied", "mixtral"]


def one_group(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], **OPTIONS)


def two_groups(model: torch.nn.Module, decays: Callable[[str], bool]) -> torch.optim.Optimizer:
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    split = [[p for name, p in named if decays(name) == first] for first in (True, False)]
    groups = [{"params": split[0], "weight_decay": 0.1}, {"params": split[1], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, **OPTIONS)


def script_groups(model: torch.nn.Module) -> torch.optim.Optimizer:
    """As run_clm_no_trainer.py makes them: the norms of most models decay there."""
    return two_groups(model, lambda name: not any(part in name for part in ("bias", "layer_norm.weight")))


def named_group(model: torch.nn.Module) -> torch.optim.Optimizer:
    """Parameters in an order that only their names tell, as torch.compile writes them."""
    named = [(f"_orig_mod.{name}", p) for name, p in model.named_parameters() if p.requires_grad]
    return torch.optim.AdamW(named[::-1], **OPTIONS)


def trained(model: torch.nn.Module, make: Callable[[torch.nn.Module], torch.optim.Optimizer]) -> torch.optim.Optimizer:
    optimizer = make(model)
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(input_ids=TOKENS, labels=TOKENS).loss.backward()
        optimizer.step()
    return optimizer


def all_of(model: torch.nn.Module) -> frozenset[str]:
    return frozenset(name for name, _ in model.named_parameters())


def read(folder: Path, model: torch.nn.Module, trainable: frozenset[str] | None = None, meta: dict | None = None):
    trainable = all_of(model) if trainable is None else trainable
    layers, _ = tracked_layers(model, trainable)
    return layers, read_moments(str(folder), layers, model, meta or {}, trainable)


def require_equal(found: tuple, layers: list, optimizer: torch.optim.Optimizer, steps: int = STEPS) -> None:
    """Every layer has the factors of its own parameter's V."""
    moments, eps, _ = found
    assert eps == EPS and list(moments) == [layer.name for layer in layers] and layers
    for layer in layers:
        v = optimizer.state[layer.parameter]["exp_avg_sq"].double() / (1 - BETA2**steps)
        v = layer.as_matrix(v).numpy()
        np.testing.assert_allclose(moments[layer.name].rows, v.mean(axis=1), rtol=1e-10)
        np.testing.assert_allclose(moments[layer.name].columns, v.mean(axis=0), rtol=1e-10)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("make", [one_group, script_groups, named_group])
def test_adams_second_moments_are_found_by_name_and_corrected_for_the_bias(name, make, tmp_path):
    model = tiny.FAMILIES[name]()
    optimizer = trained(model, make)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.bin")
    layers, found = read(tmp_path, model)
    require_equal(found, layers, optimizer)
    assert found[2] == "optimizer.bin"


@pytest.mark.parametrize("name", NAMES)
def test_the_state_that_a_trainer_saves_is_read_with_its_two_groups(name, tmp_path):
    pytest.importorskip("accelerate")
    model = tiny.FAMILIES[name]()
    arguments = transformers.TrainingArguments(
        str(tmp_path),
        max_steps=STEPS,
        save_steps=STEPS,
        per_device_train_batch_size=2,
        adam_beta2=BETA2,
        adam_epsilon=EPS,
        weight_decay=0.1,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        dataloader_num_workers=0,
        save_only_model=False,
    )
    rows = [{"input_ids": row, "labels": row} for row in TOKENS]
    trainer = transformers.Trainer(model, arguments, train_dataset=rows)
    trainer.train()
    [folder] = tmp_path.glob("checkpoint-*")
    assert len(torch.load(folder / "optimizer.pt", weights_only=True)["param_groups"]) == 2
    layers, found = read(folder, model)
    require_equal(found, layers, trainer.optimizer.optimizer)
    assert found[2] == "optimizer.pt"


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_what_a_script_does_not_decay_the_trainer_does_not_decay_either(name):
    """So that groups of the same sizes are the same groups."""
    model = tiny.FAMILIES[name]()
    decayed = transformers.Trainer.get_decay_parameter_names(None, model)
    for parts in SCRIPTS_NO_DECAY:
        assert not {n for n in all_of(model) if any(part in n for part in parts)} & set(decayed)


@pytest.mark.parametrize("name", NAMES)
def test_adafactors_means_are_those_of_the_layers_rows_and_columns(name, tmp_path):
    model = tiny.FAMILIES[name]()
    # At the rate 0 each step has the same gradient, whose square is V.
    options = {"lr": 0.0, "scale_parameter": False, "relative_step": False}
    optimizer = trained(model, lambda m: transformers.Adafactor(m.parameters(), **options))
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    layers, (moments, eps, _) = read(tmp_path, model)
    assert eps == pytest.approx(1e-15, rel=1e-9, abs=0)
    for layer in layers:
        v = layer.as_matrix(layer.parameter.grad).double().numpy() ** 2 + 1e-30
        np.testing.assert_allclose(moments[layer.name].rows, v.mean(axis=1), rtol=1e-4, atol=1e-12)
        np.testing.assert_allclose(moments[layer.name].columns, v.mean(axis=0), rtol=1e-4, atol=1e-12)
        assert all(np.isfinite(side).all() for side in scales(moments[layer.name], eps))


def test_our_own_state_is_read_with_what_stands_beside_it(tmp_path):
    tokenizer = tiny.make_tokenizer()
    examples = [(str(i), tokenizer(text).input_ids[: tiny.CONTEXT]) for i, text in enumerate(tiny.TEXTS)]
    folder = train(examples, tiny.RECIPE, tokenizer, tmp_path)[-1]
    checkpoint = load_checkpoint(str(folder))
    layers, (moments, eps, source) = read(folder, checkpoint.model, checkpoint.trainable, checkpoint.meta)
    assert (eps, source) == (tiny.RECIPE.eps, "optimizer.safetensors")
    v = np.concatenate([moment.rows for moment in moments.values()])
    assert len(moments) == len(layers) and (v >= 0).all() and v.max() > 0
    tiny.save_moments(checkpoint.model, folder)  # a row and a column of each weight without a gradient
    layers, (moments, eps, _) = read(folder, checkpoint.model, checkpoint.trainable, read_meta(str(folder)))
    for layer in layers:
        assert (moments[layer.name].rows == 0).sum() == (moments[layer.name].columns == 0).sum() == 1
        assert all(np.isfinite(side).all() for side in scales(moments[layer.name], eps))
    with pytest.raises(
        ConfigError, match=r"expected step, beta2 and eps in the checkpoint\.json beside it, found no s"
    ):
        read(folder, checkpoint.model, checkpoint.trainable)
    (folder / "optimizer.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ConfigError, match=r"optimizer\.safetensors: expected a safetensors file"):
        read(folder, checkpoint.model, checkpoint.trainable, checkpoint.meta)


@pytest.mark.parametrize("make", [one_group, script_groups])
def test_a_state_of_some_parameters_is_counted_by_those_that_are_trained(make, tmp_path):
    model = tiny.MODELS["llama"]()
    trainable = frozenset(name for name in all_of(model) if "q_proj" in name or "up_proj" in name)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trainable)
    optimizer = trained(model, make)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    layers, found = read(tmp_path, model, trainable)
    assert len(layers) == 4
    require_equal(found, layers, optimizer)
    with pytest.raises(ConfigError, match=r"expected the state of this model's \d\d trained parameters"):
        read(tmp_path, model)


def test_a_lora_adapters_state_is_read(tiny_paths, tmp_path):
    pytest.importorskip("peft")
    checkpoint = load_checkpoint(tiny.save_adapter(tiny_paths["llama"], tmp_path, target_modules=["q_proj", "v_proj"]))
    for name, parameter in checkpoint.model.named_parameters():
        parameter.requires_grad_(name in checkpoint.trainable)
    optimizer = trained(checkpoint.model, one_group)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    layers, found = read(tmp_path, checkpoint.model, checkpoint.trainable)
    assert len(layers) == 2 * 2 * 2
    require_equal(found, layers, optimizer)


def test_a_state_keyed_by_names_is_read_by_them_a_tied_weight_by_either(tmp_path):
    model = tiny.FAMILIES["llama-tied"]()
    optimizer = trained(model, one_group)
    state = optimizer.state_dict()
    names = [name for name, _ in model.named_parameters()]
    by_name = {f"module.{name}": state["state"][i] for i, name in enumerate(names)}
    by_name["lm_head.weight"] = by_name.pop("module.model.embed_tokens.weight")
    groups = [{**state["param_groups"][0], "params": sorted(by_name)}]
    torch.save({"state": by_name, "param_groups": groups}, tmp_path / "optimizer.bin")
    layers, found = read(tmp_path, model)
    require_equal(found, layers, optimizer)


def test_moments_in_bfloat16_and_files_of_before_torch_1_6_are_read(tmp_path):
    model = tiny.MODELS["gpt2"]()
    optimizer = trained(model, one_group)
    for state in optimizer.state.values():
        state["exp_avg_sq"] = state["exp_avg_sq"].bfloat16()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer_state.pt", _use_new_zipfile_serialization=False)
    layers, found = read(tmp_path, model)
    require_equal(found, layers, optimizer)


def test_amsgrad_is_corrected_by_the_largest_moments_that_it_divides_by(tmp_path):
    model = tiny.MODELS["gpt2"]()
    optimizer = trained(model, lambda m: torch.optim.AdamW(m.parameters(), amsgrad=True, **OPTIONS))
    for state in optimizer.state.values():
        state["max_exp_avg_sq"] = state["exp_avg_sq"].clone()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    layers, found = read(tmp_path, model)
    require_equal(found, layers, optimizer)
    for state in optimizer.state.values():
        state["exp_avg_sq"] = state["exp_avg_sq"] * 0
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    for name, moment in read(tmp_path, model)[1][0].items():
        np.testing.assert_array_equal(moment.rows, found[0][name].rows)


@pytest.mark.parametrize("path", ["", "here", "gpt2", "model.gguf"])
def test_where_no_state_was_kept_there_is_none(path, tmp_path):
    (tmp_path / "here").mkdir()
    model = tiny.MODELS["gpt2"]()
    layers, _ = tracked_layers(model, all_of(model))
    assert read_moments(str(tmp_path / path), layers, model, {}, all_of(model)) is None


def gpt2(**shape: Any) -> torch.nn.Module:
    usual = {"vocab_size": 300, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_inner": 40}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**usual | shape))


@pytest.mark.parametrize("make", [one_group, script_groups])
def test_the_state_of_another_model_is_refused_with_names_and_shapes(make, tmp_path):
    torch.save(trained(gpt2(), make).state_dict(), tmp_path / "optimizer.pt")
    expected = r"this model's 40 trained parameters \(transformer\.wte\.weight \[300, 16\], .* and 37 more\), "
    found = r"found one of 28 \(\[300, 16\], \[.* and 25 more\), which is of another model; .*_correction estimate"
    with pytest.raises(ConfigError, match=expected + found):
        read(tmp_path, gpt2(n_layer=3))
    expected = (
        r"shapes \(transformer\.wte\.weight \[310, 16\]\), found those of another model \(.*wte\.weight \[300, 16\]"
    )
    with pytest.raises(ConfigError, match=expected):
        read(tmp_path, gpt2(vocab_size=310))
    with pytest.raises(
        ConfigError, match=r"weight \[300, 24\], .* and 23 more\), found .*weight \[300, 16\], .* 23 more"
    ):
        read(tmp_path, gpt2(n_embd=24))


def test_a_parameter_that_is_no_layer_must_fit_as_well(tmp_path):
    torch.save(trained(gpt2(), one_group).state_dict(), tmp_path / "optimizer.pt")
    with pytest.raises(ConfigError, match=r"shapes \(transformer\.wpe\.weight \[48, 16\]\)"):
        read(tmp_path, gpt2(n_positions=48))


def test_names_that_the_model_has_not_are_refused_with_those_it_has(tmp_path):
    state = trained(gpt2(n_layer=3), named_group).state_dict()
    torch.save(state, tmp_path / "optimizer.pt")
    with pytest.raises(
        ConfigError, match=r"wte\.weight \[300, 16\].*found transformer\.h\.2\..* it has not: .* another"
    ):
        read(tmp_path, gpt2())


def test_a_layer_that_the_named_state_lacks_is_refused_not_taken_for_one_without_gradient(tmp_path):
    torch.save(trained(gpt2(n_layer=1), named_group).state_dict(), tmp_path / "optimizer.pt")
    with pytest.raises(
        ConfigError, match=r"of every tracked layer, transformer\.h\.1\..* and 1 more.*found none there"
    ):
        read(tmp_path, gpt2())


def test_groups_whose_order_cannot_be_told_are_refused_though_every_shape_would_fit(tmp_path):
    """Rates that fall from the uppermost block down: blocks in another order, all of the same shapes."""
    model = gpt2()

    def layerwise(m: torch.nn.Module) -> torch.optim.Optimizer:
        blocks = [list(m.transformer.h[i].parameters()) for i in (1, 0)]
        ends = [[m.transformer.wte.weight, m.transformer.wpe.weight], list(m.transformer.ln_f.parameters())]
        return torch.optim.AdamW([{"params": p} for p in (ends[0], *blocks, ends[1])], **OPTIONS)

    torch.save(trained(model, layerwise).state_dict(), tmp_path / "optimizer.pt")
    with pytest.raises(ConfigError, match=r"found groups of 2 and 12 and 12 and 2 without names, whose order cannot"):
        read(tmp_path, model)


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda m: torch.optim.SGD(m.parameters(), lr=1e-3, momentum=0.9), "only momentum_buffer"),
        (lambda m: torch.optim.SGD(m.parameters(), lr=1e-3), "no state at all"),
        (lambda m: torch.optim.RMSprop(m.parameters(), lr=1e-3), "only square_avg, step"),
    ],
)
def test_an_optimizer_without_second_moments_is_refused_with_what_it_keeps(make, found, tmp_path):
    model = gpt2()
    torch.save(trained(model, make).state_dict(), tmp_path / "optimizer.pt")
    expected = rf"expected second moments \(exp_avg_sq\), found {found}; .*--optimizer_correction estimate"
    with pytest.raises(ConfigError, match=expected):
        read(tmp_path, model)


def test_a_state_in_eight_bits_is_refused_with_what_it_keeps(tmp_path):
    """The keys that bitsandbytes 0.45 writes."""
    model = gpt2()
    saved = trained(model, one_group).state_dict()
    keys = ("state1", "state2", "qmap1", "qmap2", "absmax1", "absmax2")
    saved["state"] = {i: {key: torch.zeros(4, dtype=torch.uint8) for key in keys} for i in saved["state"]}
    torch.save(saved, tmp_path / "optimizer.bin")
    with pytest.raises(ConfigError, match="found only absmax1, absmax2, qmap1, qmap2, state1, state2; "):
        read(tmp_path, model)


def test_a_layer_whose_own_optimizer_keeps_no_second_moment_is_refused_by_name(tmp_path):
    model = gpt2()
    saved = trained(model, one_group).state_dict()
    saved["state"][4] = {"momentum_buffer": torch.zeros(16, 48)}
    torch.save(saved, tmp_path / "optimizer.pt")
    with pytest.raises(ConfigError, match=r"tracked layer, transformer\.h\.0\.attn\.c_attn\.weight .* only momentum_b"):
        read(tmp_path, model)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize("key", ["exp_avg_sq", "exp_avg_sq_col"])
def test_values_that_are_no_second_moments_are_refused(key, value, tmp_path):
    model = gpt2()
    make = one_group if key == "exp_avg_sq" else lambda m: transformers.Adafactor(m.parameters())
    optimizer = trained(model, make)
    optimizer.state[model.transformer.wte.weight][key][..., 2] = value
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    with pytest.raises(ConfigError, match=r"second moments of transformer\.wte\.weight that are numbers of at least 0"):
        read(tmp_path, model)


@pytest.mark.parametrize("step", [None, 0])
def test_a_state_that_does_not_tell_its_steps_is_refused(step, tmp_path):
    model = gpt2()
    saved = trained(model, one_group).state_dict()
    for state in saved["state"].values():
        state.pop("step")
        if step is not None:
            state["step"] = step
    torch.save(saved, tmp_path / "optimizer.pt")
    with pytest.raises(
        ConfigError, match=r"expected the number of steps taken on transformer\.wte\.weight, at least 1"
    ):
        read(tmp_path, model)


def test_layers_of_which_each_has_an_eps_are_refused(tmp_path):
    model = gpt2()
    saved = trained(model, script_groups).state_dict()
    saved["param_groups"][1]["eps"] = 1.0  # that of biases, which are no layers
    torch.save(saved, tmp_path / "optimizer.pt")
    assert read(tmp_path, model)[1][1] == EPS
    names = list(model.named_parameters())
    saved = torch.optim.AdamW([{"params": names[:9], "eps": 1e-7}, {"params": names[9:], "eps": 1e-5}]).state_dict()
    saved["state"] = trained(model, one_group).state_dict()["state"]
    torch.save(saved, tmp_path / "optimizer.pt")
    with pytest.raises(
        ConfigError, match="expected one eps, a number, for all tracked layers, found eps 1e-05, 1e-07;"
    ):
        read(tmp_path, model)


class Hostile:
    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("file", ["optimizer.pt", "optimizer.bin", "optimizer_state.pt"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_state_that_would_run_code_is_refused_and_runs_none(file, zipped, tmp_path):
    hostile = {"state": {}, "param_groups": [], "more": Hostile(str(tmp_path / "ran"))}
    torch.save(hostile, tmp_path / file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ConfigError, match=r"found the object posix\.mkdir, which is made by running code") as refused:
        read(tmp_path, gpt2())
    assert not (tmp_path / "ran").exists()
    assert "weights_only" not in str(refused.value)  # torch's text advises to switch it off


@pytest.mark.parametrize("content", [b"", b"not a torch file\n", "half"])
def test_a_damaged_file_is_refused(content, tmp_path):
    model = gpt2()
    torch.save(trained(model, one_group).state_dict(), tmp_path / "optimizer.pt")
    whole = (tmp_path / "optimizer.pt").read_bytes()
    (tmp_path / "optimizer.pt").write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    with pytest.raises(ConfigError, match=r"optimizer\.pt: expected an optimizer state .* found one that is damaged"):
        read(tmp_path, model)


@pytest.mark.parametrize("content", [{"model": 1, "optimizer": 2}, [1, 2], {}])
def test_a_file_of_something_else_is_refused_with_what_it_holds(content, tmp_path):
    torch.save(content, tmp_path / "optimizer.pt")
    with pytest.raises(ConfigError, match=r"`state` and `param_groups`, found (model, optimizer|list|nothing); "):
        read(tmp_path, gpt2())


def test_our_own_state_with_the_names_of_another_model_is_refused(tmp_path):
    model = gpt2()
    save_file({"layer.weight": torch.ones(3, 4)}, tmp_path / "optimizer.safetensors")
    with pytest.raises(ConfigError, match=r"found layer\.weight \[3, 4\], which it has not"):
        read(tmp_path, model, meta={"step": 1, "beta2": 0.9, "eps": 1e-8})


@pytest.mark.parametrize("name", NAMES)
def test_whole_second_moments_are_those_of_every_parameter_bias_corrected(name, tmp_path):
    model = tiny.FAMILIES[name]()
    optimizer = trained(model, script_groups)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    moments, eps, file = read_whole_moments(str(tmp_path), model, {}, all_of(model))
    assert (eps, file, moments.keys()) == (EPS, "optimizer.pt", all_of(model))
    for parameter_name, parameter in model.named_parameters():
        expected = optimizer.state[parameter]["exp_avg_sq"] / (1 - BETA2**STEPS)
        torch.testing.assert_close(moments[parameter_name], expected)


def test_adafactors_whole_moment_is_the_outer_product_of_its_means_over_their_mean(tmp_path):
    model = tiny.FAMILIES["gpt2"]()
    optimizer = trained(model, lambda m: transformers.Adafactor(m.parameters()))
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    moments, _, _ = read_whole_moments(str(tmp_path), model, {}, all_of(model))
    for parameter_name, parameter in model.named_parameters():
        state, found = optimizer.state[parameter], moments[parameter_name]
        assert found.shape == parameter.shape
        if parameter.dim() == 1:
            torch.testing.assert_close(found, state["exp_avg_sq"])
            continue
        torch.testing.assert_close(found.mean(-1), state["exp_avg_sq_row"], rtol=1e-4, atol=0.0)
        rows, columns = state["exp_avg_sq_row"], state["exp_avg_sq_col"]
        torch.testing.assert_close(found, torch.outer(rows, columns) / rows.mean())


def test_whole_moments_of_no_state_are_none_and_of_another_model_are_refused(tmp_path):
    model = tiny.FAMILIES["gpt2"]()
    assert read_whole_moments(str(tmp_path), model, {}, all_of(model)) is None
    optimizer = trained(tiny.FAMILIES["llama"](), named_group)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    with pytest.raises(ConfigError, match="which it has not: the state is of another model"):
        read_whole_moments(str(tmp_path), model, {}, all_of(model))
