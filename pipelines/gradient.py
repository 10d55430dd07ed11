"""The gradient part of `index`: checkpoints described and checked, features of every shard, curvature.

checkpoints -> describe                                     what the manifest keeps; refuses what cannot be tracked
examples/ -> moments (one sample, where no optimizer state was kept)   gradients/<checkpoint>/moments.safetensors
          -> features (a shard: a file of examples/), with its second moments -> merged: curvature.safetensors
"""

import logging
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from attribution.checkpoint import model_hash, tokenizer_hash
from attribution.curvature import SecondMoment
from attribution.feature_rows import RowReader, RowWriter, bytes_per_row
from attribution.kfac import estimate_roots, save_roots
from attribution.preconditioner import estimate_moments, save_moments
from attribution.sequences import Sequence, encode_example
from attribution.tracin import checkpoint_weights
from pipelines import progress, resources
from pipelines.config import IndexConfig
from pipelines.resources import KFAC, GradientRecipe
from pipelines.scan import letters_to_jsonl
from pipelines.stage import Done, Shard, ShardRecord, all_files, run_stage, total
from pipelines.storage import STAGES, OutputFolder, join, localize, verified, with_generation
from schemas.errors import ConfigError, FailureBudgetExceeded
from schemas.manifest import FileInfo, require_match
from schemas.records import DeadLetter

log = logging.getLogger(__name__)
CURVATURE_SAMPLE = 1024  # passages that stand for the corpus where no features are stored
MOMENT_SAMPLE = 256  # passages that stand in for the optimizer's averages: Adam's beta2 of 0.99 sees about 100 steps
FACTOR_SAMPLE = 1024  # passages for K-FAC: some 25,000 tokens of sentences, for matrices of some 1,000 numbers a side
ESTIMATED = ("estimate", KFAC)  # corrections that are made from a sample, and kept with the features
COUNTS = ("dead", "cut", "none")  # of passages: refused, cut at the context, without a loss
NO_TOKENS = Sequence([], [])


def recipe_of(details: dict[str, Any]) -> GradientRecipe:
    """How the index's features were made, as its manifest keeps it."""
    return GradientRecipe(**details["gradient"]["recipe"])


def _check_coverage(path: str, extractor: Any, min_coverage: float) -> None:
    found = extractor.coverage
    if found.share < min_coverage:
        raise ConfigError(
            f"model {path}: expected layers that hold {min_coverage:.0%} of its trainable parameters, found "
            f"{found.share:.1%}; untracked are {found.largest_untracked()}; lower --min_coverage to go on without them"
        )


def describe_checkpoints(config: IndexConfig, recipe: GradientRecipe) -> list[dict[str, Any]]:
    """What the manifest keeps of each checkpoint. Raises ConfigError where one cannot be used."""
    described = []
    for number, path in enumerate(resources.resolve_checkpoints(config.checkpoints)):
        extractor, state = resources.extractor(path, recipe)
        source = extractor.checkpoint
        _check_coverage(path, extractor, config.min_coverage)
        if config.max_tokens + 2 > source.max_tokens:
            raise ConfigError(
                f"--max_tokens: expected at most {source.max_tokens - 2}, as {path} takes {source.max_tokens} tokens "
                f"with the special ones, found {config.max_tokens}"
            )
        correction = state or {"auto": "estimate"}.get(recipe.correction, recipe.correction)
        described.append(
            {
                "path": path,
                "name": f"{number:02d}-{Path(path).name.replace('.gguf', '')}",
                "step": source.step,
                "max_tokens": source.max_tokens,
                "kind": source.kind,
                "adds_eos": source.adds_eos,
                "learning_rate": source.learning_rate,
                "model_sha256": model_hash(source.model),
                "tokenizer_sha256": tokenizer_hash(source.tokenizer),
                "probe_loss": extractor.probe_loss(),
                "optimizer_correction": correction,
                "uses_attention_mask": extractor.uses_mask,
                "coverage": extractor.coverage.share,
                "tracked_parameters": extractor.coverage.tracked,
                "trainable_parameters": extractor.coverage.trainable,
                "left_out_parameters": sum(extractor.coverage.left_out.values()),
                "untracked": dict(sorted(extractor.coverage.untracked.items(), key=lambda i: (-i[1], i[0]))[:20]),
                "layers": [layer.name for layer in extractor.layers],
                "projection": extractor.projection.to_json(),
                "widths": extractor.widths,
                "dim": extractor.dim,
                "generation": 1,
                "moments_of": 1,
                "bytes_per_example": 0
                if config.feature_dtype == "none"
                else bytes_per_row(extractor.widths, config.feature_dtype),
            }
        )
    weights, equal = checkpoint_weights([d["learning_rate"] for d in described])
    for row, weight in zip(described, weights, strict=True):
        row |= {"weight": weight, "weight_from": "equal" if equal else "learning_rate"}
    return described


def moments_file(row: dict[str, Any]) -> str:
    """The estimate of a checkpoint's optimizer state, of the generation of the index in which it was made."""
    return f"gradients/{row['name']}/{with_generation('moments', row['moments_of'])}.safetensors"


def extractor_of(row: dict[str, Any], recipe: GradientRecipe, index: str) -> Any:
    """The extractor of one of the index's checkpoints, with the optimizer's correction that it was indexed with.

    Raises ArtifactMismatch where its projection is not the one of the features in the index.
    """
    estimated = verified(index, moments_file(row)) if row["optimizer_correction"] in ESTIMATED else ""
    extractor = resources.extractor(row["path"], replace(recipe, projection_dim=row["projection"]["dim"]), estimated)[0]
    what, found = f"projection of the gradients of {row['name']}", extractor.projection.to_json()
    require_match(what, row["projection"], found, "it is of another version of proponent; index again")
    return extractor


def _of_sample(extractor: Any, sample: list[tuple[str, str]]) -> list[Sequence]:
    found = []
    for text, parts in sample:
        try:
            found.append(encode_example(extractor.checkpoint, text, parts))
        except ValueError:
            continue  # refused with its reason where its features are made
    return found


def sample_size(rows: list[dict[str, Any]]) -> int:
    """How many passages of the sample an estimate for these checkpoints takes."""
    return FACTOR_SAMPLE if any(row["optimizer_correction"] == KFAC for row in rows) else MOMENT_SAMPLE


def _moments_shard(spec: dict[str, Any], folder: str, out: Path, row: dict[str, Any], recipe: GradientRecipe) -> Done:
    """Second moments of a seeded sample's gradients: K-FAC's, or in place of an optimizer state that was not kept."""
    kfac = recipe.correction == KFAC
    extractor = resources.extractor(row["path"], recipe if kfac else replace(recipe, correction="none"))[0]
    sequences = _of_sample(extractor, spec["sample"])
    (out / moments_file(row)).parent.mkdir(parents=True)
    with progress.bar(f"second moments, {row['name']}", len(sequences), "passages") as advance:
        if kfac:
            save_roots(estimate_roots(extractor.backward, sequences, recipe.batch_tokens), out / moments_file(row))
        else:
            save_moments(estimate_moments(extractor.backward, sequences, recipe.batch_tokens), out / moments_file(row))
        advance(len(sequences))
    return Done({"in": len(sequences)}, {moments_file(row): len(sequences)})


def encode_passages(extractor: Any, table: Any, row: dict[str, Any]) -> tuple[list[Sequence], list[DeadLetter]]:
    """The sequences of a shard's passages, an empty one and a dead letter for those that the model cannot take."""
    sequences, letters = [], []
    for passage in table.to_pylist():
        try:
            sequences.append(encode_example(extractor.checkpoint, passage["text"], passage["parts"]))
        except ValueError as error:
            sequences.append(NO_TOKENS)
            letters.append(_letter(passage, row, str(error)))
    return sequences, letters


def _letter(passage: dict[str, Any], row: dict[str, Any], reason: str) -> DeadLetter:
    step = f"gradient-{row['name']}"
    return DeadLetter(passage["file"], passage["row"], step, f"example {passage['example_id']!r}: {reason}")


def is_mixed(details: dict[str, Any]) -> bool:
    """Whether the index keeps second moments of features, to whiten them when it is asked."""
    return details["gradient"]["curvature"]["kind"] == "mixed"


def feature_shard(
    spec: dict[str, Any],
    folder: str,
    out: Path,
    row: dict[str, Any],
    recipe: GradientRecipe,
    feature_dtype: str,
    mixed: bool,
) -> Done:
    """Projected gradients of one shard for one checkpoint, with their norms, and where asked their second moments."""
    extractor = extractor_of(row, recipe, folder)
    columns = ["text", "parts", "file", "row", "example_id"]
    table = pq.read_table(verified(folder, f"examples/{spec['name']}.parquet"), columns=columns)
    sequences, letters = encode_passages(extractor, table, row)
    place, moment = f"gradients/{row['name']}", SecondMoment.zero(extractor.widths) if mixed else None
    (out / place).mkdir(parents=True)
    with (
        progress.bar(f"gradient, {row['name']}, shard {spec['name']}", spec["rows"], "passages") as advance,
        RowWriter(out / place, spec["name"], spec["rows"], extractor.widths, feature_dtype) as writer,
    ):
        for positions, found in extractor.batches(sequences):
            finite = np.isfinite(found).all(axis=1)
            for position in np.array(positions)[~finite].tolist():
                passage = table.slice(position, 1).to_pylist()[0]
                letters.append(_letter(passage, row, "a value of its gradient is not finite"))
            kept = found[finite]
            writer.write(np.array(positions)[finite].tolist(), kept)
            if moment:
                moment.add(kept[(kept != 0).any(axis=1)])
            advance(len(positions), sum(sequences[i].size for i in positions))
    written = {f"{place}/{file.name}": spec["rows"] for file in sorted((out / place).iterdir())}
    if moment:
        curvature = f"{STAGES}/curvature/{row['name']}/{spec['name']}.safetensors"
        (out / curvature).parent.mkdir(parents=True)
        moment.save(out / curvature, exactly=True)
        written[curvature] = moment.count
    if letters:
        (out / "dead_letters").mkdir()
        name = f"dead_letters/gradient-{row['name']}-{spec['name']}.jsonl"
        (out / name).write_bytes(letters_to_jsonl(letters))
        written[name] = len(letters)
    counts = {"in": spec["rows"], "dead": len(letters), "cut": sum(sequence.cut > 0 for sequence in sequences)}
    counts["none"] = sum(not sequence.has_loss for sequence in sequences)
    return Done(counts, written, {"first": [letter.reason for letter in letters[:5]]})


def _curvature_shard(spec: dict[str, Any], folder: str, out: Path, row: dict[str, Any], recipe: GradientRecipe) -> Done:
    """The curvature of a seeded sample, for an index that stores no features."""
    extractor, moment = extractor_of(row, recipe, folder), SecondMoment.zero(row["widths"])
    sequences = _of_sample(extractor, spec["sample"])
    with progress.bar(f"curvature, {row['name']}", len(sequences), "passages") as advance:
        for positions, found in extractor.batches(sequences):
            moment.add(found[np.isfinite(found).all(axis=1) & (found != 0).any(axis=1)])
            advance(len(positions), sum(sequences[i].size for i in positions))
    name = curvature_file(row, "corpus")
    (out / name).parent.mkdir(parents=True)
    moment.save(out / name)
    return Done({"in": len(sequences)}, {name: moment.count})


def _check_budget(records: list[ShardRecord], row: dict[str, Any], max_dead_fraction: float) -> None:
    dead, count = total(records, "dead"), total(records, "in")
    if dead > max_dead_fraction * count:
        shown = "\n  ".join([line for record in records for line in record.facts["first"]][:5])
        raise FailureBudgetExceeded(
            f"checkpoint {row['name']}: {dead} of {count} passages have no usable gradient, at most "
            f"{max_dead_fraction:.2%} may be so (--max_dead_fraction); mend them or raise the budget:\n  {shown}"
        )


def open_rows(index: str, row: dict[str, Any], shard: str) -> RowReader:
    """A shard's features for one checkpoint."""
    return RowReader(f"gradients/{row['name']}/{shard}", partial(verified, index))


def curvature_file(row: dict[str, Any], of: str) -> str:
    """`of` is `corpus`, or `queries`: the pseudo-facts that stand in where few facts are traced."""
    return f"gradients/{row['name']}/{with_generation(f'curvature-{of}', row['generation'])}.safetensors"


def load_curvature(index: str, row: dict[str, Any], of: str) -> SecondMoment:
    return SecondMoment.load(Path(verified(index, curvature_file(row, of))))


def write_moment(output: OutputFolder, name: str, moment: SecondMoment, exactly: bool = False) -> FileInfo:
    """Writes second moments as a file of the folder."""
    with tempfile.TemporaryDirectory() as folder:
        moment.save(Path(folder) / "moment", exactly)
        return output.write(name, (Path(folder) / "moment").read_bytes(), moment.count)


def make_features(
    specs: list[Shard],
    sample: list[tuple[str, str]],
    details: dict[str, Any],
    config: IndexConfig,
    output: OutputFolder,
    beam_args: tuple[str, ...],
    generation: int = 1,
    anew: bool = False,
) -> list[FileInfo]:
    """Runs the stages of every checkpoint, one after another; counts go into its row of `details`.

    In a later generation of the index what `specs` add is merged with what it has, unless all is made `anew`.
    """
    recipe, files, mixed = recipe_of(details), [], is_mixed(details)
    for row in details["gradient"]["checkpoints"]:
        merged = SecondMoment.zero(row["widths"]) if mixed else None
        if mixed and generation > 1 and not anew:
            merged = load_curvature(output.path, row, "corpus")
        row["generation"] = generation
        if anew:
            row |= {"moments_of": generation} | dict.fromkeys(COUNTS, 0)
        if row["optimizer_correction"] in ESTIMATED and (anew or generation == 1):
            work = partial(_moments_shard, row=row, recipe=recipe)
            shard = Shard("sample", {"sample": sample[: sample_size([row])]})
            files += all_files(run_stage(f"moments-{row['name']}", [shard], work, output, beam_args))
        if config.feature_dtype == "none":
            if mixed:
                work = partial(_curvature_shard, row=row, recipe=recipe)
                shard = Shard("sample", {"sample": sample})
                files += all_files(run_stage(f"curvature-{row['name']}", [shard], work, output, beam_args))
            row |= dict.fromkeys(COUNTS, 0)
            continue
        work = partial(feature_shard, row=row, recipe=recipe, feature_dtype=config.feature_dtype, mixed=mixed)
        records = run_stage(f"gradient-{row['name']}", specs, work, output, beam_args)
        _check_budget(records, row, config.max_dead_fraction)
        files += all_files(records)
        if mixed:
            for shard in specs:
                place = join(output.path, STAGES, "curvature", row["name"], f"{shard.name}.safetensors")
                merged = merged.merge(SecondMoment.load(Path(localize(place))))
            files.append(write_moment(output, curvature_file(row, "corpus"), merged, exactly=True))
        row |= {name: row.get(name, 0) + total(records, name) for name in COUNTS}
    return files


def _curvature_of_shard(spec: dict[str, Any], folder: str, out: Path, row: dict[str, Any]) -> Done:
    """The second moments of a shard's stored features."""
    moment = SecondMoment.zero(row["widths"])
    for _, found in open_rows(folder, row, spec["name"]).blocks():
        moment.add(found[(found != 0).any(axis=1)])
    name = f"{STAGES}/curvature/{row['name']}/{spec['name']}.safetensors"
    (out / name).parent.mkdir(parents=True)
    moment.save(out / name, exactly=True)
    return Done({"in": spec["rows"]}, {name: moment.count})


def curvature_of_rows(
    specs: list[Shard],
    sample: list[tuple[str, str]],
    details: dict[str, Any],
    output: OutputFolder,
    beam_args: tuple[str, ...],
    generation: int,
) -> list[FileInfo]:
    """The corpus' curvature made anew: of the stored features, or of the sample where none are stored."""
    recipe, files = recipe_of(details), []
    for row in details["gradient"]["checkpoints"]:
        row["generation"], stage = generation, f"curvature-{row['name']}"
        if not is_mixed(details):
            continue
        if details["gradient"]["feature_dtype"] == "none":
            work = partial(_curvature_shard, row=row, recipe=recipe)
            files += all_files(run_stage(stage, [Shard("sample", {"sample": sample})], work, output, beam_args))
            continue
        run_stage(stage, specs, partial(_curvature_of_shard, row=row), output, beam_args)
        merged = SecondMoment.zero(row["widths"])
        for shard in specs:
            place = join(output.path, STAGES, "curvature", row["name"], f"{shard.name}.safetensors")
            merged = merged.merge(SecondMoment.load(Path(localize(place))))
        files.append(write_moment(output, curvature_file(row, "corpus"), merged, exactly=True))
    return files
