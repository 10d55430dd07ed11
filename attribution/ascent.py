"""One step up the loss of some examples, as the model's own optimizer would take it: a prediction of their removal.

    theta' = theta + rate * g / (sqrt(V) + eps),   g = sum over the examples of the gradient of their loss / tokens

V are the second moments that the optimizer had kept, `tokens` those of a training step, so that an example counts in g
for what it did in a step of the training, however many others are taken with it. It is a first-order prediction: what
a training without the examples gives is for a training to say.
"""

import copy
from dataclasses import replace

import torch
from torch.nn import functional

from attribution.checkpoint import Checkpoint
from attribution.held_out import batches, padded
from attribution.sequences import NO_LOSS, Sequence

BATCH_TOKENS = 1024  # a pass back keeps more than one forward


def loss_gradient(checkpoint: Checkpoint, sequences: list[Sequence]) -> dict[str, torch.Tensor]:
    """The gradient of the sequences' summed loss by name of each trainable parameter; the checkpoint stays frozen."""
    model = copy.deepcopy(checkpoint.model)
    parameters = {name: p.requires_grad_() for name, p in model.named_parameters() if name in checkpoint.trainable}
    for batch in batches(sequences, BATCH_TOKENS):
        tokens, labels = padded([sequences[i] for i in batch], checkpoint.device)
        logits = model(input_ids=tokens, use_cache=False).logits.float()
        functional.cross_entropy(logits.mT, labels, ignore_index=NO_LOSS, reduction="sum").backward()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in parameters.items()}


def ascended(
    checkpoint: Checkpoint,
    gradient: dict[str, torch.Tensor],
    moments: dict[str, torch.Tensor],
    eps: float,
    rate: float,
) -> Checkpoint:
    """A copy of the checkpoint after one step of length `rate` up the gradient; the checkpoint itself stays as it is.

    Args:
        gradient: By parameter name; a parameter that is not among them stays.
        moments: Second moments V by parameter name, each in its parameter's shape.
        eps: What the optimizer adds to sqrt(V).
        rate: Learning rate, divided by the tokens of a step where `gradient` is of a summed loss.
    """
    model = copy.deepcopy(checkpoint.model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in gradient:
                parameter += rate * gradient[name] / (moments[name].to(parameter.device).sqrt() + eps)
    return replace(checkpoint, model=model)
