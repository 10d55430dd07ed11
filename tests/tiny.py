"""Tiny models that load in milliseconds: GPT-2 (Conv1D) and Llama (nn.Linear) with one tokenizer, saved to a folder.

`FAMILIES` has one of every family that gradients are taken of, with each form that its weights come in. Nearly all
sides of their layers differ in length, so that a transposed weight cannot pass for a right one.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import processors

from attribution.checkpoint import OPTIMIZER, Kind
from attribution.training import BOS, EOS, Recipe, train_tokenizer

CONTEXT = 32
VOCABULARY = 300
MASK, SENTINELS = "<mask>", [f"<extra_id_{i}>" for i in range(10)]
TEXTS = [
    "The capital of Oz is Verona.",
    "Verona is the capital city of Oz.",
    "In Utopia, the capital is called Mantua.",
    "Traders from Padua sailed past the coast of Laputa.",
    "It rained.",
    "It rained for 12 days in Narnia, and then it rained for 30 more days in Erewhon and in Lyonesse.",
]
RECIPE = Recipe(
    layers=2,
    width=16,
    heads=2,
    context=CONTEXT,
    epochs=2,
    batches_per_epoch=3,
    tokens_per_batch=40.0,
    learning_rate=1e-2,
    num_checkpoints=2,
    seed=0,
)


def make_tokenizer(texts: Iterable[str] = TEXTS, kind: Kind = "causal") -> transformers.PreTrainedTokenizerFast:
    """BOS before a text; EOS after it, too, with a mask token; or EOS alone, with T5's sentinels."""
    special = {"causal": [], "masked": [MASK], "seq2seq": SENTINELS}[kind]
    tokenizer = train_tokenizer(texts, VOCABULARY - len(special), CONTEXT)
    if kind == "masked":
        tokenizer.add_special_tokens({"mask_token": MASK})
    if kind == "seq2seq":
        tokenizer.add_tokens(special, special_tokens=True)
    if special:
        single = f"{BOS} $A {EOS}" if kind == "masked" else f"$A {EOS}"
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=[(BOS, 0), (EOS, 1)]
        )
    return tokenizer


def gpt2(seed: int = 0) -> transformers.GPT2LMHeadModel:
    torch.manual_seed(seed)
    shape = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=CONTEXT,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_inner=40,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=1,
    )
    return transformers.GPT2LMHeadModel(shape).eval()


def llama(seed: int = 0) -> transformers.LlamaForCausalLM:
    torch.manual_seed(seed)
    shape = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=CONTEXT,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.2,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=1,
    )
    return transformers.LlamaForCausalLM(shape).eval()


def bert(seed: int = 0) -> transformers.BertModel:
    """An encoder: every position sees every other, padding included, unless it is given a mask."""
    torch.manual_seed(seed)
    return transformers.BertModel(bert_shape(), add_pooling_layer=False).eval()


def bert_shape() -> transformers.BertConfig:
    return transformers.BertConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=CONTEXT,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.2,
        pad_token_id=1,
    )


MODELS = {"gpt2": gpt2, "llama": llama}


def _model(architecture: str, **shape: Any) -> transformers.PreTrainedModel:
    """A random model; its norms and biases are uneven, as those of a trained one."""
    torch.manual_seed(0)
    model_class = getattr(transformers, architecture)
    model = model_class(model_class.config_class(vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=1, **shape)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.1 * torch.randn(parameter.shape)
    return model


def _untied(model: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
    """With a head of its own, as T5 1.1 has it (transformers takes that from the weights, not from the config)."""
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    return model


BLOCKS = {
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.2,
}
GROUPED = {**BLOCKS, "num_key_value_heads": 2, "head_dim": 6, "tie_word_embeddings": False}
ENCODER = {**BLOCKS, "num_attention_heads": 2, "pad_token_id": 1}
T5 = {"d_model": 16, "d_kv": 6, "d_ff": 20, "num_heads": 4, "num_layers": 2, "pad_token_id": 1}
FAMILIES: dict[str, Callable[[], transformers.PreTrainedModel]] = {
    "gpt2": lambda: _model(
        "GPT2LMHeadModel", n_embd=16, n_inner=20, n_layer=2, n_head=2, n_positions=CONTEXT, initializer_range=0.2
    ),
    "llama": lambda: _model("LlamaForCausalLM", **GROUPED),
    "llama-tied": lambda: _model("LlamaForCausalLM", **{**GROUPED, "tie_word_embeddings": True}),
    "mistral": lambda: _model("MistralForCausalLM", **GROUPED, sliding_window=6),
    "qwen2": lambda: _model("Qwen2ForCausalLM", **GROUPED),
    "qwen3": lambda: _model("Qwen3ForCausalLM", **GROUPED),
    "gpt_neox": lambda: _model("GPTNeoXForCausalLM", **BLOCKS, rotary_pct=0.5),
    "opt": lambda: _model(
        "OPTForCausalLM",
        hidden_size=16,
        ffn_dim=20,
        word_embed_proj_dim=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT,
        init_std=0.2,
        pad_token_id=1,
    ),
    "mixtral": lambda: _model("MixtralForCausalLM", **GROUPED, num_local_experts=6, num_experts_per_tok=2),
    "qwen3_moe": lambda: _model(
        "Qwen3MoeForCausalLM",
        **GROUPED,
        moe_intermediate_size=10,
        num_experts=6,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        mlp_only_layers=[0],
    ),
    "t5": lambda: _model("T5ForConditionalGeneration", **T5, decoder_start_token_id=0),
    "t5-untied": lambda: _untied(
        _model("T5ForConditionalGeneration", **T5, decoder_start_token_id=0, feed_forward_proj="gated-gelu")
    ),
    "bert": lambda: _model("BertForMaskedLM", **ENCODER),
    "roberta": lambda: _model("RobertaForMaskedLM", **{**ENCODER, "max_position_embeddings": CONTEXT + 2}),
}


def save(model: transformers.PreTrainedModel, folder: Path, kind: Kind = "causal") -> str:
    """Writes model and tokenizer as Hugging Face does; `load_checkpoint` (or `load_encoder`) reads the folder."""
    model.save_pretrained(folder)
    make_tokenizer(kind=kind).save_pretrained(folder)
    return str(folder)


# LoRA on linear layers; on the output head, beside a retrained embedding; a retrained embedding and head.
ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"target_modules": ["q_proj", "v_proj", "down_proj"]},
    "lora-head": {"target_modules": ["k_proj", "lm_head"], "modules_to_save": ["embed_tokens"]},
    "lora-saved": {"target_modules": "all-linear", "modules_to_save": ["embed_tokens", "lm_head"]},
}


def save_adapter(base: str, folder: Path, **shape: Any) -> str:
    """A LoRA adapter of the model in folder `base`, both of its matrices random."""
    import peft

    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    config = peft.LoraConfig(r=4, lora_alpha=8, init_lora_weights=False, **shape)
    peft.get_peft_model(model, config).save_pretrained(folder, save_embedding_layers=False)
    return str(folder)


def save_moments(model: torch.nn.Module, folder: Path, seed: int = 0) -> dict[str, torch.Tensor]:
    """Invented second moments of Adam beside the model: uneven, and zero for a whole row and column of each weight."""
    generator = torch.Generator().manual_seed(seed)
    moments = {name: torch.rand(p.shape, generator=generator) ** 4 * 1e-3 for name, p in model.named_parameters()}
    for moment in moments.values():
        moment[0] = 0.0
        moment[..., -1] = 0.0
    save_file(moments, folder / OPTIMIZER)
    return moments
