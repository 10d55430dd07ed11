"""One forward and one backward pass of a batch, with what a gradient is made of handed over layer by layer.

For a weight `W` `[out, in]` with input `a_t` and output gradient `d_t`, an example's gradient is `sum_t d_t a_t^T`. It
is never formed: a consumer is given `a_t` in the forward and `d_t` in the backward pass. Weights are frozen, so only
the gradients of activations flow: forward 2N + backward 2N FLOPs a token against the 6N of a training step. Logits are
computed only where a loss is taken, and their gradient takes their own memory.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.nn import functional
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from attribution.checkpoint import Checkpoint
from attribution.layers import Layer, Use
from attribution.sequences import NO_LOSS, Sequence, causal

EXPERTS_IMPLEMENTATION = "proponent"
FLOAT32_ATTENTION = "proponent_float32"
LOSS_CHUNK = 2**20  # logits a chunk of the loss: 4 MiB stay in the cache


class Consumer(Protocol):
    """Takes the two sides of each use of a layer. `part` is the expert's number, 0 elsewhere.

    Sides are `[batch, tokens, in]` and `[batch, tokens, out]`; rows without a gradient are zero. Layers that read the
    same input are given the same tensor. What `take_input`
    returns is handed to `take_gradient` with the output's gradient. An embedding's input is its token ids
    `[batch, tokens]`, and its weight is `[tokens, width]`, so `d` there belongs to the weight's in side.
    """

    def take_input(self, layer: Layer, part: int, a: torch.Tensor) -> Any: ...

    def take_gradient(self, layer: Layer, part: int, taken: Any, d: torch.Tensor) -> None: ...

    def take_embedding(self, layer: Layer, tokens: torch.Tensor, d: torch.Tensor) -> None: ...


@dataclass(frozen=True)
class Batch:
    """Sequences as tensors: the model's arguments, labels `[batch, tokens]`, and the shape of what is scored."""

    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor


def _padded(rows: list[list[int]], filler: int, left: bool, device: torch.device) -> torch.Tensor:
    width = max(map(len, rows))
    padded = [[filler] * (width - len(row)) + row if left else row + [filler] * (width - len(row)) for row in rows]
    return torch.tensor(padded, dtype=torch.long, device=device)


def collate(sequences: list[Sequence], mask: bool, device: torch.device, left: bool = False) -> Batch:
    """The batch, padded at the right (or, with a mask and positions of its own, at the left)."""
    inputs = {"input_ids": _padded([s.tokens for s in sequences], 0, left, device)}
    if mask:
        inputs["attention_mask"] = _padded([[1] * len(s.tokens) for s in sequences], 0, left, device)
    if left:
        inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    if sequences[0].decoder_tokens is not None:
        inputs["decoder_input_ids"] = _padded([s.decoder_tokens for s in sequences], 0, left, device)
    return Batch(inputs, _padded([s.labels for s in sequences], NO_LOSS, left, device))


def _chunks(logits: torch.Tensor, targets: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    rows = max(1, LOSS_CHUNK // logits.shape[1])
    return zip(logits.split(rows), targets.split(rows), strict=True)


@torch.no_grad()
def cross_entropies(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """`[rows]` in float32 or better, of logits `[rows, vocabulary]`."""
    exact = torch.promote_types(logits.dtype, torch.float32)
    parts = [functional.cross_entropy(p.to(exact), t, reduction="none") for p, t in _chunks(logits, targets)]
    return torch.cat(parts)


@torch.no_grad()
def to_loss_gradient(logits: torch.Tensor, targets: torch.Tensor, unit: bool = False) -> torch.Tensor:
    """Overwrites logits `[rows, vocabulary]` with the gradient of their summed cross entropy, softmax - one-hot.

    `unit` scales each row to unit length: what the model has learned by heart has a gradient of almost 0 otherwise, and
    says nothing beside a word that no training could tell.
    """
    values = logits.detach()
    for part, target in _chunks(values, targets):
        p = part.softmax(-1, dtype=torch.promote_types(part.dtype, torch.float32))
        p[torch.arange(len(target), device=p.device), target] -= 1
        part.copy_(functional.normalize(p, dim=-1) if unit else p)
    return values


def float32_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' own SDPA attention in float32, for CPUs under bfloat16.

    Its bfloat16 backward pass took 22 ms a layer where float32 takes 4 (22 x 46 tokens, 9 heads, torch 2.13).
    """
    with torch.autocast(query.device.type, enabled=False):
        out, _ = sdpa_attention_forward(module, query.float(), key.float(), value.float(), attention_mask, **options)
    return out, None


ALL_ATTENTION_FUNCTIONS.register(FLOAT32_ATTENTION, float32_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(FLOAT32_ATTENTION, sdpa_mask)


def experts_forward(
    module: torch.nn.Module, hidden: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """Fused experts, one after another, each product announced to the pass that runs (transformers' own loop)."""
    out = torch.zeros_like(hidden)
    listeners = getattr(module, "_proponent_told", ())
    for expert in top_k_index.unique().tolist():
        rows, slot = torch.where(top_k_index == expert)
        product = functional.linear(hidden[rows], module.gate_up_proj[expert])
        for told in listeners:
            told("gate_up_proj", expert, rows, hidden[rows], product)
        gated = module._apply_gate(product)
        product = functional.linear(gated, module.down_proj[expert])
        for told in listeners:
            told("down_proj", expert, rows, gated, product)
        out = out.index_add(0, rows, (product * top_k_weights[rows, slot, None]).to(out.dtype))
    return out


ALL_EXPERTS_FUNCTIONS.register(EXPERTS_IMPLEMENTATION, experts_forward)


class Backward:
    """Passes over batches of one model. The hooks stand on the model for this object's life.

    With `unit_labels` each token's gradient of the logits has unit length (`to_loss_gradient`).
    """

    def __init__(self, checkpoint: Checkpoint, layers: list[Layer], unit_labels: bool = False):
        self.checkpoint, self.layers, self.unit_labels = checkpoint, layers, unit_labels
        self.uses_mask = False
        self._consumer: Consumer | None = None
        self._batch: Batch | None = None
        self._told: torch.Tensor | None = None
        self._source: torch.Tensor | None = None  # the input that the last layer read, as the model holds it
        self._input: torch.Tensor | None = None
        model = checkpoint.model
        if checkpoint.dtype == torch.bfloat16 and checkpoint.device.type == "cpu":
            model.config._attn_implementation = FLOAT32_ATTENTION
        by_module: dict[torch.nn.Module, list[tuple[Layer, Use]]] = {}
        for layer in layers:
            for use in layer.uses:
                by_module.setdefault(use.module, []).append((layer, use))
        head = model.get_output_embeddings()
        self._hooks = [head.register_forward_pre_hook(self._keep_told)]
        for module, uses in by_module.items():
            layer, use = uses[0]
            if use.kind == "experts":
                model.config._experts_implementation = module.config._experts_implementation = EXPERTS_IMPLEMENTATION
                told = self._experts_hook({u.weight: lay for lay, u in uses})
                module._proponent_told = (*getattr(module, "_proponent_told", ()), told)
            else:
                hook = self._embedding_hook if use.kind == "embedding" else self._linear_hook
                self._hooks.append(module.register_forward_hook(hook(layer, use)))
        # An encoder always does; the probe's tolerance under bfloat16 is wider than what padding changed in small ones.
        self.uses_mask = checkpoint.kind != "causal" or self._padding_changes_loss()

    def _keep_told(self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Gives the head only the positions where a loss is taken: `[rows, width]`."""
        return inputs if self._told is None else (inputs[0].flatten(0, 1)[self._told], *inputs[1:])

    def _spread(self, values: torch.Tensor, rows: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """`[batch, tokens, width]` of `[rows, width]` at the flat positions `rows`, zero elsewhere."""
        full = values.new_zeros(like.numel(), values.shape[1])
        full[rows] = values
        return full.view(*like.shape, -1)

    def _linear_hook(self, layer: Layer, use: Use) -> Any:
        head = use.kind == "head"

        def hook(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            if self._consumer is None or not torch.is_grad_enabled():
                return
            if not output.requires_grad:  # the lowest layer: from here on the graph is recorded
                output.requires_grad_()
            consumer, batch, told = self._consumer, self._batch, self._told

            def whole(x: torch.Tensor) -> torch.Tensor:
                if head:
                    return self._spread(x, told, batch.labels)
                return x if x.dim() == 3 else x.view(*batch.inputs["input_ids"].shape, -1)

            if inputs[0] is not self._source:
                self._source, self._input = inputs[0], whole(inputs[0].detach())
            taken = consumer.take_input(layer, 0, self._input)
            output.register_hook(lambda d: consumer.take_gradient(layer, 0, taken, whole(d)))

        return hook

    def _embedding_hook(self, layer: Layer, use: Use) -> Any:
        def hook(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            if self._consumer is None or not torch.is_grad_enabled():
                return
            if not output.requires_grad:
                output.requires_grad_()
            consumer, tokens = self._consumer, inputs[0]
            kept = None if module.padding_idx is None else (tokens != module.padding_idx).unsqueeze(2)

            def on_gradient(d: torch.Tensor) -> None:  # training moves no row of padding either
                consumer.take_embedding(layer, tokens, d if kept is None else d * kept)

            output.register_hook(on_gradient)

        return hook

    def _experts_hook(self, layers: dict[str, Layer]) -> Any:
        def told(name: str, expert: int, rows: torch.Tensor, a: torch.Tensor, output: torch.Tensor) -> None:
            if self._consumer is None or not torch.is_grad_enabled() or name not in layers:
                return
            if not output.requires_grad:
                output.requires_grad_()
            consumer, layer, like = self._consumer, layers[name], self._batch.inputs["input_ids"]
            taken = consumer.take_input(layer, expert, self._spread(a.detach(), rows, like))
            output.register_hook(lambda d: consumer.take_gradient(layer, expert, taken, self._spread(d, rows, like)))

        return told

    def _logits(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """(logits `[rows, vocabulary]`, rows): the flat positions of the batch where a loss is taken, in order."""
        self._batch = batch
        self._told = torch.where(batch.labels.flatten() != NO_LOSS)[0]
        with self.checkpoint.autocast():
            logits = self.checkpoint.model(**batch.inputs, use_cache=False).logits
        return logits, self._told

    def run(self, sequences: list[Sequence], consumer: Consumer, left: bool = False) -> None:
        """Gives the consumer every use of every layer, for the gradient of the summed losses."""
        batch = collate(sequences, self.uses_mask or left, self.checkpoint.device, left)
        self._consumer = consumer
        try:
            with torch.enable_grad():
                logits, rows = self._logits(batch)
                logits.backward(to_loss_gradient(logits, batch.labels.flatten()[rows], self.unit_labels))
        finally:
            self._consumer = self._batch = self._told = self._source = self._input = None

    @torch.no_grad()
    def losses(self, sequences: list[Sequence], mask: bool | None = None) -> torch.Tensor:
        """The summed loss of each sequence, `[batch]`."""
        batch = collate(sequences, self.uses_mask if mask is None else mask, self.checkpoint.device)
        logits, rows = self._logits(batch)
        self._batch = self._told = None
        losses = cross_entropies(logits, batch.labels.flatten()[rows])
        return losses.new_zeros(len(batch.labels)).index_add_(0, rows // batch.labels.shape[1], losses)

    def _padding_changes_loss(self) -> bool:
        """Whether this model sees right padding without a mask: a padded batch against batches of one."""
        probes = probe_sequences(self.checkpoint)
        alone = torch.cat([self.losses([probe], mask=False) for probe in probes])
        tolerance = 1e-4 if self.checkpoint.dtype != torch.bfloat16 else 2e-2
        return not torch.allclose(self.losses(probes, mask=False), alone, rtol=tolerance)


def probe_sequences(checkpoint: Checkpoint) -> list[Sequence]:
    """A short and a longer sequence of seeded tokens, with a loss everywhere: the fixed batch of a model."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = checkpoint.model.get_input_embeddings().weight.shape[0]
    found = []
    for size in (5, 24):
        tokens = torch.randint(vocabulary, (min(size, checkpoint.max_tokens),), generator=generator).tolist()
        if checkpoint.kind == "seq2seq":
            found.append(Sequence(tokens, tokens[1:], tokens[:-1]))
        elif checkpoint.kind == "masked":
            found.append(Sequence(tokens, tokens))
        else:
            found.append(causal(tokens))
    return found


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
