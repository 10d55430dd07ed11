"""Texts to unit vectors with any Hugging Face encoder: mean of the last hidden states over the text's tokens."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import transformers

from attribution.checkpoint import load_pretrained, load_tokenizer
from attribution.gradients import token_batches


@dataclass(frozen=True)
class Encoder:
    """A loaded encoder; `max_tokens` is what it takes, longer texts are cut there (and counted by the caller)."""

    path: str
    model: transformers.PreTrainedModel
    tokenizer: transformers.PreTrainedTokenizerFast
    max_tokens: int

    @property
    def dim(self) -> int:
        return int(self.model.config.hidden_size)


def load_encoder(path: str) -> Encoder:
    """The encoder at a name or path. Raises ConfigError if it, or its tokenizer, is not there."""
    model, tokenizer = load_pretrained(transformers.AutoModel, path), load_tokenizer(path)
    limits = [getattr(model.config, "max_position_embeddings", 512), tokenizer.model_max_length]
    return Encoder(path, model, tokenizer, int(min(limits)))


@torch.no_grad()
def embed(
    encoder: Encoder, texts: list[str], batch_tokens: int = 8192, progress: Callable[[int, int], None] | None = None
) -> tuple[np.ndarray, int]:
    """(`[texts, dim]` float32 at unit norm, in the given order; how many texts were cut at the encoder's limit).

    `progress(texts, tokens)` is called after each batch.
    """
    if not texts:
        return np.zeros((0, encoder.dim), dtype=np.float32), 0
    encoded = encoder.tokenizer(texts, add_special_tokens=True).input_ids
    cut = sum(len(tokens) > encoder.max_tokens for tokens in encoded)
    if cut:
        encoded = encoder.tokenizer(texts, truncation=True, max_length=encoder.max_tokens).input_ids
        encoder.tokenizer.backend_tokenizer.no_truncation()
    vectors = np.zeros((len(texts), encoder.dim), dtype=np.float32)
    for batch in token_batches([len(tokens) for tokens in encoded], batch_tokens):
        width = max(len(encoded[i]) for i in batch)
        tokens = torch.full((len(batch), width), encoder.tokenizer.pad_token_id or 0)
        mask = torch.zeros(len(batch), width)
        for row, i in enumerate(batch):
            tokens[row, : len(encoded[i])] = torch.tensor(encoded[i])
            mask[row, : len(encoded[i])] = 1
        hidden = encoder.model(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
        mean = (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
        vectors[batch] = torch.nn.functional.normalize(mean, dim=1).numpy()
        if progress:
            progress(len(batch), int(mask.sum()))
    if not np.isfinite(vectors).all():
        raise FloatingPointError(f"encoder {encoder.path}: a vector is not finite")
    return vectors, cut
