"""`train`: a corpus becomes checkpoints of a small causal language model.

corpus files -> (tokenizer) -> steps in an order with holes -> step-000123/, ... , manifest.json
"""

import logging
from dataclasses import asdict, replace
from pathlib import Path

from attribution.checkpoint import load_tokenizer, read_meta
from attribution.training import Recipe, train, train_tokenizer
from pipelines import progress, resources
from pipelines.config import TrainConfig
from pipelines.corpus import CorpusFormat, base_folder, list_corpus, read_records
from pipelines.stage import library_versions
from pipelines.storage import OutputFolder, is_local, publish
from schemas.errors import ConfigError
from schemas.manifest import Manifest
from schemas.records import DeadLetter

log = logging.getLogger(__name__)


def read_examples(pattern: str, format: CorpusFormat) -> list[tuple[str, str]]:
    """(id, text) of a corpus, in memory: a small model's corpus is small. Raises ConfigError for a bad record."""
    examples: dict[str, str] = {}
    for path, _ in list_corpus(pattern):
        for record in read_records(path, format, base_folder(pattern)):
            if isinstance(record, DeadLetter):
                raise ConfigError(f"{record.file}, row {record.row}: {record.reason}; mend the record")
            if record.id in examples:
                raise ConfigError(f"{path}, row {record.row}: the id {record.id!r} is used twice; ids must be unique")
            examples[record.id] = record.text
    if not examples:
        raise ConfigError(f"{pattern}: expected records to train on, found none")
    return list(examples.items())


def _recipe_of(like: str) -> Recipe:
    meta = read_meta(like)
    if "recipe" not in meta:
        raise ConfigError(f"--like {like}: expected a checkpoint that `proponent train` wrote, found no recipe in it")
    return Recipe(**meta["recipe"])


def run(config: TrainConfig) -> Manifest:
    """Trains and writes the checkpoints to `config.output`."""
    examples = read_examples(config.corpus, CorpusFormat(config.id_field, config.text_field))
    if not is_local(config.output):
        raise ConfigError(f"--output: training writes to a local folder, found {config.output}; copy it afterwards")
    like = resources.resolve_checkpoints((config.like,))[-1] if config.like else ""
    recipe = _recipe_of(like) if like else None
    if recipe and config.seed is not None:
        recipe = replace(recipe, seed=config.seed)
    if like:
        tokenizer = load_tokenizer(like)
    else:
        tokenizer = train_tokenizer((text for _, text in examples), config.vocab_size, config.context)
    context = recipe.context if recipe else config.context
    encoded = [(i, [*tokenizer(text, verbose=False).input_ids, tokenizer.eos_token_id]) for i, text in examples]
    cut = sum(len(tokens) > context for _, tokens in encoded)
    encoded = [(i, tokens[:context]) for i, tokens in encoded]
    tokens_an_epoch = sum(len(tokens) - 1 for _, tokens in encoded)
    if recipe is None:
        batches = max(1, round(len(examples) / config.batch_examples))
        shape = {name: getattr(config, name) for name in ("layers", "width", "heads", "context", "epochs")}
        recipe = Recipe(
            **shape,
            seed=config.seed or 0,
            batches_per_epoch=batches,
            tokens_per_batch=tokens_an_epoch / batches,
            learning_rate=config.learning_rate,
            num_checkpoints=config.num_checkpoints,
        )
    plan = asdict(config) | {"recipe": asdict(recipe), "examples": len(examples)}
    plan.pop("quiet")
    fields, last_loss = {"id_field": config.id_field, "text_field": config.text_field}, 0.0
    with OutputFolder(config.output, plan) as output:
        with progress.bar("train", recipe.steps, "steps") as advance:

            def step_done(steps: int, tokens: int, loss: float) -> None:
                nonlocal last_loss
                last_loss = loss or last_loss
                advance(steps, tokens)

            folders = train(encoded, recipe, tokenizer, Path(output.path), step_done, fields)
        files = [
            publish(file, output.path, str(file.relative_to(output.path)), 1)
            for folder in folders
            for file in sorted(folder.iterdir())
        ]
        manifest = Manifest(
            kind="checkpoints",
            config=asdict(config),
            versions=library_versions(),
            counts={"in": len(examples), "kept": len(examples), "removed": 0, "dead": 0},
            details={
                "checkpoints": [folder.name for folder in folders],
                "recipe": asdict(recipe),
                "like": like,
                "examples_cut_at_context": cut,
                "tokens_an_epoch": tokens_an_epoch,
                "last_loss_per_token": last_loss,
            },
            files=files,
        )
        output.finish(manifest)
    progress.summary(
        "train",
        {"folder": config.output, "examples": len(examples), "cut at the context": cut, "steps": recipe.steps}
        | {"loss per token": f"{last_loss:.3f}", "checkpoints": ", ".join(folder.name for folder in folders)},
    )
    return manifest
