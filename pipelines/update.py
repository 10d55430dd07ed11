"""`index --update`: the new files of a corpus join the index of the old ones, in its next generation.

new corpus files -> the stages of `index` on them alone -> statistics and curvature merged -> gradients of pseudo-facts
                 -> manifest.json replaced -> what it no longer lists is deleted

What comes out is what a full build over the old files and then the new ones would give, shard by shard, but for the
approximate dense index, which keeps its training, and for an estimate of the optimizer's state, which stays that of the
documents that the index began with.
"""

import copy
import logging
from dataclasses import MISSING, asdict, fields
from typing import Any

from attribution.fusion import fusion_of
from pipelines import progress, resources
from pipelines.config import IndexConfig
from pipelines.corpus import CorpusFormat, list_corpus
from pipelines.gradient import extractor_of, recipe_of
from pipelines.index import IDS, approximations, summarize, work_all
from pipelines.pseudo import query_curvature
from pipelines.scan import scan
from pipelines.stage import library_versions, log_runner
from pipelines.storage import NextGeneration, absolute, read_manifest, replace_files, settle
from schemas.errors import ConfigError
from schemas.manifest import Manifest, require_match

log = logging.getLogger(__name__)
OWN = ("corpus", "output", "update", "dry_run", "quiet")  # options of the job; all others are the index's


def settings_of(manifest: Manifest, **own: Any) -> IndexConfig:
    """The options that an index was made with, and a job's own."""
    recorded = {name: tuple(v) if isinstance(v, list) else v for name, v in manifest.config.items()}
    return IndexConfig(**recorded | {"dry_run": False} | own)


def _refuse_other_settings(config: IndexConfig, manifest: Manifest, given: set[str] | None) -> None:
    """`given` names the options on the command line; None: those that are not at their defaults."""
    recorded = settings_of(manifest)
    for f in fields(config):
        found, expected = getattr(config, f.name), getattr(recorded, f.name)
        is_given = f.name in given if given is not None else f.default is MISSING or found != f.default
        if f.name not in OWN and is_given and found != expected:
            raise ConfigError(
                f"--{f.name}: expected {expected!r}, as the index at {config.output} was made, found {found!r}; leave "
                "it out, or index all files anew"
            )


def new_files(config: IndexConfig, recorded: dict[str, Any]) -> list[tuple[str, int]]:
    """The corpus' files that the index does not have. Raises ConfigError where one that it has is another size."""
    known, found = dict(recorded["files"]), []
    for path, size in list_corpus(config.corpus):
        if path not in known:
            found.append((path, size))
        elif known[path] != size:
            raise ConfigError(
                f"{path}: expected the {known[path]} bytes that {config.output} was made from, found {size}; put new "
                "documents into a new file, take removed ones out with `proponent purge`, or index all files anew"
            )
    return found


def check_models(folder: str, details: dict[str, Any]) -> None:
    """Raises ArtifactMismatch where a model is not the one that the index was made with."""
    recorded = details["bm25"]
    if recorded["tokenizer"] != "word":
        found = resources.tokenizer_hash(resources.subword_tokenizer(recorded["tokenizer"]))
        remedy = "index again with this tokenizer, or put the old one back"
        require_match(f"BM25 tokenizer at {recorded['tokenizer']}", recorded["tokenizer_sha256"], found, remedy)
    if details.get("dense", {}).get("encoder"):
        path = details["dense"]["encoder"]
        resources.require_still_there("encoder", path)
        encoder = resources.encoder(path)
        resources.require_same_model("encoder", path, details["dense"], encoder.model, encoder.tokenizer)
    for row in details.get("gradient", {}).get("checkpoints", []):
        resources.require_still_there("checkpoint", row["path"])
        extractor, recipe = extractor_of(row, recipe_of(details), folder), recipe_of(details)
        source = extractor.checkpoint
        resources.require_same_model("checkpoint", source.path, row, source.model, source.tokenizer)
        resources.require_same_loss(source.path, row["probe_loss"], extractor.probe_loss(), recipe.dtype)


def run(config: IndexConfig, beam_args: tuple[str, ...] = (), given: set[str] | None = None) -> Manifest:
    """Adds the corpus' new files to the index at `config.output`; without any it stays as it is.

    Raises ConfigError, ArtifactMismatch or FailureBudgetExceeded (over the new records); the index is then as before.
    """
    parent, _ = settle(config.output)
    old = read_manifest(config.output, "index")
    _refuse_other_settings(config, old, given)
    files = new_files(config, old.details["corpus"])
    if not files:
        progress.summary("index --update", {"folder": config.output, "new files": 0})
        return old
    own = {"corpus": config.corpus, "output": config.output, "update": True, "quiet": config.quiet}
    tokenizer = old.details["bm25"]["tokenizer"]  # its whole path, where it is a folder
    settings, folder = settings_of(old, **own, tokenizer=tokenizer), absolute(config.output)
    generation, base = old.details["generation"] + 1, old.details["corpus"]["base"]
    format = CorpusFormat(
        settings.id_field, settings.text_field, settings.embedding_field, old.details["corpus"]["dim"]
    )
    check_models(folder, old.details)
    log_runner(beam_args)
    plan = asdict(settings) | {"verb": "index --update", "files": files, "parent": parent}
    plan.pop("quiet")
    with NextGeneration(config.output, plan) as output:
        details = next_details(old, generation)
        known, first = old.details["corpus"]["files"], len(old.details["corpus"]["files"])
        scanned = scan(
            files, format, base, output, settings.max_dead_fraction, beam_args, IDS, old.files, first, generation
        )
        written, kept = work_all(output, scanned, details, settings, format, base, beam_args, generation)
        asked = query_curvature(output, details, settings, beam_args)
        details["fusion"] = fusion_of(details["signals"])
        details["approximations"] = approximations(details)
        details["corpus"] = old.details["corpus"] | {"files": [*known, *(list(info) for info in files)]}
        added = {"in": scanned.num_in, "kept": kept, "removed": 0, "dead": scanned.num_dead}
        details["history"] = [*details["history"], {"verb": "index --update", "files": len(files), "counts": added}]
        manifest = Manifest(
            kind="index",
            config=old.config,
            versions=library_versions(),
            counts={name: old.counts[name] + count for name, count in added.items()},
            details=details,
            files=replace_files(old.files, scanned.files + written + asked),
        )
        output.finish(manifest)
    summarize("index --update", config.output, manifest)
    return manifest


def next_details(old: Manifest, generation: int) -> dict[str, Any]:
    """The details of an index's next generation to begin with: a copy, without what is made last."""
    details = copy.deepcopy(old.details) | {"generation": generation}
    details.pop("fusion")  # search takes an index without it for one that is being made
    return details
