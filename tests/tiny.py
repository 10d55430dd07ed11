"""Tiny models that load in milliseconds: GPT-2 (Conv1D) and Llama (nn.Linear) with one tokenizer, saved to a folder.

All sides of their layers differ in length, so that a transposed weight cannot pass for a right one.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

from attribution.checkpoint import OPTIMIZER
from attribution.training import Recipe, train_tokenizer

CONTEXT = 32
VOCABULARY = 300
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


def make_tokenizer(texts: Iterable[str] = TEXTS) -> transformers.PreTrainedTokenizerFast:
    return train_tokenizer(texts, VOCABULARY, CONTEXT)


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


def save(model: transformers.PreTrainedModel, folder: Path) -> str:
    """Writes model and tokenizer as Hugging Face does; `load_checkpoint` (or `load_encoder`) reads the folder."""
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
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
