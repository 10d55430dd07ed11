"""Checkpoints: how text becomes tokens, what is read beside the weights, and what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from attribution.checkpoint import (
    CHECKPOINT_JSON,
    load_checkpoint,
    load_tokenizer,
    model_hash,
    read_meta,
    tokenizer_hash,
)
from attribution.sequences import Sequence, encode_example
from schemas.errors import ConfigError
from schemas.records import Fact
from tests import tiny


@pytest.fixture(scope="module")
def checkpoint(tiny_paths):
    return load_checkpoint(tiny_paths["gpt2"])


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_model_loads_frozen_in_float32_with_its_weights_and_context(name, tiny_paths):
    loaded = load_checkpoint(tiny_paths[name])
    for mine, theirs in zip(loaded.model.parameters(), tiny.MODELS[name]().parameters(), strict=True):
        assert mine.dtype == torch.float32 and not mine.requires_grad
        assert torch.equal(mine, theirs)
    assert not loaded.model.training
    assert (loaded.max_tokens, loaded.learning_rate, loaded.step, loaded.meta) == (tiny.CONTEXT, None, None, {})


def test_an_example_ends_with_eos_where_the_training_used_one_and_is_cut_at_the_context(checkpoint):
    trained = replace(checkpoint, meta={"add_eos": True})
    tokens, eos = checkpoint.tokenizer("It rained.").input_ids, checkpoint.tokenizer.eos_token_id
    assert tokens[0] == checkpoint.tokenizer.bos_token_id
    assert encode_example(checkpoint, "It rained.") == Sequence(tokens[:-1], tokens[1:])
    assert encode_example(trained, "It rained.") == Sequence(tokens, [*tokens[1:], eos])
    long = encode_example(trained, "It rained. " * 50)
    assert len(long.tokens) + 1 == tiny.CONTEXT and long.labels[-1] != eos and long.cut > 0


@pytest.mark.parametrize(
    ("prompt", "target"),
    [
        ("The capital of Oz is", " Verona"),
        ("The capital of Oz is ", "Verona"),
        ("日本の首都は", "東京"),
        ("", "Verona"),
    ],
)
def test_target_tokens_are_those_that_reach_beyond_the_prompt(checkpoint, prompt, target):
    fact = checkpoint.encode_fact(Fact("f", prompt, target))
    decode = checkpoint.tokenizer.decode
    assert decode(fact.tokens) == "<s>" + prompt + target
    before, after = decode(fact.tokens[1 : fact.target_start]), decode(fact.tokens[fact.target_start :])
    assert prompt.startswith(before) and before + after == prompt + target
    assert after.endswith(target)


def test_a_token_across_the_border_is_the_targets(checkpoint):
    [merged] = [checkpoint.tokenizer(" capital").input_ids[1:]]
    assert len(merged) == 1
    fact = checkpoint.encode_fact(Fact("f", "The cap", "ital"))
    assert fact.tokens[fact.target_start :] == merged


def test_without_bos_the_first_token_is_no_target(checkpoint):
    tokenizer = tiny.make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = None
    bare = replace(checkpoint, tokenizer=tokenizer, path="here")
    fact = bare.encode_fact(Fact("f", "", "It rained."))
    assert len(fact.tokens) > 1 and fact.target_start == 1
    with pytest.raises(ConfigError, match=r"fact 'f': the target 'I' has no token after the prompt .* of here; give a"):
        bare.encode_fact(Fact("f", "", "I"))


def test_a_fact_that_the_model_cannot_take_is_refused_with_both_lengths(checkpoint):
    with pytest.raises(ConfigError, match=rf"fact 'f': \d+ tokens, but .* takes {tiny.CONTEXT}; shorten the prompt"):
        checkpoint.encode_fact(Fact("f", "It rained. " * 20, " Verona"))


def test_a_fact_of_just_the_context_is_taken(checkpoint):
    prompt = "x" * (tiny.CONTEXT - 2)
    assert len(checkpoint.encode_fact(Fact("f", prompt, "y")).tokens) == tiny.CONTEXT


def test_an_empty_target_is_refused(checkpoint):
    with pytest.raises(ConfigError, match="fact 'f': the target '' has no token after the prompt"):
        checkpoint.encode_fact(Fact("f", "The capital is", ""))


def test_own_record_stands_over_a_trainers_and_a_trainers_over_nothing(tmp_path):
    assert read_meta(str(tmp_path)) == {}
    history = [{"step": 5, "learning_rate": 0.5}, {"step": 9, "learning_rate": 0.25}, {"step": 9, "train_loss": 1.0}]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": [{"eval_loss": 1.0}]}))
    assert read_meta(str(tmp_path)) == {}
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    assert read_meta(str(tmp_path)) == {"step": 9, "learning_rate": 0.25, "from": "trainer_state.json"}
    (tmp_path / CHECKPOINT_JSON).write_text(json.dumps({"step": 3, "learning_rate": 0.125}))
    assert read_meta(str(tmp_path)) == {"step": 3, "learning_rate": 0.125}


def test_learning_rate_and_step_come_from_the_record(tiny_paths, tmp_path):
    shutil.copytree(tiny_paths["gpt2"], tmp_path / "copy")
    (tmp_path / "copy" / CHECKPOINT_JSON).write_text(json.dumps({"step": 3, "learning_rate": 0.125}))
    loaded = load_checkpoint(str(tmp_path / "copy"))
    assert (loaded.step, loaded.learning_rate) == (3, 0.125)


@pytest.mark.parametrize("path", ["/no/such/folder", "./none", "~/none", "a/b/c"])
def test_a_path_that_is_not_there_is_refused_and_never_taken_for_a_name(path):
    with pytest.raises(ConfigError, match=f"model {path}: expected a Hugging Face name.*; found no such folder; check"):
        load_checkpoint(path)


def test_a_name_in_a_folder_that_is_here_is_a_path_and_never_looked_up_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(ConfigError, match=r"model runs/none: expected .*; found no such folder; check"):
        load_checkpoint("runs/none")


def test_a_file_that_is_no_gguf_is_refused(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"model .*model.bin: expected .*; found a file that is no .gguf; check"):
        load_checkpoint(str(tmp_path / "model.bin"))


def test_a_gguf_path_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match=r"model /no/model.gguf: expected .*; found no such file; check the path"):
        load_checkpoint("/no/model.gguf")


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=f"model {tmp_path}: expected .*; found a folder without config.json; check"):
        load_checkpoint(str(tmp_path))


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    tiny.gpt2().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=f"model {tmp_path}: expected .*; found no tokenizer in the folder; check"):
        load_checkpoint(str(tmp_path))


def test_a_folder_without_weights_is_refused(tiny_paths, tmp_path):
    shutil.copytree(tiny_paths["gpt2"], tmp_path / "copy")
    for file in Path(tmp_path / "copy").glob("*.safetensors"):
        file.unlink()
    with pytest.raises(ConfigError, match=r"model .*copy: expected .*; it did not load \(.+\); check the path"):
        load_checkpoint(str(tmp_path / "copy"))


def drop_a_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def cut_the_file(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def change_a_shape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 28}))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (drop_a_weight, r"1 of its weights are missing \(model.layers.1.mlp.up_proj.weight\)"),
        (cut_the_file, "it did not load"),
        (change_a_shape, ""),
    ],
)
def test_weights_that_do_not_fill_the_model_are_refused_and_never_random(tiny_paths, tmp_path, spoil, reason):
    shutil.copytree(tiny_paths["llama"], tmp_path / "copy")
    load_checkpoint(str(tmp_path / "copy"))
    spoil(tmp_path / "copy")
    with pytest.raises(ConfigError, match=rf"model .*copy: expected .*; .*{reason}.*; check the path"):
        load_checkpoint(str(tmp_path / "copy"))


def test_model_hash_is_that_of_the_weights_and_not_of_the_file_format(tiny_paths, tmp_path):
    loaded = load_checkpoint(tiny_paths["gpt2"]).model
    first = model_hash(loaded)
    loaded.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    tiny.make_tokenizer().save_pretrained(tmp_path)
    assert model_hash(load_checkpoint(str(tmp_path)).model) == first
    loaded.transformer.h[1].mlp.c_fc.weight[-1, -1] += 1e-3
    assert model_hash(loaded) != first


def test_tokenizer_hash_tells_tokenizers_apart_and_survives_saving(tiny_paths):
    first = tokenizer_hash(tiny.make_tokenizer())
    assert tokenizer_hash(load_tokenizer(tiny_paths["gpt2"])) == tokenizer_hash(load_tokenizer(tiny_paths["llama"]))
    assert tokenizer_hash(load_tokenizer(tiny_paths["gpt2"])) == first
    assert tokenizer_hash(tiny.make_tokenizer(["other words, other merges " * 3])) != first


def test_a_cut_and_padding_kept_in_the_tokenizers_file_are_lifted(tmp_path):
    tokenizer = tiny.make_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=40)
    tiny.gpt2().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_checkpoint(str(tmp_path)).tokenizer
    assert loaded.backend_tokenizer.truncation is None and loaded.backend_tokenizer.padding is None
    assert tokenizer_hash(loaded) == tokenizer_hash(tiny.make_tokenizer())
