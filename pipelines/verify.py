"""`verify`: did the knowledge go, and did the rest stay? Measured on the models before, after and in the control.

checkpoints (or corpora to train on) + facts + facts to retain (+ a held-out corpus)
     -> answers.jsonl, effects.jsonl, summary.json, manifest.json

Several seeds are several checkpoints an arm, or trainings here. With `--predict` nothing is trained
(pipelines/predict.py).
"""

import os
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from attribution.checkpoint import read_meta
from attribution.effects import ARMS
from pipelines import predict, resources
from pipelines.asking import Reply, ask, load_last, measured, read_questions, require_askable, require_held_out, write
from pipelines.config import TrainConfig, VerifyConfig
from pipelines.corpus import CorpusFormat, base_folder, list_corpus, read_records
from pipelines.storage import OutputFolder, exists, join, read_manifest
from schemas.errors import ArtifactMismatch
from schemas.manifest import MANIFEST, Manifest

Train = Callable[[TrainConfig], Manifest]


def _own_seed(path: str) -> int | None:
    """The seed that a checkpoint of ours was trained with; None of any other checkpoint."""
    return read_meta(resources.resolve_checkpoints((path,))[-1]).get("recipe", {}).get("seed")


def _require_its_corpus(config: VerifyConfig) -> None:
    """Raises ArtifactMismatch where --before was trained on another number of examples than --before_corpus has.

    The other seeds' models would know other examples than its own. Nothing is known of a checkpoint that was moved out
    of the folder that `train` wrote.
    """
    folder = os.path.dirname(resources.resolve_checkpoints(config.before)[-1])
    if not exists(join(folder, MANIFEST)):
        return
    expected = read_manifest(folder, "checkpoints").counts["in"]
    meta = load_last(config.before[0]).meta
    format = CorpusFormat(meta.get("id_field", "id"), meta.get("text_field", "text"))
    base = base_folder(config.before_corpus)
    found = sum(1 for path, _ in list_corpus(config.before_corpus) for _ in read_records(path, format, base))
    if found != expected:
        raise ArtifactMismatch(
            f"--before_corpus {config.before_corpus}: expected the {expected} examples that {config.before[0]} was "
            f"trained on, found {found}; give that corpus"
        )


class _Arms:
    """The checkpoints of each seed's arms: given, or trained here where they do not stand yet."""

    def __init__(self, config: VerifyConfig, train: Train, folder: str):
        self._config, self._train, self._folder = config, train, folder
        meta = load_last(config.before[0]).meta
        self._fields = {name: meta[name] for name in ("id_field", "text_field") if name in meta}
        self.seeds = list(config.seed_numbers or range(len(config.before)))

    def paths(self, position: int) -> dict[str, str]:
        """By arm, of the seed at this position; a missing one is trained like the seed's `before`."""
        config = self._config
        before = config.before[0 if config.seeds else position]
        if config.seeds and _own_seed(before) != self.seeds[position]:
            before = self._trained("before", position, before, seed=self.seeds[position])
        found = {"before": before}
        for arm in ("after", "control"):
            given = getattr(config, arm)
            found[arm] = given[position] if given else self._trained(arm, position, before)
        return found

    def _trained(self, arm: str, position: int, like: str, **seed: int) -> str:
        several = f"-{self.seeds[position]}" if len(self.seeds) > 1 else ""
        path = join(self._folder, f"{arm}-checkpoints{several}")
        if not os.path.exists(path):
            corpus, quiet = getattr(self._config, f"{arm}_corpus"), self._config.quiet
            self._train(TrainConfig(corpus=corpus, output=path, like=like, quiet=quiet, **self._fields, **seed))
        return path


def _plan(config: VerifyConfig) -> dict[str, Any]:
    """The options, and the files of each corpus: what a job that resumes must find unchanged."""
    plan = asdict(config)
    for name in ("before_corpus", "after_corpus", "control_corpus", "held_out"):
        if plan[name]:
            plan[name] = [plan[name], list_corpus(plan[name])]
    del plan["quiet"]
    return plan


def run(config: VerifyConfig, train: Train) -> Manifest:
    """Writes every answer and the summary. `train` is the verb, for the arms that are given as corpora."""
    if config.predict:
        return predict.run(config)
    questions = read_questions(config)
    require_held_out(config)
    require_askable(config, (*config.control, *config.after, *config.before), questions)
    if config.seeds:
        _require_its_corpus(config)
    with OutputFolder(config.output, _plan(config)) as output:
        arms, replies = _Arms(config, train, output.path), []
        for position, seed in enumerate(arms.seeds):
            paths, label = arms.paths(position), f" (seed {seed})" if len(arms.seeds) > 1 else ""
            by_arm: dict[str, Reply] = {
                arm: ask(load_last(paths[arm]), config, questions, f"{arm}{label}") for arm in ARMS
            }
            replies.append(by_arm)
        return write(output, config, "verification", measured(replies, questions), arms.seeds, {"seeds": arms.seeds})
