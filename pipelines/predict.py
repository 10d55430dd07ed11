"""`verify --predict`: what one step up the removals' loss does to the answers, beside one up the control's.

  corpus + removals + control removals + checkpoint with its optimizer state
       -> a copy after one step each -> predictions.jsonl, predicted_effects.jsonl, summary.json, manifest.json

For those who cannot train again. Nothing here was measured on a model trained without the removals, and every name of
what comes out says so. The step (attribution/ascent.py) is `--step_size` learning rates long. What it is worth on the
demo, whose effect was measured (`python -m bench.predict`, at the default step): over 12 false claims and 202 true
facts the predicted and the measured change of the target's probability correlate with 0.58, and of the pairs of a claim
and a true fact 93 % have the claim fall further. Sizes are not predicted (the claims' mean change is -0.10, where -0.88
was measured), nor is which true fact moves a little more than another (rank correlation 0.05).
"""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from attribution.ascent import ascended, loss_gradient
from attribution.checkpoint import CHECKPOINT_JSON, Checkpoint
from attribution.held_out import num_told
from attribution.optimizer_state import FILES, read_whole_moments
from pipelines.asking import (
    Reply,
    ask,
    encode,
    load_last,
    measured,
    read_questions,
    require_askable,
    require_held_out,
    write,
)
from pipelines.config import VerifyConfig
from pipelines.corpus import CorpusFormat, Record, base_folder, list_corpus, read_records
from pipelines.decisions import read_approved
from pipelines.storage import OutputFolder
from schemas.errors import ArtifactMismatch, ConfigError
from schemas.manifest import Manifest
from schemas.records import Removal


def read_removals(path: str, option: str) -> list[Removal]:
    """The approved removals of a run or a file. Raises ConfigError if there is none, or one that is no whole text's."""
    chosen = read_approved(path)
    require_whole(chosen, path, option)
    return chosen


def require_whole(removals: list[Removal], path: str, option: str) -> None:
    """Raises ConfigError for a redaction: the step is up a whole example's loss, and a redaction leaves some of it."""
    others = [removal.example_id for removal in removals if removal.action != "remove"]
    if others:
        raise ConfigError(
            f"--{option} {path}: expected removals of whole examples, found {len(others)} of another kind "
            f"({', '.join(others[:5])}{', ...' if len(others) > 5 else ''}); predict from the removals alone, or "
            "measure with --after and --control"
        )


def find_examples(config: VerifyConfig, removals: Iterable[Removal]) -> dict[str, Record]:
    """The records of the removals by id. Raises ArtifactMismatch for one that is not there, or has another text.

    A bad record of the corpus is passed over: if it were a removal's, that would be missing.
    """
    wanted = {removal.example_id: removal for removal in removals}
    format, found = CorpusFormat(config.id_field, config.text_field), {}
    for path, _ in list_corpus(config.corpus):
        for record in read_records(path, format, base_folder(config.corpus)):
            if isinstance(record, Record) and record.id in wanted:
                found.setdefault(record.id, record)
    missing = sorted(wanted.keys() - found.keys())
    changed = sorted(i for i, record in found.items() if record.sha256 != wanted[i].sha256)
    for ids, what in ((missing, "that stand nowhere in it"), (changed, "whose text is another there")):
        if ids:
            raise ArtifactMismatch(
                f"--corpus {config.corpus}: expected every approved removal as it was judged, found {len(ids)} {what} "
                f"({', '.join(ids[:5])}{', ...' if len(ids) > 5 else ''}); give the corpus that was indexed"
            )
    return found


def step_rate(checkpoint: Checkpoint, config: VerifyConfig) -> float:
    """Length of the step on a summed loss. Raises ConfigError where the checkpoint lacks a record and none is given."""
    if checkpoint.learning_rate is None:
        raise ConfigError(
            f"{checkpoint.path}: expected its learning rate in {CHECKPOINT_JSON} or trainer_state.json, found none; "
            f"--predict takes a step of that length: write it into a {CHECKPOINT_JSON}, with its step"
        )
    tokens = config.tokens_per_batch or checkpoint.meta.get("recipe", {}).get("tokens_per_batch")
    if not tokens:
        raise ConfigError(
            f"{checkpoint.path}: expected the tokens that a training step took in {CHECKPOINT_JSON}, found no recipe "
            "there; give --tokens_per_batch"
        )
    return config.step_size * checkpoint.learning_rate / tokens


def stepped(
    checkpoint: Checkpoint, config: VerifyConfig, examples: dict[str, Record], arms: dict[str, list[Removal]]
) -> Iterable[tuple[str, Checkpoint]]:
    """(arm, a copy of the checkpoint after one step on its removals); one copy at a time.

    Raises ConfigError where no optimizer state was kept: from an estimate the steps would be of another optimizer.
    """
    state = read_whole_moments(checkpoint.path, checkpoint.model, checkpoint.meta, checkpoint.trainable)
    if state is None:
        raise ConfigError(
            f"{checkpoint.path}: expected an optimizer state beside the weights ({', '.join(FILES)}), found none; "
            "--predict takes the step with its second moments: give a checkpoint that has one, or measure with "
            "--after and --control"
        )
    (moments, eps, _), rate = state, step_rate(checkpoint, config)
    for arm, removals in arms.items():
        sequences = [encode(checkpoint, examples[removal.example_id], "corpus") for removal in removals]
        if not num_told(sequences).any():
            raise ConfigError(
                f"--corpus: expected a token to predict in the examples of the {arm} step, found none; nothing can be "
                "said of removing them"
            )
        yield arm, ascended(checkpoint, loss_gradient(checkpoint, sequences), moments, eps, rate)


def run(config: VerifyConfig) -> Manifest:
    """Writes the predicted answers and their summary."""
    questions = read_questions(config)
    require_held_out(config)
    arms = {
        "after": read_removals(config.removals, "removals"),
        "control": read_removals(config.control_removals, "control_removals"),
    }
    require_askable(config, config.before, questions)
    examples = find_examples(config, [removal for removals in arms.values() for removal in removals])
    plan = {name: value for name, value in asdict(config).items() if name != "quiet"}
    plan |= {name: [plan[name], list_corpus(plan[name])] for name in ("corpus", "held_out") if plan[name]}
    with OutputFolder(config.output, plan) as output:
        replies: list[dict[str, Reply]] = []
        for path in config.before:
            checkpoint = load_last(path)
            by_arm = {"before": ask(checkpoint, config, questions, "before")}
            for arm, copy in stepped(checkpoint, config, examples, arms):
                by_arm[arm] = ask(copy, config, questions, f"predicted {arm}")
            replies.append(by_arm)
        facts: dict[str, Any] = {
            "predicted": "one ascent step with the optimizer's recorded second moments; no model was trained",
            "step_size": config.step_size,
            "num_removed": len(arms["after"]),
            "num_control": len(arms["control"]),
        }
        found = measured(replies, questions, predicted=True)
        return write(output, config, "prediction", found, list(range(len(config.before))), facts)
