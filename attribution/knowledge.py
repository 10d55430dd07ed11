"""What a model knows of a fact: the probability of the target given the prompt, and what it says by itself."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from attribution.checkpoint import Checkpoint
from schemas.facts import asked, with_space
from schemas.records import Fact


@dataclass(frozen=True)
class Paraphrase:
    """One prompt of a fact that has several. `known`: one of the targets asked with it (or an alias) is said greedily.

    `log_probability` is that of the first of these targets.
    """

    prompt: str
    known: bool
    log_probability: float


@dataclass(frozen=True)
class Answer:
    """`known`: the target (or an alias) is the greedy continuation. `log_probability` is of all the target's tokens.

    Both, and what was `said`, are of the fact's first prompt; `paraphrases` are all its prompts where it has several.
    """

    fact_id: str
    known: bool
    log_probability: float
    said: str
    paraphrases: tuple[Paraphrase, ...] = ()

    @property
    def prompts_known(self) -> list[bool]:
        """Of each prompt of the fact, whether it is known."""
        return [paraphrase.known for paraphrase in self.paraphrases] or [self.known]

    def to_row(self) -> dict[str, Any]:
        """All fields; `paraphrases` only where there are any."""
        row = asdict(self)
        if not self.paraphrases:
            del row["paraphrases"]
        return row


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


def _known(checkpoint: Checkpoint, fact: Fact) -> tuple[bool, float]:
    """(whether the target or an alias is said greedily, the target's log probability)."""
    known, log_probability = _target_score(checkpoint, fact)
    known = known or any(_target_score(checkpoint, spelled)[0] for spelled in with_aliases(fact)[1:])
    return known, log_probability


def _paraphrases(checkpoint: Checkpoint, fact: Fact) -> tuple[Paraphrase, ...]:
    """Every prompt of the fact once, in order; none where it has but one."""
    by_prompt: dict[str, list[tuple[bool, float]]] = {}
    for plain in asked(fact):
        by_prompt.setdefault(plain.prompt, []).append(_known(checkpoint, plain))
    if len(by_prompt) == 1:
        return ()
    return tuple(
        Paraphrase(prompt, any(known for known, _ in found), found[0][1]) for prompt, found in by_prompt.items()
    )


def answer(checkpoint: Checkpoint, fact: Fact) -> Answer:
    """How the model answers the fact's prompts; an alias said greedily counts as known."""
    known, log_probability = _known(checkpoint, fact)
    said = greedy_continuation(checkpoint, fact.prompt)
    return Answer(fact.id, known, log_probability, said, _paraphrases(checkpoint, fact))


def answers(checkpoint: Checkpoint, facts: list[Fact], progress: Callable[[int], None] | None = None) -> list[Answer]:
    """One answer a fact, in order."""
    said = []
    for fact in facts:
        said.append(answer(checkpoint, fact))
        if progress:
            progress(1)
    return said
