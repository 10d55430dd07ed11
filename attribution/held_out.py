"""The loss of a causal model on sequences, one by one: what held-out text costs it, token by token.

Sequences are those that a training would see (attribution/sequences.py): plain text has a loss on every token, a prompt
with its completion on the completion.
"""

import numpy as np
import torch
from torch.nn import functional

from attribution.backward import token_batches
from attribution.checkpoint import Checkpoint
from attribution.sequences import NO_LOSS, Sequence

BATCH_TOKENS = 4096


def padded(batch: list[Sequence], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens, labels), both `[batch, tokens]`, padded on the right, where no earlier token of a causal model sees."""
    width = max(len(sequence.tokens) for sequence in batch)
    tokens = torch.zeros(len(batch), width, dtype=torch.long)
    labels = torch.full((len(batch), width), NO_LOSS)
    for row, sequence in enumerate(batch):
        tokens[row, : len(sequence.tokens)] = torch.tensor(sequence.tokens)
        labels[row, : len(sequence.labels)] = torch.tensor(sequence.labels)
    return tokens.to(device), labels.to(device)


def batches(sequences: list[Sequence], batch_tokens: int) -> list[list[int]]:
    """Positions of the sequences that have a loss, in batches of at most `batch_tokens` padded tokens."""
    told = [i for i, sequence in enumerate(sequences) if sequence.has_loss]
    return [[told[i] for i in batch] for batch in token_batches([sequences[i].size for i in told], batch_tokens)]


@torch.no_grad()
def losses(checkpoint: Checkpoint, sequences: list[Sequence]) -> np.ndarray:
    """`[sequences]`, float64: the summed loss of each; 0 where none is taken."""
    found = np.zeros(len(sequences))
    for batch in batches(sequences, BATCH_TOKENS):
        tokens, labels = padded([sequences[i] for i in batch], checkpoint.device)
        logits = checkpoint.model(input_ids=tokens, use_cache=False).logits.float()
        each = functional.cross_entropy(logits.mT, labels, ignore_index=NO_LOSS, reduction="none")
        found[batch] = each.double().sum(1).cpu().numpy()
    return found


def num_told(sequences: list[Sequence]) -> np.ndarray:
    """`[sequences]`: the tokens of each that have a loss."""
    return np.array([sum(label != NO_LOSS for label in sequence.labels) for sequence in sequences], dtype=np.int64)
