"""What `verify` and its prediction share: which facts and texts are asked, the asking, and the folder with the answers.

facts, facts to retain, held-out corpus + a model an arm -> answers, losses
     -> answers.jsonl, effects.jsonl, summary.json
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain, islice
from typing import Any

import numpy as np

from attribution.checkpoint import Checkpoint, tokenizer_hash
from attribution.effects import HeldOut, Measured, answer_rows, fact_effects, summarise
from attribution.held_out import losses, num_told
from attribution.knowledge import Answer, answers, with_aliases
from attribution.sequences import Sequence, encode_example
from pipelines import progress, resources
from pipelines.config import VerifyConfig
from pipelines.corpus import CorpusFormat, Record, base_folder, list_corpus, read_records
from pipelines.stage import library_versions
from pipelines.storage import OutputFolder, read_bytes
from schemas.errors import ArtifactMismatch, ConfigError
from schemas.facts import asked, parse_facts
from schemas.jsonl import jsonl_bytes
from schemas.manifest import Kind, Manifest
from schemas.records import DeadLetter, Fact

AT_ONCE = 4096  # held-out texts in memory


@dataclass(frozen=True)
class Questions:
    """What every arm is asked: `unique` has each fact once, those to retain after the others."""

    facts: list[Fact]
    retain: list[Fact]
    unique: list[Fact]


@dataclass(frozen=True, eq=False)
class Reply:
    """What one model gave: an answer by fact id, and on the held-out examples their losses and told tokens."""

    answers: dict[str, Answer]
    losses: np.ndarray
    tokens: np.ndarray
    cut: int


def read_questions(config: VerifyConfig) -> Questions:
    """The facts of both files. Raises ConfigError where an id stands for one fact here and another there."""
    facts = parse_facts(read_bytes(config.facts), config.facts)
    retain = parse_facts(read_bytes(config.retain_facts), config.retain_facts)
    by_id = {fact.id: fact for fact in facts}
    for fact in retain:
        known = by_id.setdefault(fact.id, fact)
        if (known.prompt, known.target, known.variants) != (fact.prompt, fact.target, fact.variants):
            raise ConfigError(
                f"{config.retain_facts}: the id {fact.id!r} is another fact in {config.facts}; give each its own id"
            )
    return Questions(facts, retain, list(by_id.values()))


def load_last(path: str) -> Checkpoint:
    """The checkpoint at `path`: of a folder that `train` wrote, the last."""
    return resources.checkpoint(resources.resolve_checkpoints((path,))[-1])


def require_askable(config: VerifyConfig, paths: tuple[str, ...], questions: Questions) -> None:
    """Raises ConfigError unless each model is a causal one that takes every question.

    A loss per token is compared between arms that have the same tokens: with a held-out corpus another tokenizer raises
    ArtifactMismatch.
    """
    tokenizers: dict[str, str] = {}
    for path in paths:
        loaded = load_last(path)
        if loaded.kind != "causal":
            raise ConfigError(
                f"{path}: expected a causal language model, whose answers are continuations, found a {loaded.kind} "
                "one; ask it with your own tools"
            )
        for fact in questions.unique:
            for spelled in chain.from_iterable(with_aliases(plain) for plain in asked(fact)):
                loaded.encode_fact(spelled)
        tokenizers.setdefault(tokenizer_hash(loaded.tokenizer), path)
    if config.held_out and len(tokenizers) > 1:
        first, second = list(tokenizers.values())[:2]
        raise ArtifactMismatch(
            f"--held_out: expected checkpoints with one tokenizer, whose losses per token can be compared, found "
            f"another in {second} than in {first}; leave --held_out out, or give checkpoints of one model"
        )


def _texts(config: VerifyConfig) -> Iterator[Record]:
    """The held-out records. Raises ConfigError for one that cannot be read: a loss without it is another's loss."""
    format = CorpusFormat(config.id_field, config.text_field)
    for path, _ in list_corpus(config.held_out):
        for record in read_records(path, format, base_folder(config.held_out)):
            if isinstance(record, DeadLetter):
                raise ConfigError(f"{record.file}, row {record.row}: {record.reason}; mend the record")
            yield record


def require_held_out(config: VerifyConfig) -> None:
    """Raises ConfigError where --held_out is given and holds no record."""
    if config.held_out and next(_texts(config), None) is None:
        raise ConfigError(
            f"--held_out {config.held_out}: expected records to measure the loss on, found none; give a corpus with "
            "some, or leave it out"
        )


def encode(checkpoint: Checkpoint, record: Record, option: str) -> Sequence:
    """The record as the model's training would see it. Raises ConfigError where the model takes no such record."""
    try:
        return encode_example(checkpoint, record.text, record.parts)
    except ValueError as error:
        raise ConfigError(f"--{option}, record {record.id!r}: {error}; give records of another form") from error


def ask(checkpoint: Checkpoint, config: VerifyConfig, questions: Questions, arm: str) -> Reply:
    """The model's answers and, where there is a held-out corpus, its losses."""
    with progress.bar(f"verify, {arm}", len(questions.unique), "facts") as advance:
        said = {answer.fact_id: answer for answer in answers(checkpoint, questions.unique, advance)}
    found, told, cut = [np.zeros(0)], [np.zeros(0, np.int64)], 0
    if config.held_out:
        with progress.bar(f"held out, {arm}", None, "texts") as advance:
            texts = _texts(config)
            while records := list(islice(texts, AT_ONCE)):
                sequences = [encode(checkpoint, record, "held_out") for record in records]
                found.append(losses(checkpoint, sequences))
                told.append(num_told(sequences))
                cut += sum(sequence.cut > 0 for sequence in sequences)
                advance(len(sequences), int(told[-1].sum()))
        if not any(part.any() for part in told):
            raise ConfigError(
                f"--held_out {config.held_out}: expected texts of at least one token to predict, found none; give "
                "longer ones"
            )
    return Reply(said, np.concatenate(found), np.concatenate(told), cut)


def measured(replies: list[dict[str, Reply]], questions: Questions, predicted: bool = False) -> Measured:
    """The replies by seed and arm, as their effects are computed from.

    Raises ArtifactMismatch where the arms do not take the held-out texts alike, as models of two context lengths do.
    """
    first, held_out = replies[0]["before"], None
    if len(first.tokens):
        for arm, reply in chain.from_iterable(by_seed.items() for by_seed in replies):
            if not np.array_equal(reply.tokens, first.tokens):
                raise ArtifactMismatch(
                    f"--held_out: expected {first.tokens.sum()} tokens to predict in every arm, as in the first, found "
                    f"{reply.tokens.sum()} in {arm}: its model takes shorter or longer texts; give checkpoints of one "
                    "context length, or shorter texts"
                )
        by_arm = {arm: np.stack([by_seed[arm].losses for by_seed in replies]) for arm in replies[0]}
        held_out = HeldOut(by_arm, first.tokens, first.cut)
    said = [{arm: reply.answers for arm, reply in by_seed.items()} for by_seed in replies]
    return Measured(said, questions.facts, questions.retain, held_out, predicted=predicted)


def write(
    output: OutputFolder, config: VerifyConfig, kind: Kind, found: Measured, seeds: list[int], facts: dict[str, Any]
) -> Manifest:
    """Finishes the folder: every answer, every fact's effect and the summary, with what else is known (`facts`)."""
    summary = summarise(found) | facts
    name = "predictions" if found.predicted else "answers"
    rows, effects = answer_rows(found, seeds), fact_effects(found)
    files = [
        output.write(f"{name}.jsonl", jsonl_bytes(rows), len(rows)),
        output.write(f"{found.prefix}effects.jsonl", jsonl_bytes(effects), len(effects)),
        output.write("summary.json", json.dumps(summary, indent=1).encode() + b"\n", 1),
    ]
    num_asked = len(found.facts) + len(found.retain)
    manifest = Manifest(
        kind=kind,
        config=asdict(config),
        versions=library_versions(),
        counts={"in": num_asked, "kept": num_asked, "removed": 0, "dead": 0},
        details=summary,
        files=files,
    )
    output.finish(manifest)
    _show(found, summary)
    return manifest


def _show(found: Measured, summary: dict[str, Any]) -> None:
    numbers = {name: value for name, value in summary.items() if isinstance(value, int | float)}
    title = "verify: a prediction, nothing was trained" if found.predicted else "verify"
    shown = {name: f"{value:.3f}" if isinstance(value, float) else value for name, value in numbers.items()}
    said = summary[f"{found.prefix}statements"]
    progress.summary(title, shown | {f"{number}.": sentence for number, sentence in enumerate(said, start=1)})
