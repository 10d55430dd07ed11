"""`restore`: what a version of a corpus took out or redacted goes back to its place, as a new version.

cleaned/ (corpus/, removed/) -> corpus/<same names>, removed/earlier.jsonl, manifest.json

An uncompressed JSONL file that is restored whole has the bytes of the file it was cleaned from; a compressed one has
them once decompressed; a Parquet file has equal columns. What `clean` refused (dead letters, empty lines) does not come
back, nor what an earlier version took out: that is restored from that version's folder.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import progress
from pipelines.config import RestoreConfig
from pipelines.corpus import (
    CLEANED,
    JSONL,
    PARQUET,
    codec_of,
    create_corpus_file,
    list_corpus,
    open_corpus_file,
    relative_name,
    split_suffix,
)
from pipelines.stage import library_versions
from pipelines.storage import OutputFolder, absolute, open_read, publish, read_manifest, verified
from pipelines.versions import history, next_version, taken_earlier, taken_from, taken_out, version_of, write_earlier
from schemas.errors import ArtifactMismatch, ConfigError
from schemas.manifest import FileInfo, Manifest
from schemas.removed import Removed

SHOWN = 5


def _chosen(config: RestoreConfig) -> set[str]:
    """The ids to put back. Raises ConfigError for one that this version did not take out, or ArtifactMismatch."""
    here = {removed.id: removed for removed in taken_out(config.corpus)}
    if not here:
        raise ConfigError(f"{config.corpus}: expected records that were taken out, found none; nothing can be restored")
    wanted = set(config.ids) or set(here)
    unknown = sorted(wanted - here.keys())
    if unknown:
        earlier = {r.id: r.version for r in taken_earlier(config.corpus) if r.id in unknown}
        told = [f"{i} (version {earlier[i]} took it out)" if i in earlier else i for i in unknown]
        raise ConfigError(
            f"--ids: expected ids that {config.corpus} took out, found {len(unknown)} others ({_shown(told)}); restore "
            "what an earlier version took out from that version's folder"
        )
    erased = sorted(i for i in wanted if here[i].text is None)
    if erased:
        raise ArtifactMismatch(
            f"{config.corpus}: expected the text and bytes of what is to be put back, found {len(erased)} records that "
            f"were erased ({_shown(erased)}): only their hashes were kept; take them from the corpus that was cleaned, "
            "or leave them out of --ids"
        )
    old = sorted(i for i in wanted if here[i].kept_before < 0)
    if old:
        raise ArtifactMismatch(
            f"{config.corpus}: expected the place of each record, found {len(old)} without ({_shown(old)}): it was "
            "cleaned by an earlier proponent; clean the parent again, without their removals"
        )
    return wanted


def _shown(ids: list[str]) -> str:
    return f"{', '.join(ids[:SHOWN])}{', ...' if len(ids) > SHOWN else ''}"


def restored_lines(lines: Iterator[bytes], taken: list[Removed]) -> Iterator[bytes]:
    """A cleaned file's lines with what was taken out at its place; a redacted line gives way to what it was."""
    places: dict[int, list[Removed]] = {}
    for removed in taken:
        places.setdefault(removed.kept_before, []).append(removed)
    number = -1
    for number, line in enumerate(lines):
        for removed in places.get(number, ()):
            if removed.action == "redact":
                line = removed.raw.encode()
            else:
                yield removed.raw.encode()
        yield line
    for removed in places.get(number + 1, ()):
        yield removed.raw.encode()


def _restored_table(cleaned: pa.Table, aside: pa.Table, taken: list[tuple[int, Removed]]) -> pa.Table:
    """The kept rows with those of `aside` at their places; `taken` are (row in `aside`, what was taken out)."""
    places: dict[int, list[tuple[int, Removed]]] = {}
    for row, removed in taken:
        places.setdefault(removed.kept_before, []).append((len(cleaned) + row, removed))
    order: list[int] = []
    for number in range(len(cleaned) + 1):
        here = [number] if number < len(cleaned) else []
        for place, removed in places.get(number, ()):
            if removed.action == "redact":
                here = [place]
            else:
                order.append(place)
        order += here
    return pa.concat_tables([cleaned, aside]).take(pa.array(order, pa.int64()))


def _restore_parquet(folder: str, name: str, file: int, taken: list[tuple[int, Removed]], target: Path) -> None:
    source = pq.ParquetFile(open_read(verified(folder, name)))
    aside = pq.read_table(open_read(verified(folder, f"removed/{file:05d}.parquet")))
    table = _restored_table(source.read(), aside, taken)
    groups = [source.metadata.row_group(i) for i in range(source.num_row_groups)]
    largest = max([group.num_rows for group in groups if group.num_rows], default=len(table))
    with pq.ParquetWriter(target, source.schema_arrow, compression=codec_of(source)) as writer:
        writer.write_table(table, row_group_size=largest)


def _restore_file(folder: str, name: str, file: int, taken: list[tuple[int, Removed]], target: Path) -> int:
    """Writes one file of the new version with `taken` at their places; how many records went back to it."""
    suffix = split_suffix(name)[0]
    if not taken:
        with open_read(verified(folder, name)) as source, open(target, "wb") as sink:
            shutil.copyfileobj(source, sink)
    elif suffix in PARQUET:
        _restore_parquet(folder, name, file, taken, target)
    elif suffix in JSONL:
        with open_corpus_file(verified(folder, name, local=False)) as source, create_corpus_file(target) as sink:
            sink.writelines(restored_lines(source, [one for _, one in taken]))
    else:
        with create_corpus_file(target) as sink:
            sink.write(taken[0][1].raw.encode())  # one document
    return sum(removed.action == "remove" for _, removed in taken)


def run(config: RestoreConfig) -> Manifest:
    """Writes the new version to `config.output`, leaving nothing behind where it refuses.

    Raises ConfigError or ArtifactMismatch for ids that cannot be put back.
    """
    folder = absolute(config.corpus)
    old = read_manifest(folder, "corpus")
    # A version of which nothing was kept has no files, and is no corpus; its records can be put back all the same.
    parent_files = list_corpus(folder) if any(info.name.startswith(CLEANED) for info in old.files) else []
    chosen, details = _chosen(config), next_version(folder, parent_files)
    plan = asdict(config) | {"parent": details["parent_manifest_sha256"]}
    plan.pop("quiet")
    there = {info.name: info for info in old.files}
    files: list[FileInfo] = []
    with OutputFolder(config.output, plan) as output, TemporaryDirectory() as place:
        parent = old.details["parent"]
        with progress.bar("restore", len(parent), "files") as advance:
            for file, (path, _) in enumerate(parent):
                name = f"{CLEANED}{relative_name(path, old.details['base'])}"
                rows = list(enumerate(taken_from(folder, there, file)))
                taken = [(row, removed) for row, removed in rows if removed.id in chosen]
                if taken or name in there:  # else a text file that stays away
                    target = Path(place) / os.path.basename(path)
                    back = _restore_file(folder, name, file, taken, target)
                    kept = there[name].rows if name in there else 0
                    files.append(publish(target, output.path, name, kept + back))
                advance(1)
        own = version_of(old)
        left = (r for r in history(folder) if r.version < own or r.id not in chosen)
        files += write_earlier(left, output)
        count = sum(info.rows for info in files if info.name.startswith(CLEANED))
        manifest = Manifest(
            kind="corpus",
            config={name: value for name, value in asdict(config).items() if name != "output"},
            versions=library_versions(),
            counts={"in": count, "kept": count, "removed": 0, "dead": 0},
            details=details | {"restored": len(chosen)},
            files=files,
        )
        output.finish(manifest)
    progress.summary("restore", {"folder": config.output, "version": details["version"], "restored": len(chosen)})
    return manifest
