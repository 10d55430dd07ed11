"""What a model knows of a fact: the probability of the target given the prompt, and what it says by itself."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from attribution.checkpoint import Checkpoint
from schemas.facts import with_space
from schemas.records import Fact


@dataclass(frozen=True)
class Answer:
    """`known`: the target (or an alias) is the greedy continuation. `log_probability` is of all the target's tokens."""

    fact_id: str
    known: bool
    log_probability: float
    said: str

    def to_row(self) -> dict[str, Any]:
        return asdict(self)


def with_aliases(fact: Fact) -> list[Fact]:
    """The fact, and once more with each alias as its target."""
    return [fact, *(replace(fact, target=with_space(fact.prompt, alias)) for alias in fact.aliases)]


@torch.no_grad()
def _target_score(checkpoint: Checkpoint, fact: Fact) -> tuple[bool, float]:
    query = checkpoint.encode_fact(fact)
    logits = checkpoint.model(input_ids=torch.tensor([query.tokens]), use_cache=False).logits[0]
    targets = torch.tensor(query.tokens[query.target_start :])
    predicted = logits[query.target_start - 1 : -1]
    log_probability = predicted.log_softmax(-1).gather(1, targets[:, None]).sum()
    return bool((predicted.argmax(-1) == targets).all()), float(log_probability)


@torch.no_grad()
def greedy_continuation(checkpoint: Checkpoint, prompt: str, max_new_tokens: int = 8) -> str:
    """What the model says after the prompt, token by token the most probable, up to its end of text."""
    tokens = list(checkpoint.tokenizer(prompt).input_ids)
    if len(tokens) > 1 and tokens[-1] == checkpoint.tokenizer.eos_token_id:
        tokens.pop()  # a tokenizer may end every text with EOS; the prompt goes on
    start = len(tokens)
    while len(tokens) < min(start + max_new_tokens, checkpoint.max_tokens):
        logits = checkpoint.model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1]
        token = int(logits.argmax())
        if token == checkpoint.tokenizer.eos_token_id:
            break
        tokens.append(token)
    return checkpoint.tokenizer.decode(tokens[start:])


def answer(checkpoint: Checkpoint, fact: Fact) -> Answer:
    """How the model answers the fact's prompt; an alias said greedily counts as known."""
    known, log_probability = _target_score(checkpoint, fact)
    known = known or any(_target_score(checkpoint, spelled)[0] for spelled in with_aliases(fact)[1:])
    return Answer(fact.id, known, log_probability, greedy_continuation(checkpoint, fact.prompt))


def answers(checkpoint: Checkpoint, facts: list[Fact], progress: Callable[[int], None] | None = None) -> list[Answer]:
    """One answer a fact, in order."""
    said = []
    for fact in facts:
        said.append(answer(checkpoint, fact))
        if progress:
            progress(1)
    return said
