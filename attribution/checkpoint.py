"""Checkpoints: a language model with its tokenizer, learning rate and step.

Reads a Hugging Face name, a folder, or a path that ends in .gguf. Our own folders also hold `checkpoint.json` (step,
learning rate, special tokens, the recipe) and `optimizer.safetensors` (Adam's second moments by parameter name).
"""

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from safetensors import SafetensorError

from schemas.errors import ConfigError
from schemas.records import Fact

CHECKPOINT_JSON = "checkpoint.json"
OPTIMIZER = "optimizer.safetensors"
ADAPTER = "adapter_config.json"
Kind = Literal["causal", "seq2seq", "masked"]
# Families whose gradients are compared with a float64 oracle in tests/attribution/test_families.py; no other is taken.
FAMILIES: dict[str, Kind] = {
    "gpt2": "causal",
    "llama": "causal",
    "mistral": "causal",
    "qwen2": "causal",
    "qwen3": "causal",
    "gpt_neox": "causal",
    "opt": "causal",
    "mixtral": "causal",
    "qwen3_moe": "causal",
    "t5": "seq2seq",
    "bert": "masked",
    "roberta": "masked",
}
MODEL_CLASSES = {
    "causal": transformers.AutoModelForCausalLM,
    "seq2seq": transformers.AutoModelForSeq2SeqLM,
    "masked": transformers.AutoModelForMaskedLM,
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class TokenizedFact:
    """`tokens[target_start:]` are the target's: the loss of a query is taken there and nowhere else."""

    tokens: list[int]
    target_start: int


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model, frozen. `learning_rate` is None where none was recorded; `max_tokens` is the context length.

    `trainable` names the parameters that training moves: all, or those of an adapter. Under `dtype` bfloat16 the
    matrix products run in it, while the residual stream and the norms stay in float32.
    """

    path: str
    model: transformers.PreTrainedModel
    tokenizer: transformers.PreTrainedTokenizerFast
    meta: dict[str, Any]
    learning_rate: float | None
    step: int | None
    max_tokens: int
    kind: Kind = "causal"
    trainable: frozenset[str] = frozenset()
    dtype: torch.dtype = torch.float32

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def adds_eos(self) -> bool:
        """Whether the training put EOS after each example, beside the tokenizer's own special tokens."""
        return bool(self.meta.get("add_eos")) and self.tokenizer.eos_token_id is not None

    @property
    def decoder_start(self) -> int:
        return self.model.config.decoder_start_token_id

    def token(self, text: str) -> int:
        """The id of a token of the vocabulary. Raises ConfigError if there is no such token."""
        found = self.tokenizer.convert_tokens_to_ids(text)
        if found is None or found == self.tokenizer.unk_token_id:
            raise ConfigError(f"model {self.path}: expected the token {text} in its vocabulary, found none")
        return found

    def autocast(self) -> contextlib.AbstractContextManager:
        """The context of a forward pass: products in bfloat16 where that was asked."""
        if self.dtype == torch.bfloat16:
            return torch.autocast(self.device.type, torch.bfloat16)
        return contextlib.nullcontext()

    def encode_fact(self, fact: Fact) -> TokenizedFact:
        """Tokens of prompt + target, cut where the target begins; a token across the border counts as the target's.

        Raises ConfigError if the target has no token or the whole does not fit the model.
        """
        encoded = self.tokenizer(fact.prompt + fact.target, return_offsets_mapping=True)
        border = len(fact.prompt)
        starts = [i for i, (_, end) in enumerate(encoded["offset_mapping"]) if end > border]
        # A model without BOS cannot give its first token a probability, so nothing is left of a one-token query.
        if not starts or max(starts[0], 1) >= len(encoded["input_ids"]):
            raise ConfigError(
                f"fact {fact.id!r}: the target {fact.target!r} has no token after the prompt with the tokenizer of "
                f"{self.path}; give a target that the model can say"
            )
        if len(encoded["input_ids"]) > self.max_tokens:
            raise ConfigError(
                f"fact {fact.id!r}: {len(encoded['input_ids'])} tokens, but {self.path} takes {self.max_tokens}; "
                "shorten the prompt"
            )
        # A tokenizer may end every text with EOS, which nobody asked the model to say.
        return TokenizedFact(list(encoded["input_ids"][: starts[-1] + 1]), max(starts[0], 1))


def _refuse(path: str, reason: str) -> ConfigError:
    return ConfigError(
        f"model {path}: expected a Hugging Face name, a folder with a model and its tokenizer, or a .gguf file; "
        f"{reason}; check the path, or the spelling of the name"
    )


def pretrained_arguments(path: str) -> tuple[str, dict[str, str]]:
    """The arguments of `from_pretrained` for a name, folder or .gguf path; raises ConfigError if nothing is there."""
    if path.endswith(".gguf"):
        if not Path(path).is_file():
            raise _refuse(path, "found no such file")
        return str(Path(path).parent), {"gguf_file": Path(path).name}
    if os.path.isfile(path):
        raise _refuse(path, "found a file that is no .gguf")
    if os.path.isdir(path):
        return path, {}
    # A name on the hub is `model` or `owner/model`; what cannot be one, or lies in a folder that is here, is a path.
    if path.startswith((".", "/", "~")) or path.count("/") > 1 or ("/" in path and os.path.isdir(path.split("/")[0])):
        raise _refuse(path, "found no such folder")
    return path, {}


def load_tokenizer(path: str) -> transformers.PreTrainedTokenizerFast:
    """The fast tokenizer at `path`; raises ConfigError if there is none."""
    name, gguf = pretrained_arguments(path)
    tokenizer_files = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
    if os.path.isdir(name) and not gguf and not any((Path(name) / f).is_file() for f in tokenizer_files):
        raise _refuse(path, "found no tokenizer in the folder")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, **gguf)
    except (OSError, ValueError) as error:
        raise _refuse(path, f"its tokenizer did not load ({str(error).splitlines()[0]})") from error
    if not tokenizer.is_fast:
        raise _refuse(path, "its tokenizer has no fast version, which the character spans of passages need")
    # Some files keep the cut and the padding of a training script; both are ours to choose, and to see when we cut.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def _require_config(path: str, name: str, gguf: dict[str, str]) -> None:
    if os.path.isdir(name) and not gguf and not (Path(name) / "config.json").is_file():
        raise _refuse(path, "found a folder without config.json")


def load_pretrained(auto_class: Any, path: str) -> Any:
    """The model at `path` in float32, in evaluation mode, every parameter frozen. No remote code is run.

    Raises ConfigError if it does not load, or lacks weights, which would be filled with random numbers (but for a
    pooler, which mean pooling does not use).
    """
    name, gguf = pretrained_arguments(path)
    _require_config(path, name, gguf)
    try:
        model, loading = auto_class.from_pretrained(name, dtype=torch.float32, output_loading_info=True, **gguf)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _refuse(path, f"it did not load ({str(error).splitlines()[0]})") from error
    missing = sorted(key for key in loading["missing_keys"] if "pooler" not in key)
    missing += sorted(str(key) for key in loading.get("mismatched_keys", ()))
    if missing:
        raise _refuse(path, f"{len(missing)} of its weights are missing ({', '.join(missing[:3])})")
    return model.eval().requires_grad_(False)


def read_meta(path: str) -> dict[str, Any]:
    """`checkpoint.json` of a folder of ours, else the step and learning rate of a Trainer's state, else nothing."""
    own, trainer = Path(path) / CHECKPOINT_JSON, Path(path) / "trainer_state.json"
    if own.is_file():
        return json.loads(own.read_text())
    if trainer.is_file():
        rates = [entry for entry in json.loads(trainer.read_text())["log_history"] if "learning_rate" in entry]
        if rates:
            return {"step": rates[-1]["step"], "learning_rate": rates[-1]["learning_rate"], "from": trainer.name}
    return {}


def choose_device(name: str) -> torch.device:
    """`auto` is a GPU where there is one. Raises ConfigError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"--device: expected auto or cpu, as this machine has no CUDA device, found {name!r}")
    return torch.device(name)


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies in bfloat16 by itself (elsewhere it is emulated, and slower than float32)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def model_family(path: str) -> str:
    """The `model_type` of the model at `path`. Raises ConfigError for a family that no oracle has confirmed."""
    name, gguf = pretrained_arguments(path)
    _require_config(path, name, gguf)
    try:
        config = transformers.AutoConfig.from_pretrained(name, **gguf)
    except (OSError, ValueError) as error:
        raise _refuse(path, f"its config did not load ({str(error).splitlines()[0]})") from error
    if config.model_type not in FAMILIES:
        raise ConfigError(
            f"model {path}: expected a family whose gradients are tested ({', '.join(sorted(FAMILIES))}), found "
            f"{config.model_type!r}; index without the gradient signal (--signals bm25,dense)"
        )
    return config.model_type


def _load_adapter(path: str, base: str, family: str) -> tuple[transformers.PreTrainedModel, frozenset[str]]:
    """The base model with the adapter on it, and the adapter's parameters. Raises ConfigError without `peft`."""
    try:
        import peft
    except ImportError as error:
        raise _refuse(path, "found an adapter, which needs the package peft (pip install 'proponent[peft]')") from error
    model = load_pretrained(MODEL_CLASSES[FAMILIES[family]], base)
    config = peft.PeftConfig.from_pretrained(path)
    if getattr(config, "use_dora", False):
        raise _refuse(path, "found an adapter by DoRA, whose matrices are not applied to a text's tokens alone")
    config.inference_mode = False  # a saved adapter says otherwise, and nothing of it would be trainable
    model = peft.PeftModel(model, config)
    missing = model.load_adapter(path, "default", is_trainable=True).missing_keys
    if missing:  # they would stay at their random start
        raise _refuse(path, f"{len(missing)} of the adapter's weights are missing ({', '.join(missing[:3])})")
    trainable = frozenset(name for name, p in model.named_parameters() if p.requires_grad)
    return model.eval().requires_grad_(False), trainable


def in_bfloat16(model: torch.nn.Module) -> None:
    """Keeps the matrices of linear layers in bfloat16, so that no pass casts them anew; a tie to an embedding ends."""
    for module in model.modules():
        if isinstance(module, torch.nn.Linear | transformers.pytorch_utils.Conv1D):
            module.weight = torch.nn.Parameter(module.weight.to(torch.bfloat16), requires_grad=False)


def load_checkpoint(path: str, dtype: str = "float32", device: str = "cpu") -> Checkpoint:
    """The model at `path`, frozen, with its tokenizer. Raises ConfigError if either is not there or not fit for use."""
    place = choose_device(device)
    if dtype == "bfloat16" and not has_bfloat16(place):
        raise ConfigError(f"--dtype: expected float32, as {place} has no bfloat16 arithmetic, found 'bfloat16'")
    adapter = (Path(path) / ADAPTER).is_file()
    base = json.loads((Path(path) / ADAPTER).read_text())["base_model_name_or_path"] if adapter else path
    family = model_family(base)
    if adapter:
        model, trainable = _load_adapter(path, base, family)
    else:
        model = load_pretrained(MODEL_CLASSES[FAMILIES[family]], path)
        trainable = frozenset(name for name, _ in model.named_parameters())
    tokenizer = load_tokenizer(path if not adapter or (Path(path) / "tokenizer.json").is_file() else base)
    model.config.use_cache = False
    meta = read_meta(path)
    limits = [getattr(model.config, "max_position_embeddings", None), tokenizer.model_max_length]
    limit = int(min(limit for limit in limits if limit))
    if family == "roberta":  # its positions begin after the padding's
        limit = min(limit, model.config.max_position_embeddings - model.config.pad_token_id - 1)
    return Checkpoint(
        path=path,
        model=model.to(place),
        tokenizer=tokenizer,
        meta=meta,
        learning_rate=meta.get("learning_rate"),
        step=meta.get("step"),
        max_tokens=limit,
        kind=FAMILIES[family],
        trainable=trainable,
        dtype=DTYPES[dtype],
    )


def tokenizer_hash(tokenizer: transformers.PreTrainedTokenizerFast) -> str:
    """SHA-256 of the tokenizer's whole definition (vocabulary, merges, normaliser, special tokens)."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def model_hash(model: torch.nn.Module) -> str:
    """SHA-256 over names, shapes and bytes of the weights: the same for every file format that holds them."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(memoryview(tensor.cpu().contiguous().view(torch.uint8).numpy()).cast("B"))
    return digest.hexdigest()
