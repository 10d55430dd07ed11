"""`purge`: approved removals leave an index, with everything that was made from them, and a certificate says so.

index + removals -> find (a shard: a shard of the index): its rows of them
                 -> purge, bm25 (a shard with such rows)    the shard anew, under the name of the next generation
                 -> statistics, curvature, ids' hashes, dead letters, approximate dense index, gradients of pseudo-facts
                 -> manifest.json replaced -> the old files deleted -> the certificate

A redaction takes the whole document out of an index: vectors and features are made of all its text, and no part of them
is that of a span. The certificate names its action; index the cleaned corpus to have what is left of it.

A shard keeps its offset and has fewer rows, so that no other shard changes. Only where an estimate of the optimizer's
state was made from a removed text all features depend on it: then every shard is written anew.
"""

import copy
import datetime
import hashlib
import json
import logging
import re
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from attribution import dense
from attribution.feature_rows import copy_rows
from attribution.fusion import fusion_of
from pipelines import progress
from pipelines.approximate import approximate_index, npy_bytes
from pipelines.config import PurgeConfig
from pipelines.decisions import read_approved
from pipelines.gradient import ESTIMATED, curvature_of_rows, make_features, sample_size
from pipelines.index import (
    approximations,
    bm25_shard,
    gradient_sample,
    merge_statistics,
    write_sample,
    write_statistics,
)
from pipelines.pseudo import query_curvature, sample_passages, sample_places
from pipelines.stage import Done, Shard, all_files, library_versions, log_runner, run_stage
from pipelines.storage import (
    CERTIFICATE,
    GENERATION,
    STAGES,
    NextGeneration,
    absolute,
    join,
    read_bytes,
    read_manifest,
    settle,
    verified,
    with_generation,
    write_bytes,
)
from pipelines.update import check_models, next_details, settings_of
from schemas.errors import ArtifactMismatch, ConfigError
from schemas.jsonl import jsonl_bytes
from schemas.manifest import FileInfo, Manifest
from schemas.records import Removal
from schemas.removals import parse_removals, removals_to_jsonl
from schemas.tables import parquet_bytes

log = logging.getLogger(__name__)
REMOVALS = f"{STAGES}/removals.jsonl"
CERTIFIED = ("example_id", "sha256", "action", "reason", "decided_by", "decided_at", "fact_ids")  # of each removal
TOLD = 40  # characters of a removed text that a dead letter must not hold


@lru_cache(maxsize=2)
def _removals(folder: str) -> dict[str, str]:
    path = join(folder, REMOVALS)
    return {removal.example_id: removal.sha256 for removal in parse_removals(read_bytes(path), path)}


def find_shard(spec: dict[str, Any], folder: str, out: Path) -> Done:
    """Which rows of one shard are of a removed example, and with which content."""
    removals = _removals(folder)
    columns = ["example_id", "sha256", "text"]
    table = pq.read_table(verified(folder, f"examples/{spec['name']}.parquet"), columns=columns)
    rows = [(row, found) for row, found in enumerate(table["example_id"].to_pylist()) if found in removals]
    table = table.take(np.array([row for row, _ in rows], np.int64))
    hashes = table["sha256"].to_pylist()
    found = {example_id: sha for (_, example_id), sha in zip(rows, hashes, strict=True)}
    texts = [text[:TOLD] for text in table["text"].to_pylist()]
    return Done({"in": spec["rows"]}, {}, {"rows": [row for row, _ in rows], "found": found, "texts": texts})


def purge_shard(spec: dict[str, Any], folder: str, out: Path, details: dict[str, Any], copied: bool) -> Done:
    """One shard without its removed rows: passages, vectors and, where they are `copied`, features as they were."""
    kept = np.setdiff1d(np.arange(spec["rows"] + len(spec["removed"])), spec["removed"])
    table = pq.read_table(verified(folder, f"examples/{spec['old']}.parquet"))
    (out / "examples").mkdir()
    (out / f"examples/{spec['name']}.parquet").write_bytes(parquet_bytes(table.take(kept)))
    written = [f"examples/{spec['name']}.parquet"]
    if "dense" in details:
        vectors = dense.ShardVectors(verified(folder, f"dense/{spec['old']}.faiss")).vectors[kept]
        ids = np.arange(spec["offset"], spec["offset"] + spec["rows"])
        (out / "dense").mkdir()
        (out / f"dense/{spec['name']}.faiss").write_bytes(dense.build_index(vectors, ids))
        written.append(f"dense/{spec['name']}.faiss")
    for row in details["gradient"]["checkpoints"] if copied else ():
        place = f"gradients/{row['name']}"
        (out / place).mkdir(parents=True)
        int8 = details["gradient"]["feature_dtype"] == "int8"
        for part in ("", ".norms", ".scales", ".widths") if int8 else ("", ".norms"):
            source, target = verified(folder, f"{place}/{spec['old']}{part}.npy"), f"{place}/{spec['name']}{part}.npy"
            if part == ".widths":
                (out / target).write_bytes(read_bytes(source))
            else:
                copy_rows(source, out / target, kept)
            written.append(target)
    return Done({"in": len(table), "removed": len(spec["removed"])}, dict.fromkeys(written, spec["rows"]))


def read_removals(path: str) -> list[Removal]:
    """The approved removals, redactions among them, without the texts. Raises ConfigError where there are none."""
    return [replace(removal, evidence=(), text="") for removal in read_approved(path)]


def _check_found(removals: list[Removal], found: dict[str, str], config: PurgeConfig) -> None:
    changed = [r.example_id for r in removals if found.get(r.example_id, r.sha256) != r.sha256]
    if changed:
        raise ArtifactMismatch(
            f"{config.removals}: expected every approved removal as it was judged, found {len(changed)} that have "
            f"another text in {config.index} ({', '.join(changed[:5])}); is it the index that was traced? Trace and "
            "flag again"
        )
    if not found:
        raise ConfigError(
            f"{config.removals}: expected approved removals that the index at {config.index} holds, found none of "
            f"{len(removals)} in it; was it purged of them before, or is it another index?"
        )


def _without_hashes(
    old: list[FileInfo], ids: list[str], output: NextGeneration, generation: int
) -> tuple[set[str], list[FileInfo]]:
    """(files that held the hash of a removed id, those that stand in their place)."""
    removed = {hashlib.blake2b(i.encode(), digest_size=16).digest() for i in ids}
    gone: set[str] = set()
    files = []
    for info in old:
        if not info.name.endswith(".hashes.npy"):
            continue
        stem = info.name.removesuffix(".hashes.npy")
        halves = np.load(verified(output.path, info.name))
        kept = np.array([h.tobytes() not in removed for h in np.ascontiguousarray(halves.T)], dtype=bool)
        if not kept.all():
            rows = np.load(verified(output.path, f"{stem}.rows.npy"))
            gone |= {info.name, f"{stem}.rows.npy"}
            for part, array in (("hashes", np.ascontiguousarray(halves[:, kept])), ("rows", rows[kept])):
                name = f"{with_generation(stem, generation)}.{part}.npy"
                files += [output.write(name, npy_bytes(array), int(kept.sum()))] if kept.any() else []
    return gone, files


def _without_letters(
    old: list[FileInfo],
    ids: list[str],
    texts: list[str],
    details: dict[str, Any],
    output: NextGeneration,
    generation: int,
) -> tuple[set[str], list[FileInfo]]:
    """(files of dead letters that told of a removed document, those that stand in their place).

    A letter about a passage's gradient goes. One about a record that could not be read stays, as it is counted, but
    without what it told of the record.
    """
    named = re.compile("|".join(rf"(?<!\w){re.escape(i)}(?!\w)" for i in ids))
    told = [json.dumps(text, ensure_ascii=ascii_only)[1:-1] for text in texts for ascii_only in (False, True)]
    gone: set[str] = set()
    files = []
    for info in old:
        if not info.name.startswith("dead_letters/"):
            continue
        letters = [json.loads(line) for line in read_bytes(verified(output.path, info.name)).splitlines()]
        kept = []
        for letter in letters:
            words = f"{letter['reason']}\n{letter['record']}"
            hit = bool(named.search(words)) or any(text in words for text in [*texts, *told])
            if hit and letter["step"] == "read":
                kept.append(letter | {"reason": "purged", "record": ""})
            elif not hit:
                kept.append(letter)
        if kept != letters:
            gone.add(info.name)
            data = jsonl_bytes(kept)
            name = f"{with_generation(info.name.removesuffix('.jsonl'), generation)}.jsonl"
            files += [output.write(name, data, len(kept))] if kept else []
            for row in details.get("gradient", {}).get("checkpoints", []):
                if info.name.startswith(f"dead_letters/gradient-{row['name']}-"):
                    row["dead"] -= len(letters) - len(kept)
    return gone, files


def _approximate(
    details: dict[str, Any],
    before: list[dict[str, Any]],
    rows_of: dict[str, list[int]],
    seed: int,
    output: NextGeneration,
    beam_args: tuple[str, ...],
) -> list[FileInfo]:
    """The approximate dense index: trained anew where its sample held a removed vector, else its parts that did."""
    recorded, files, generation = details["dense"]["approximate"], [], details["generation"]
    sample = np.load(verified(output.path, recorded["sample"]))
    moved = sample.copy()
    held = details["bm25"]["num_passages"] < dense.APPROXIMATE_FROM
    for shard in before:
        removed = np.array(rows_of.get(shard["name"], []), dtype=np.int64) + shard["offset"]
        held |= bool(np.isin(sample, removed).any())
        inside = (sample >= shard["offset"]) & (sample < shard["offset"] + shard["rows"])
        moved[inside] -= np.searchsorted(removed, sample[inside])
    if held:
        details["dense"].pop("approximate")
        details["dense"]["search"] = "exact"
        if details["bm25"]["num_passages"] < dense.APPROXIMATE_FROM:
            return []
    else:
        names = {shard["name"] for shard in details["shards"]}
        recorded["parts"] = [part for part in recorded["parts"] if names.issuperset(part["shards"])]
        recorded["sample"] = f"dense/{with_generation('sample', generation)}.npy"
        recorded.pop("neighbours")  # of the sample that they are of, some may be gone
        files = [output.write(recorded["sample"], npy_bytes(moved), len(moved))]
    return files + approximate_index(details, seed, output, beam_args, generation)


def _moments_held(details: dict[str, Any], folder: str, ids: set[str]) -> bool:
    """Whether a sample that the optimizer's state was estimated from held a removed document."""
    for row in details.get("gradient", {}).get("checkpoints", []):
        if row["optimizer_correction"] in ESTIMATED:
            shards = [shard for shard in details["shards"] if shard["since"] <= row["moments_of"]]
            places = sample_places(folder, shards, details["gradient"]["recipe"]["seed"], sample_size([row]))
            if ids & {passage.example_id for passage in sample_passages(folder, places)}:
                return True
    return False


def _lengths(folder: str, shards: list[str]) -> int:
    return sum(int(np.load(verified(folder, f"bm25/{name}/lengths.npy")).sum()) for name in shards)


def _certificate(
    old: Manifest,
    new: Manifest,
    removals: list[Removal],
    found: dict[str, str],
    plan: dict[str, Any],
) -> bytes:
    """What was removed (never its text), where it was, when and by which version; signed with its own sha256."""
    after = {info.name: info for info in new.files}
    versions = {GENERATION.sub("", info.name): info for info in new.files}
    files = []
    for info in old.files:
        if info.name not in after:
            made = versions.get(GENERATION.sub("", info.name))
            row = {"name": info.name, "sha256": info.sha256, "new_name": made and made.name}
            files.append(row | {"new_sha256": made and made.sha256})
    row = {
        "index": plan["index"],
        "generation": new.details["generation"],
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "version": new.versions["proponent"],
        "removed": [{name: getattr(r, name) for name in CERTIFIED} for r in removals if r.example_id in found],
        "not_found": [r.example_id for r in removals if r.example_id not in found],
        "counts": new.details["history"][-1] | {"files": len(files)},
        "files": files,
        "manifest": {"sha256": plan["parent"], "new_sha256": hashlib.sha256(new.to_json()).hexdigest()},
    }
    row["sha256"] = hashlib.sha256(json.dumps(row, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    return json.dumps(row, indent=1, ensure_ascii=False).encode() + b"\n"


def run(config: PurgeConfig, beam_args: tuple[str, ...] = ()) -> Manifest:
    """Rewrites the index at `config.index` without the approved removals and writes the certificate beside it.

    Raises ConfigError or ArtifactMismatch; the index is then as before.
    """
    parent, ended = settle(config.index)
    old, folder = read_manifest(config.index, "index"), absolute(config.index).rstrip("/")
    removals = read_removals(config.removals)
    plan = {"verb": "purge", "index": folder, "removals": [removal.to_row() for removal in removals], "parent": parent}
    plan = json.loads(json.dumps(plan))
    if ended and all(ended.get(name) == plan[name] for name in ("verb", "removals")):
        progress.summary("purge", {"folder": folder, "certificate": ended["certificate"]})
        return old  # it was killed after its commit, and has just been ended
    generation = old.details["generation"] + 1
    plan["certificate"] = absolute(config.certificate or f"{folder}.purged-{generation}.json")
    if plan["certificate"].startswith(f"{folder}/"):
        raise ConfigError(f"--certificate: expected a place outside the index, found {config.certificate}")
    check_models(folder, old.details)
    log_runner(beam_args)
    settings = settings_of(old, output=folder, tokenizer=old.details["bm25"]["tokenizer"])
    with NextGeneration(folder, plan) as output:
        output.write(REMOVALS, removals_to_jsonl(removals), len(removals))
        _removals.cache_clear()
        details, before = next_details(old, generation), old.details["shards"]
        records = run_stage("find", [Shard(s["name"], s) for s in before], find_shard, output, beam_args)
        found = {example_id: sha for record in records for example_id, sha in record.facts["found"].items()}
        _check_found(removals, found, config)
        texts = [text for record in records for text in record.facts["texts"]]
        rows_of = {record.shard: record.facts["rows"] for record in records if record.facts["rows"]}
        count = sum(len(rows) for rows in rows_of.values())
        if count == sum(shard["rows"] for shard in before):
            raise ConfigError(f"{config.removals}: expected an index of something to be left, found all of it removed")

        anew = _moments_held(old.details, folder, set(found))
        specs, details["shards"] = [], []
        for shard in before:
            removed = rows_of.get(shard["name"], [])
            if len(removed) == shard["rows"]:
                continue
            if removed or anew:
                old_name, name = shard["name"], with_generation(shard["name"], generation)
                shard = shard | {"name": name, "rows": shard["rows"] - len(removed)}
                specs.append(Shard(name, shard | {"removed": removed, "old": old_name}))
            details["shards"].append(shard)
        changed = set(rows_of) | {spec.spec["old"] for spec in specs}
        stored = "gradient" in details and details["gradient"]["feature_dtype"] != "none"
        work = partial(purge_shard, details=old.details, copied=stored and not anew)
        files = all_files(run_stage("purge", specs, work, output, beam_args))
        files += all_files(run_stage("bm25", specs, partial(bm25_shard, config=settings), output, beam_args))
        details.pop("sample")  # rows have moved, and what came after the last place of the old one is not known
        files.append(write_sample(output, details, details["shards"], settings, generation))
        length = old.details["bm25"]["total_length"] - _lengths(folder, sorted(changed))
        length += _lengths(folder, [spec.name for spec in specs])
        statistics = merge_statistics(folder, details["shards"], length)
        files.append(write_statistics(statistics, details, output, generation))
        in_shard = re.compile("[/-](" + "|".join(re.escape(name) for name in sorted(changed)) + r")(?=[./])")
        shards = {i.name for i in old.files if in_shard.search(i.name) and not i.name.startswith(("ids/", "dead_"))}
        gone = shards | {old.details["bm25"]["statistics"], old.details["sample"]}

        if "gradient" in details:
            everything = [Shard(shard["name"], shard) for shard in details["shards"]]
            if anew:
                sample = gradient_sample(folder, details, 1)
                files += make_features(everything, sample, details, settings, output, beam_args, generation, anew=True)
            else:
                sample = gradient_sample(folder, details, generation)
                files += curvature_of_rows(everything, sample, details, output, beam_args, generation)
            made = re.compile(r"gradients/.*/(curvature-.*|moments.*)\.safetensors")
            gone |= {i.name for i in old.files if made.fullmatch(i.name) and (anew or "moments" not in i.name)}
            gone |= {i.name for i in old.files if anew and i.name.startswith("dead_letters/gradient-")}
        left = [info for info in old.files if info.name not in gone]
        for gone_here, made_here in (
            _without_hashes(old.files, list(found), output, generation),
            _without_letters(left, list(found), texts, details, output, generation),
        ):
            gone, files = gone | gone_here, files + made_here
        if "approximate" in details.get("dense", {}):
            recorded = copy.deepcopy(details["dense"]["approximate"])
            files += _approximate(details, before, rows_of, settings.seed, output, beam_args)
            now = details["dense"].get("approximate", {"files": []})
            gone |= {recorded["sample"], recorded["neighbours"], recorded["trained"], *recorded["files"]}
            gone -= {now.get("trained"), *now["files"]}
        asked = query_curvature(output, details, settings, beam_args)
        details["fusion"] = fusion_of(details["signals"])
        details["approximations"] = approximations(details)
        counts = {"documents": len(found), "passages": count}
        details["history"] = [*details["history"], {"verb": "purge", **counts}]
        manifest = Manifest(
            kind="index",
            config=old.config,
            versions=library_versions(),
            counts=old.counts
            | {"kept": old.counts["kept"] - len(found), "removed": old.counts["removed"] + len(found)},
            details=details,
            files=[info for info in old.files if info.name not in gone] + files + asked,
        )
        write_bytes(join(folder, CERTIFICATE), _certificate(old, manifest, removals, found, plan))
        output.finish(manifest)
    redactions = sum(removal.action == "redact" and removal.example_id in found for removal in removals)
    if redactions:
        log.warning("%d documents were to be redacted: an index gives them up whole", redactions)
    told = {"folder": folder, **counts, "not found": len(removals) - len(found), "certificate": plan["certificate"]}
    progress.summary("purge", told)
    return manifest
