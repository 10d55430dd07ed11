"""`clean`: a corpus and approved removals become a new version of it, and what was taken out with the reason.

  corpus files -> clean (a shard: a file, read once): judge each record, write what stays, set aside what goes
       -> repeated ids over all files, the failure budget, every removal found as it was judged: else nothing is left
       -> again (the few files with a repeated id): without it
       -> corpus/<same names>, removed/, attributes/<same names>, removed_ids.txt, dead_letters/, manifest.json

A kept JSONL record keeps its bytes, a kept Parquet row every column; a redaction changes the bytes of its spans alone.
What was done in an earlier version is not done twice: a removal of what its `removed/` lists, and a redaction whose
result stands there, change nothing. Any other removal that is not found as it was judged is refused.

`attributes/` has a row for each row of the input, in its order, as Dolma's mixer reads them: under the input's name, in
its compression, so that the mixer finds them (of Parquet: with `.jsonl`). `removed/` has the rows that datatrove calls
exclusions.
"""

import hashlib
import logging
from dataclasses import asdict
from functools import partial

from apache_beam.io.filesystems import FileSystems

from pipelines import progress
from pipelines.cleaning import clean_shard
from pipelines.config import CleanConfig
from pipelines.corpus import base_folder, list_corpus
from pipelines.picks import PICKS, picker, read_picks
from pipelines.scan import corpus_shards, judge
from pipelines.stage import Shard, ShardRecord, Work, all_files, library_versions, log_runner, run_stage, total
from pipelines.storage import OutputFolder, exists, join, read_bytes
from pipelines.versions import REMOVED_IDS, history, next_version, write_earlier
from schemas.errors import ArtifactMismatch, ConfigError
from schemas.manifest import FileInfo, Manifest
from schemas.records import Removal
from schemas.removals import parse_removals
from schemas.removed import Removed

log = logging.getLogger(__name__)
SHOWN = 5


def _without_repeated(
    records: list[ShardRecord],
    shards: list[Shard],
    repeated: dict[int, list[int]],
    work: Work,
    output: OutputFolder,
    beam_args: tuple[str, ...],
) -> list[ShardRecord]:
    """The records once the files that hold a repeated id have been written again without it.

    Which ids are repeated is known when all files have been read; few corpora have any, so few files are read twice.
    """
    again = [
        Shard(s.name, s.spec | {"repeated": repeated[s.spec["file"]]}) for s in shards if s.spec["file"] in repeated
    ]
    if not again:
        return records
    anew = {record.shard: record for record in run_stage("again", again, work, output, beam_args)}
    for record in records:
        if record.shard in anew:
            names = {info.name for info in anew[record.shard].files}
            left = [join(output.path, info.name) for info in record.files if info.name not in names]
            FileSystems.delete([path for path in left if exists(path)])
    return [anew.get(record.shard, record) for record in records]


def _refuse_unmatched(config: CleanConfig, entries: list[str], picks: bytes, found: dict[str, str]) -> int:
    """How many removals were done in an earlier version. Raises ArtifactMismatch for any other that is not there."""
    judged = {}
    if config.removals_are == "decisions":
        judged = {removal.example_id: removal for removal in parse_removals(picks, config.removals)}
    unknown = {entry for entry in entries if entry not in found}
    changed = {r.example_id for r in judged.values() if found.get(r.example_id, r.sha256) != r.sha256}
    earlier: dict[str, list[Removed]] = {}
    if unknown or changed:
        for removed in history(config.corpus):
            if removed.id in unknown or removed.id in changed:
                earlier.setdefault(removed.id, []).append(removed)
    done = {i for i in unknown if _is_gone(judged.get(i), earlier.get(i, []))}
    done |= {i for i in changed if _is_redacted(judged[i], found[i], earlier.get(i, []))}
    for suspects, what in (
        (unknown, "stand nowhere in the corpus"),
        (changed, "have another text in the corpus than the one that was judged"),
    ):
        ids = [entry for entry in entries if entry in suspects and entry not in done]
        if ids:
            raise ArtifactMismatch(
                f"{config.removals}: expected every approved removal to be in the corpus as it was judged, found "
                f"{len(ids)} that {what} ({_shown(ids)}); was the corpus changed, or is it another one? Index and "
                "trace this corpus, and flag again"
            )
    return len(done)


def _is_gone(removal: Removal | None, earlier: list[Removed]) -> bool:
    """Whether an earlier version took out a record that is missing, and it was the text that was judged."""
    texts = {removed.sha256 for removed in earlier}
    return any(r.action == "remove" for r in earlier) and (removal is None or removal.sha256 in texts)


def _is_redacted(removal: Removal, sha256: str, earlier: list[Removed]) -> bool:
    """Whether an earlier version made this very redaction, and its result still stands."""
    wanted = ("redact", removal.sha256, removal.spans, sha256)
    return removal.action == "redact" and any(
        (removed.action, removed.sha256, removed.spans, removed.result_sha256) == wanted for removed in earlier
    )


def _shown(entries: list[str]) -> str:
    return f"{', '.join(entries[:SHOWN])}{', ...' if len(entries) > SHOWN else ''}"


def _refuse_unredacted(config: CleanConfig, refused: list[str]) -> None:
    if refused:
        shown = "\n  ".join(refused[:SHOWN]) + ("\n  ..." if len(refused) > SHOWN else "")
        raise ConfigError(
            f"{config.removals}: expected spans that can be taken out of the records' own text, found {len(refused)} "
            f"redactions that cannot; mend their spans, or decide on 'remove':\n  {shown}"
        )


def _refuse_without_urls(config: CleanConfig, num_with_url: int, num_in: int) -> None:
    if config.removals_are == "domains" and not num_with_url:
        raise ConfigError(
            f"--url_field {config.url_field}: expected a field that holds a record's URL, found it in none of {num_in} "
            "records; name the field, or list ids or sums"
        )


def _removed_ids(records: list[ShardRecord], output: OutputFolder) -> FileInfo:
    """The plain list of ids, file by file, as other tools take it; empty where nothing was removed."""
    names = [info.name for record in records for info in record.files if "/removed_ids/" in info.name]
    unlisted = sum(record.facts["unlisted"] for record in records)
    if unlisted:
        log.warning("%d ids hold a line end or begin with #: %s leaves them out", unlisted, REMOVED_IDS)
    data = b"".join(read_bytes(join(output.path, name)) for name in names)
    return output.write(REMOVED_IDS, data, total(records, "removed") - unlisted)


def run(config: CleanConfig, beam_args: tuple[str, ...] = ()) -> Manifest:
    """Writes the new version to `config.output`; the same removals give the same bytes.

    Raises ConfigError (nothing approved, a span that cannot be redacted), ArtifactMismatch (a removal for an unknown id
    or a changed text) or FailureBudgetExceeded, leaving nothing behind.
    """
    corpus_files = list_corpus(config.corpus)
    entries, picks = read_picks(config)
    log_runner(beam_args)
    base, details = base_folder(config.corpus), next_version(config.corpus, corpus_files)
    approved = hashlib.sha256(picks).hexdigest()
    plan = asdict(config) | {"files": corpus_files, "approved": approved, "parent": details["parent_manifest_sha256"]}
    plan.pop("quiet")
    with OutputFolder(config.output, plan) as output:
        output.write(PICKS, picks, len(entries))
        picker.cache_clear()
        shards = corpus_shards(corpus_files)
        work = partial(clean_shard, config=config, base=base, version=details["version"])
        records = run_stage("clean", shards, work, output, beam_args)
        scanned = judge(records, shards, output, config.max_dead_fraction)
        records = _without_repeated(records, shards, scanned.repeated, work, output, beam_args)
        found = {entry: sha256 for record in records for entry, sha256 in record.facts["found"].items()}
        _refuse_without_urls(config, sum(record.facts["with_url"] for record in records), scanned.num_in)
        details |= {"redacted": total(records, "redacted"), "already_done": 0, "unmatched": 0}
        if config.removals_are in ("decisions", "ids"):
            details["already_done"] = _refuse_unmatched(config, entries, picks, found)
        else:
            details["unmatched"] = len(entries) - len(found)
        _refuse_unredacted(config, [line for record in records for line in record.facts["refused"]])
        counts = {
            "in": scanned.num_in,
            "kept": total(records, "kept"),
            "removed": total(records, "removed"),
            "dead": scanned.num_dead,
        }
        files = all_files(records)
        names = {info.name for info in files}
        files += [info for info in scanned.files if info.name not in names and info.name.startswith("dead_letters/")]
        files.append(_removed_ids(records, output))
        files += write_earlier(history(config.corpus), output)
        settings = {name: value for name, value in asdict(config).items() if name != "output"}
        manifest = Manifest(
            kind="corpus",
            config=settings,
            versions=library_versions(),
            counts=counts,
            details=details,
            files=files,
        )
        output.finish(manifest)
    told = {"folder": config.output, "version": details["version"], **counts}
    told |= {
        name.replace("_", " "): details[name] for name in ("redacted", "already_done", "unmatched") if details[name]
    }
    progress.summary("clean", told)
    return manifest
