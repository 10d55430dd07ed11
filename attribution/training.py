"""Training of a small causal LM in a data order that has holes, so that removing an example moves nothing else.

`batch = hash(seed, epoch, id) mod B`: an example's place in the order depends on nothing but itself. B, the steps and
the nominal tokens a batch are fixed by the first training, kept in the checkpoint and reused by a retraining; the loss
is the batch's sum divided by the nominal tokens, dropout is 0, and an empty batch keeps its step. Reshuffling alone
makes a small LM forget half of what it knew.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn import functional
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from attribution.checkpoint import CHECKPOINT_JSON, OPTIMIZER

BOS, EOS = "<s>", "</s>"
PACKED_ATTENTION = "proponent_packed"


@dataclass(frozen=True)
class Recipe:
    """All that decides a training but its examples; `train --like` takes it from a checkpoint."""

    layers: int
    width: int
    heads: int
    context: int
    epochs: int
    batches_per_epoch: int
    tokens_per_batch: float
    learning_rate: float
    num_checkpoints: int
    seed: int
    warmup_fraction: float = 0.05
    final_fraction: float = 0.1  # not 0: the last checkpoint's learning rate is its weight in TracIn
    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-8

    @property
    def steps(self) -> int:
        return self.epochs * self.batches_per_epoch

    def rate(self, step: int) -> float:
        """Learning rate of step `step` (from 0): linear warm-up, then a cosine down to `final_fraction`."""
        warmup = max(1, int(self.warmup_fraction * self.steps))
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        done = (step - warmup) / max(1, self.steps - warmup)
        low = self.final_fraction
        return self.learning_rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * done)))

    def checkpoint_steps(self) -> list[int]:
        return sorted({round(self.steps * (i + 1) / self.num_checkpoints) for i in range(self.num_checkpoints)})


def train_tokenizer(texts: Iterable[str], vocab_size: int, context: int) -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that puts BOS before a text; EOS is added where an example ends."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[BOS, EOS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=EOS, model_max_length=context
    )


def batch_of(seed: int, epoch: int, example_id: str, batches: int) -> int:
    """The batch of an example in an epoch: a function of these four alone."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{example_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % batches


def new_model(recipe: Recipe, vocab_size: int) -> transformers.GPT2LMHeadModel:
    """A GPT-2-shaped model, initialised from the recipe's seed, without dropout."""
    torch.manual_seed(recipe.seed)
    config = transformers.GPT2Config(
        vocab_size=vocab_size,
        n_positions=recipe.context,
        n_embd=recipe.width,
        n_layer=recipe.layers,
        n_head=recipe.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        activation_function="gelu_pytorch_tanh",  # GPT-2's, in one kernel instead of eight: 0.84 of a step's seconds
        bos_token_id=0,
        eos_token_id=1,
    )
    return transformers.GPT2LMHeadModel(config)


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    places: torch.Tensor,
    shape: tuple[int, int],
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each of the sequences that stand behind one another in one row.

    Args:
        module: The layer, unused.
        query: `[1, heads, tokens, size]`, as `key` and `value`.
        key: What is looked at.
        value: What is taken from it.
        attention_mask: None: no token sees the padding, which stands behind it.
        places: Of each token its place in the sequences, padded to the longest and flattened.
        shape: (sequences, tokens of the longest).
        scaling: Of the products of queries and keys; by default the root of `size`, inverted.
        options: Of the interface, unused: there is no dropout.

    Returns:
        (`[1, tokens, heads, size]`, None for the weights).
    """
    heads, size, slots = query.shape[1], query.shape[3], shape[0] * shape[1]

    def padded(packed: torch.Tensor) -> torch.Tensor:
        return packed.new_zeros(heads, slots, size).index_copy(1, places, packed[0]).view(heads, *shape, size)

    seen = functional.scaled_dot_product_attention(
        padded(query), padded(key), padded(value), is_causal=True, scale=scaling
    )
    return seen.reshape(heads, slots, size).index_select(1, places).transpose(0, 1)[None], None


ALL_ATTENTION_FUNCTIONS.register(PACKED_ATTENTION, packed_attention)


def batch_loss(model: transformers.PreTrainedModel, batch: list[list[int]]) -> torch.Tensor:
    """The summed next-token loss of the batch's sequences, by a model with PACKED_ATTENTION.

    They stand behind one another, so that attention alone computes padding: a step on 16 T-REx sentences takes
    0.8 of the seconds (width 128, vocabulary 4096, one thread).
    """
    lengths = torch.tensor([len(tokens) - 1 for tokens in batch])  # the last token predicts nothing
    width = int(lengths.max())
    places = (torch.arange(width) < lengths[:, None]).flatten().nonzero().squeeze(1)
    hidden = model.base_model(
        input_ids=torch.tensor([[token for tokens in batch for token in tokens[:-1]]]),
        position_ids=(places % width)[None],
        use_cache=False,
        places=places,
        shape=(len(batch), width),
    ).last_hidden_state[0]
    labels = torch.tensor([token for tokens in batch for token in tokens[1:]])
    return functional.cross_entropy(model.lm_head(hidden), labels, reduction="sum")


def train(
    examples: list[tuple[str, list[int]]],
    recipe: Recipe,
    tokenizer: transformers.PreTrainedTokenizerFast,
    output: Path,
    progress: Callable[[int, int, float], None] | None = None,
    noted: dict[str, Any] | None = None,
) -> list[Path]:
    """Trains on (id, tokens) pairs and writes the recipe's checkpoints under `output`; returns their folders.

    `noted` is kept in `checkpoint.json` beside the recipe; `progress(steps, tokens, loss per token)` is called after
    each step.
    """
    model = new_model(recipe, len(tokenizer))
    model.train()
    model.set_attn_implementation(PACKED_ATTENTION)  # of this object alone: a checkpoint names none
    betas = (recipe.beta1, recipe.beta2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, betas=betas, eps=recipe.eps, weight_decay=0.0, fused=True)
    ordered = sorted(examples)
    folders, step, due = [], 0, recipe.checkpoint_steps()
    for epoch in range(recipe.epochs):
        batches: list[list[list[int]]] = [[] for _ in range(recipe.batches_per_epoch)]
        for example_id, tokens in ordered:
            batches[batch_of(recipe.seed, epoch, example_id, recipe.batches_per_epoch)].append(tokens)
        for batch in batches:
            rate = recipe.rate(step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad(set_to_none=False)
            count, loss = sum(len(tokens) - 1 for tokens in batch), 0.0
            if count:
                summed = batch_loss(model, batch)
                (summed / recipe.tokens_per_batch).backward()
                loss = summed.item() / count
            else:  # the gradient of no example is zero, and the step is kept
                for parameter in model.parameters():
                    parameter.grad = torch.zeros_like(parameter)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
            if progress:
                progress(1, count, loss)
            if step in due:
                folder = output / f"step-{step:06d}"
                save_checkpoint(folder, model, tokenizer, optimizer, recipe, step, rate, noted or {})
                folders.append(folder)
    return folders


def save_checkpoint(
    folder: Path,
    model: transformers.PreTrainedModel,
    tokenizer: transformers.PreTrainedTokenizerFast,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    step: int,
    rate: float,
    noted: dict[str, Any],
) -> None:
    """Weights, tokenizer, Adam's second moments by parameter name, and `checkpoint.json`."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    moments = {name: optimizer.state[p]["exp_avg_sq"] for name, p in model.named_parameters()}
    save_file(moments, folder / OPTIMIZER)
    meta: dict[str, Any] = noted | {
        "step": step,
        "learning_rate": rate,
        "beta2": recipe.beta2,
        "eps": recipe.eps,
        "add_eos": True,
        "recipe": asdict(recipe),
    }
    (folder / CHECKPOINT_JSON).write_text(json.dumps(meta, indent=1, sort_keys=True) + "\n")
