"""Projected per-example gradients of a causal language model's loss, without forming a gradient.

For a linear map with input `a_t` and output gradient `d_t`, the gradient of an example is `G = sum_t d_t a_t^T`; its
feature is `sum_t (P_o R d_t)(P_i C a_t)^T` per module (design of LoGra, arXiv 2405.13954). The weights are frozen, so
only activation gradients flow: forward 2N + backward 2N FLOPs a token against the 6N of a training step.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import transformers
from torch.nn import functional

from attribution.checkpoint import Checkpoint, second_moments
from attribution.preconditioner import adam_scales
from attribution.projection import Projection
from schemas.errors import ConfigError


@dataclass(frozen=True)
class Sequence:
    """Tokens of one example or query; the loss is the sum over the tokens from `loss_start` (at least 1) on."""

    tokens: list[int]
    loss_start: int = 1


def linear_modules(model: transformers.PreTrainedModel) -> dict[str, torch.nn.Module]:
    """The tracked layers by name: every nn.Linear and GPT-2 Conv1D but the output head (tied to the embedding)."""
    head = model.get_output_embeddings()
    kinds = (torch.nn.Linear, transformers.pytorch_utils.Conv1D)
    return {name: m for name, m in model.named_modules() if isinstance(m, kinds) and m is not head}


def weight_shape(module: torch.nn.Module) -> tuple[int, int]:
    """(out, in) of a layer; Conv1D stores its weight as [in, out]."""
    shape = tuple(module.weight.shape)
    return shape if isinstance(module, torch.nn.Linear) else shape[::-1]


def token_batches(lengths: list[int], budget: int) -> Iterator[list[int]]:
    """Positions in batches of at most `budget` padded tokens (one sequence at least), from the shortest up.

    Cut from these lengths alone, so that a shard gives the same batches wherever it runs.
    """
    batch: list[int] = []
    for position in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if batch and (len(batch) + 1) * lengths[position] > budget:
            yield batch
            batch = []
        batch.append(position)
    if batch:
        yield batch


class FeatureExtractor:
    """Features of sequences for one checkpoint; hooks stand on the model for the extractor's life."""

    def __init__(self, checkpoint: Checkpoint, projection: Projection, batch_tokens: int = 2048):
        self.checkpoint = checkpoint
        self.batch_tokens = batch_tokens
        self.modules = linear_modules(checkpoint.model)
        if not self.modules:
            raise ConfigError(f"model {checkpoint.path}: expected linear layers to track, found none of a known kind")
        self._inputs: dict[str, torch.Tensor] = {}
        self._features: dict[str, torch.Tensor] = {}
        moments = second_moments(checkpoint.path)
        self.optimizer_corrected = bool(moments)
        self._sides = {}
        for name, module in self.modules.items():
            out, size = weight_shape(module)
            left, right = projection.matrix(name, "out", out), projection.matrix(name, "in", size)
            if moments:
                moment = moments[f"{name}.weight"].reshape(tuple(module.weight.shape))
                moment = moment if isinstance(module, torch.nn.Linear) else moment.T
                meta = checkpoint.meta
                rows, columns = adam_scales(moment, meta["step"], meta["beta2"], meta["eps"])
                left, right = left * rows.astype(np.float32), right * columns.astype(np.float32)
            self._sides[name] = (torch.from_numpy(left), torch.from_numpy(right))
            module.register_forward_hook(self._hook(name))
        self.dim = sum(left.shape[0] * right.shape[0] for left, right in self._sides.values())
        self.uses_mask = self._padding_changes_loss()

    @property
    def coverage(self) -> float:
        """Tracked weights as a share of all the model's parameters."""
        tracked = sum(module.weight.numel() for module in self.modules.values())
        return tracked / sum(p.numel() for p in self.checkpoint.model.parameters())

    def _hook(self, name: str) -> Callable:
        left, right = self._sides[name]

        def on_backward(gradient: torch.Tensor) -> None:
            self._features[name] = (gradient @ left.T).transpose(1, 2) @ self._inputs.pop(name)

        def on_forward(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            if torch.is_grad_enabled():
                self._inputs[name] = inputs[0].detach() @ right.T
                if not output.requires_grad:  # the first layer: from here on the graph is recorded
                    output.requires_grad_()
                output.register_hook(on_backward)

        return on_forward

    def losses(self, sequences: list[Sequence], mask: bool) -> torch.Tensor:
        """Summed loss of each sequence, `[batch]`, right-padded; causality keeps padding out of it without a mask."""
        width = max(len(s.tokens) for s in sequences)
        tokens = torch.zeros(len(sequences), width, dtype=torch.long)
        labels = torch.full((len(sequences), width), -100)
        for row, s in enumerate(sequences):
            tokens[row, : len(s.tokens)] = torch.tensor(s.tokens)
            labels[row, s.loss_start : len(s.tokens)] = tokens[row, s.loss_start : len(s.tokens)]
        attention = None
        if mask:
            attention = (torch.arange(width) < torch.tensor([[len(s.tokens)] for s in sequences])).long()
        logits = self.checkpoint.model(input_ids=tokens, attention_mask=attention, use_cache=False).logits
        flat = functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="none")
        return flat.view(len(sequences), width - 1).sum(dim=1)

    @torch.no_grad()
    def _padding_changes_loss(self) -> bool:
        """Whether this model sees right padding without a mask: a padded batch against batches of one."""
        vocabulary = self.checkpoint.model.get_input_embeddings().num_embeddings
        generator = torch.Generator().manual_seed(0)
        sizes = [min(size, self.checkpoint.max_tokens) for size in (5, 24)]
        probes = [Sequence(torch.randint(vocabulary, (size,), generator=generator).tolist()) for size in sizes]
        alone = torch.cat([self.losses([probe], mask=False) for probe in probes])
        return not torch.allclose(self.losses(probes, mask=False), alone, rtol=1e-4)

    def features(self, sequences: list[Sequence], progress: Callable[[int, int], None] | None = None) -> np.ndarray:
        """`[len(sequences), dim]` float32, in the given order; a sequence with no token to predict has a zero feature.

        `progress(sequences, tokens)` is called after each batch. Raises FloatingPointError for a value that is not
        finite, naming the sequence's position.
        """
        out = np.zeros((len(sequences), self.dim), dtype=np.float32)
        told = [i for i, s in enumerate(sequences) if len(s.tokens) > max(s.loss_start, 1)]
        for batch in token_batches([len(sequences[i].tokens) for i in told], self.batch_tokens):
            positions = [told[i] for i in batch]
            with torch.enable_grad():
                self.losses([sequences[i] for i in positions], self.uses_mask).sum().backward()
            parts = [self._features.pop(name).flatten(1) for name in self.modules]
            out[positions] = torch.cat(parts, dim=1).numpy()
            if progress:
                progress(len(positions), sum(len(sequences[i].tokens) for i in positions))
        finite = np.isfinite(out).all(axis=1)
        if not finite.all():
            raise FloatingPointError(f"gradient of sequence {int(np.argmin(finite))} is not finite")
        return out
