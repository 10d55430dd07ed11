"""Paths of any kind that Beam's FileSystems opens, and output folders that are finished or not there.

Locally a folder is built in a hidden sibling and renamed at the end; on an object store it is written under its final
prefix and the manifest, written last, is the commit.
"""

import errno
import fcntl
import hashlib
import itertools
import json
import logging
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import IO, Any, BinaryIO

from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from schemas.errors import ArtifactMismatch, ConfigError, DiskFull, ProponentError
from schemas.manifest import MANIFEST, FileInfo, Kind, Manifest, check_counts, parse_manifest
from schemas.rankings import rankings_from_jsonl
from schemas.records import Proponent

log = logging.getLogger(__name__)
PLAN = "plan.json"
STAGES = ".stages"
METRICS = "metrics.json"
TEMPORARY = ".tmp-"
WORK_PLAN, CERTIFICATE = f"{STAGES}/{PLAN}", f"{STAGES}/certificate.json"
GENERATION = re.compile(r"\.g\d+(?=\.|$)")
FULL = (errno.ENOSPC, errno.EDQUOT)
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


def is_local(path: str) -> bool:
    return "://" not in path


def absolute(path: str) -> str:
    """The path as a manifest keeps it: local ones absolute, so that a folder is found from anywhere."""
    return os.path.abspath(os.path.expanduser(path)) if is_local(path) else path


def join(folder: str, *names: str) -> str:
    return FileSystems.join(folder, *names)


def match(pattern: str) -> list[tuple[str, int]]:
    """(path, bytes) of the files that match, sorted. Raises ConfigError if there is none."""
    found = FileSystems.match([absolute(pattern)])[0].metadata_list
    files = sorted((m.path, m.size_in_bytes) for m in found if not (is_local(m.path) and os.path.isdir(m.path)))
    if not files:
        raise ConfigError(f"{pattern}: expected at least one file, found none; check the path or the glob's quotes")
    return files


def exists(path: str) -> bool:
    return FileSystems.exists(path)


def open_read(path: str) -> BinaryIO:
    """Raw bytes of a file, whatever its suffix. Raises ConfigError if it is not there."""
    if not exists(path):
        raise ConfigError(f"{path}: expected a file, found none; check the path")
    if is_local(path) and os.path.isdir(path):
        raise ConfigError(f"{path}: expected a file, found a folder; name the file in it")
    return FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)


def read_bytes(path: str) -> bytes:
    with open_read(path) as file:
        return file.read()


def write_bytes(path: str, data: bytes) -> None:
    """Writes a whole file: locally under a temporary name, then renamed."""
    if is_local(path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        temporary = f"{path}{TEMPORARY}{os.getpid()}"
        try:
            Path(temporary).write_bytes(data)
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)  # where it failed: of a full disk it would keep what room there is
    else:
        with FileSystems.create(path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
            file.write(data)


def localize(path: str) -> str:
    """A local path with the file's content, for what must be memory-mapped; a remote file is fetched once a version."""
    if is_local(path):
        return path
    found = FileSystems.match([path])[0].metadata_list[0]
    version = f"{path}:{found.size_in_bytes}:{found.last_updated_in_seconds}"
    cache = Path(tempfile.gettempdir()) / f"proponent-cache-{os.getuid()}"
    copy = cache / hashlib.sha256(version.encode()).hexdigest()[:32] / os.path.basename(path)
    if not copy.exists():
        write_bytes(str(copy), read_bytes(path))
    return str(copy)


@contextmanager
def output_lock(path: str) -> Iterator[None]:
    """Holds a local folder's name for this process alone, from before anything is looked at to the end.

    The system lets go of it when the process ends, however that comes about. An object store has no locks: there it
    does nothing. Raises ConfigError, naming who holds it, or where nothing can be written.
    """
    path = absolute(path).rstrip("/")
    if not is_local(path):
        yield
        return
    parent, name = os.path.split(path)
    place = os.path.join(parent, f".{name}.lock")
    with ExitStack() as stack:
        while True:
            try:
                os.makedirs(parent, exist_ok=True)
                file = stack.enter_context(open(place, "a+"))
            except OSError as error:
                if error.errno not in NOT_WRITABLE:
                    raise
                raise ConfigError(
                    f"{path}: expected a place that can be written to, found: {error}; choose another --output, or "
                    "change who may write there"
                ) from error
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                raise ConfigError(
                    f"{path}: expected a folder that no other job writes, found one at it "
                    f"({file.read() or 'it has just begun'}); wait for its end, or choose another --output"
                ) from error
            if _stands_at(file, place):
                break  # else its last holder has just taken it away
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        stack.callback(os.remove, place)  # before it is let go
        yield


def _stands_at(file: IO, place: str) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(place))
    except FileNotFoundError:
        return False


def is_disk_full(error: BaseException, folder: str) -> bool:
    """Whether an error, or one that a runner made text of, comes from a full disk or a quota that is used up.

    numpy tells of a short write without its cause; then a MiB is written to the local folder to see.
    """
    if any(os.strerror(number) in str(error) for number in FULL):
        return True
    if not isinstance(error, OSError) or error.errno is not None or not is_local(folder):
        return False
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(2**20))
    except OSError as second:
        return second.errno in FULL
    return False


def delete_tree(path: str) -> None:
    """Deletes a folder with all that is in it, if it is there; an object store has only the objects below a prefix."""
    if is_local(path):
        if os.path.exists(path):
            shutil.rmtree(path)
        return
    found = [metadata.path for metadata in FileSystems.match([join(path, "**")])[0].metadata_list]
    if found:
        FileSystems.delete(found)


def publish(source: Path, folder: str, name: str, rows: int) -> FileInfo:
    """Moves a finished local file to `folder/name` and returns its size and hash."""
    with open(source, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    size = source.stat().st_size
    target = join(folder, name)
    if is_local(target):
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(source, target)
    else:
        write_bytes(target, source.read_bytes())
    return FileInfo(name, rows, size, digest)


def info_of(folder: str, name: str, rows: int) -> FileInfo:
    """The description of a file that is there."""
    path = join(folder, name)
    size, modified = _version(path)
    return FileInfo(name, rows, size, _sha256(path, size, modified))


def read_manifest(folder: str, kind: Kind) -> Manifest:
    """The manifest of a finished folder; raises ConfigError for none, ArtifactMismatch for another kind or version."""
    path = join(folder, MANIFEST)
    if not exists(path):
        raise ConfigError(
            f"{folder}: expected a finished folder of kind '{kind}', found no {MANIFEST} in it; check the path, or run "
            "the verb that writes it again: it resumes"
        )
    return parse_manifest(read_bytes(path), folder, kind)


def kind_of(folder: str) -> str:
    """The kind of a finished folder; "" for one without a manifest. Raises ArtifactMismatch for an edited one."""
    path = join(folder, MANIFEST)
    return parse_manifest(read_bytes(path), folder).kind if exists(path) else ""


def verified(folder: str, name: str, local: bool = True) -> str:
    """The path of a folder's file, once its size and sha256 are found to be what the folder's manifest says.

    It is a local path, or where `local` is False the file's own. Each file is hashed before its first reading in a job
    and process: 1.4 GB/s of what lies in the page cache (300 MiB, one core). While a folder is being built it has no
    manifest, and a file that its manifest does not list is being written for the next one: nothing to check. Raises
    ArtifactMismatch, naming the file.
    """
    path, recorded = join(folder, name), _recorded(folder).get(name)
    if recorded:
        expected = f"{recorded.bytes} bytes with the sha256 {recorded.sha256}, as {MANIFEST} says"
        remedy = "restore the file, or write the folder again"
        if not exists(path):
            raise ArtifactMismatch(f"{path}: expected {expected}, found no such file; {remedy}")
    place = localize(path) if local else path
    if recorded:
        size, modified = _version(place)
        found = _sha256(place, size, modified) if size == recorded.bytes else f"{size} bytes"
        if found != recorded.sha256:
            raise ArtifactMismatch(
                f"{path}: expected {expected}, found {found}: it was changed or damaged after it was written; {remedy}"
            )
    return place


@lru_cache(maxsize=2**16)
def _sha256(path: str, size: int, modified: float) -> str:
    with open_read(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _version(path: str) -> tuple[int, float] | None:
    """(bytes, time of the last change) of a file, None where there is none; in a name no sign is a wildcard."""
    if not is_local(path):
        found = FileSystems.match([path])[0].metadata_list
        return (found[0].size_in_bytes, found[0].last_updated_in_seconds) if found else None
    try:
        told = os.stat(path)
    except FileNotFoundError:
        return None
    return told.st_size, told.st_mtime


def size_of(path: str) -> int:
    """Bytes of a file, -1 where there is none."""
    version = _version(path)
    return version[0] if version else -1


def _recorded(folder: str) -> dict[str, FileInfo]:
    """The files by name that a folder's manifest lists; none where it has no manifest."""
    version = _version(join(folder, MANIFEST))
    return _listed(folder, version) if version else {}


@lru_cache(maxsize=4)
def _listed(folder: str, version: tuple[int, float]) -> dict[str, FileInfo]:
    return {info.name: info for info in parse_manifest(read_bytes(join(folder, MANIFEST)), folder).files}


def read_rankings(folder: str) -> Iterator[list[Proponent]]:
    """The rankings of a folder that `trace` wrote, one fact after another, each best first."""
    rows = rankings_from_jsonl(read_bytes(verified(folder, "rankings.jsonl")))
    for _, ranking in itertools.groupby(rows, key=lambda proponent: proponent.fact_id):
        yield list(ranking)


class OutputFolder:
    """The folder that a verb writes. Use as a context manager; `path` is where to write until `finish`.

    A mistake of the user (ProponentError) leaves nothing behind. Any other end, a kill for instance or a full disk
    (DiskFull), leaves the hidden folder: the same job resumes from it, another one is refused and told what differs.
    From its beginning to its end no other job can write the folder (`output_lock`).
    """

    def __init__(self, final: str, plan: dict[str, Any]):
        self.final = absolute(final).rstrip("/")
        self.plan = json.loads(json.dumps(plan))
        self.path = self.final
        if is_local(self.final):
            parent, name = os.path.split(self.final)
            self.path = os.path.join(parent, f".{name}.partial")

    def __enter__(self) -> "OutputFolder":
        with ExitStack() as stack:
            stack.enter_context(output_lock(self.final))
            try:
                self._open()
            except OSError as error:
                self._refuse_full_disk(error)
                raise
            self._lock = stack.pop_all()
        return self

    def _open(self) -> None:
        if exists(join(self.final, MANIFEST)):
            raise ConfigError(
                f"{self.final}: expected a new output folder, found a finished one; choose another or delete it"
            )
        if self._holds_something_else():
            raise ConfigError(
                f"{self.final}: expected a new or empty output folder, found other files in it; choose another --output"
            )
        plan_path = join(self.path, PLAN)
        if self.path != self.final and not exists(plan_path):
            delete_tree(self.path)  # killed between its plan's end and its renaming: nothing to resume from
        if exists(plan_path):
            self._refuse_other_plan(json.loads(read_bytes(plan_path)), self.path)
            log.info("resuming the unfinished job in %s", self.path)
            if exists(join(self.path, MANIFEST)):
                FileSystems.delete([join(self.path, MANIFEST)])  # killed at the very end: it is written once more
        else:
            write_bytes(plan_path, json.dumps(self.plan, indent=1, sort_keys=True).encode())

    def _refuse_other_plan(self, found: dict[str, Any], place: str) -> None:
        differing = sorted(k for k in self.plan.keys() | found.keys() if self.plan.get(k) != found.get(k))
        if differing:
            raise ConfigError(
                f"{place}: an unfinished job with another configuration is there, it differs in "
                f"{', '.join(differing)}; delete it, or run with the same configuration to resume"
            )

    def _holds_something_else(self) -> bool:
        if is_local(self.final):
            return os.path.isfile(self.final) or (os.path.isdir(self.final) and bool(os.listdir(self.final)))
        found = FileSystems.match([join(self.final, "**")])[0].metadata_list
        return bool(found) and not exists(join(self.final, PLAN))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            if isinstance(error, ProponentError) and not isinstance(error, DiskFull):
                self._discard()
            elif error is not None:
                self._refuse_full_disk(error)
                log.error("stopped; what is finished stays in %s, the same command resumes from it", self.path)

    def _discard(self) -> None:
        delete_tree(self.path)

    def _refuse_full_disk(self, error: BaseException) -> None:
        """Raises DiskFull where that is what an error comes from."""
        if is_disk_full(error, self.path):
            told = [line for line in str(error).splitlines() if any(os.strerror(number) in line for number in FULL)]
            raise DiskFull(
                f"{self.final}: expected room for what is to be written, found a full disk or quota "
                f"({(told or [str(error)])[-1].strip()}); what is finished stays in {self.path}: make room and run the "
                "same command, which resumes from it, or delete that folder"
            ) from error

    def write(self, name: str, data: bytes, rows: int) -> FileInfo:
        """Writes one small file of the folder."""
        write_bytes(join(self.path, name), data)
        return FileInfo(name, rows, len(data), hashlib.sha256(data).hexdigest())

    def finish(self, manifest: Manifest) -> Manifest:
        """Checks the counts, takes the stages' records away, writes the manifest and puts the folder in its place."""
        check_counts(manifest.counts)
        delete_tree(join(self.path, STAGES))
        if is_local(self.path):  # what a killed job was writing
            for half_written in Path(self.path).rglob(f"*{TEMPORARY}*"):
                half_written.unlink()
        write_bytes(join(self.path, MANIFEST), manifest.to_json())
        FileSystems.delete([join(self.path, PLAN)])
        if self.path != self.final:
            if os.path.isdir(self.final):
                os.rmdir(self.final)  # only an empty folder is let through at the start
            os.rename(self.path, self.final)
        return manifest


def with_generation(name: str, generation: int) -> str:
    """A file's name without its suffix, or a shard's, in a generation of its folder: `x`, later `x.g2`."""
    stem = GENERATION.sub("", name)
    return stem if generation == 1 else f"{stem}.g{generation}"


def replace_files(old: list[FileInfo], new: list[FileInfo]) -> list[FileInfo]:
    """The files of a folder's next generation: those of the last one that no new file is a version of, and the new."""
    versions = {GENERATION.sub("", info.name) for info in new}
    return [info for info in old if GENERATION.sub("", info.name) not in versions] + new


class NextGeneration(OutputFolder):
    """A finished folder that is changed where it lies: new files beside the old ones, then a manifest that lists them.

    The manifest is what is true: replacing it is the commit, and a file that it does not list is what a killed job has
    left. `settle` comes first, then `parent` (the sha256 of the manifest that the plan was made for) goes into the
    plan. A ProponentError takes away what is new; after any other end the same job resumes.
    """

    def __init__(self, final: str, plan: dict[str, Any]):
        super().__init__(final, plan)
        self.path = self.final

    def _open(self) -> None:
        plan_path = join(self.path, WORK_PLAN)
        if _manifest_sha256(self.path) != self.plan["parent"]:
            raise ConfigError(f"{self.path}: expected no other job at it, found one that has just ended; run again")
        if exists(plan_path):
            self._refuse_other_plan(json.loads(read_bytes(plan_path)), join(self.path, STAGES))
            log.info("resuming the unfinished job in %s", self.path)
        else:
            sweep(self.path)
            write_bytes(plan_path, json.dumps(self.plan, indent=1, sort_keys=True).encode())

    def _discard(self) -> None:
        sweep(self.path)

    def finish(self, manifest: Manifest) -> Manifest:
        """Checks the counts, replaces the manifest, and deletes what the new one does not list."""
        check_counts(manifest.counts)
        write_bytes(join(self.path, MANIFEST), manifest.to_json())
        _complete(self.path)
        return manifest


def _manifest_sha256(folder: str) -> str:
    return hashlib.sha256(read_bytes(join(folder, MANIFEST))).hexdigest()


def settle(folder: str) -> tuple[str, dict[str, Any] | None]:
    """(the manifest's sha256, the plan of a job that was killed after its commit or None): what it left is done now."""
    folder = absolute(folder).rstrip("/")
    if not exists(join(folder, MANIFEST)):
        return "", None
    with output_lock(folder):
        sha256 = _manifest_sha256(folder)
        if exists(join(folder, WORK_PLAN)):
            plan = json.loads(read_bytes(join(folder, WORK_PLAN)))
            if plan["parent"] != sha256:
                _complete(folder)
                return sha256, plan
    return sha256, None


def _complete(folder: str) -> None:
    """Ends a job that has replaced the manifest: deletes the old files, and puts what is for outside in its place."""
    plan = json.loads(read_bytes(join(folder, WORK_PLAN)))
    sweep(folder, keep_stages=True)
    if plan.get("certificate") and exists(join(folder, CERTIFICATE)):
        write_bytes(plan["certificate"], read_bytes(join(folder, CERTIFICATE)))
    delete_tree(join(folder, STAGES))


def sweep(folder: str, keep_stages: bool = False) -> None:
    """Deletes every file of a finished folder that its manifest does not list, the stages' metrics left out."""
    listed = {info.name for info in parse_manifest(read_bytes(join(folder, MANIFEST)), folder).files}
    listed |= {MANIFEST, METRICS}
    if not keep_stages:
        delete_tree(join(folder, STAGES))
    if is_local(folder):
        found = [str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()]
    else:
        objects = FileSystems.match([join(folder, "**")])[0].metadata_list
        found = [metadata.path[len(folder) :].lstrip("/") for metadata in objects]
    unlisted = [name for name in found if name not in listed and not name.startswith(f"{STAGES}/")]
    if unlisted:
        FileSystems.delete([join(folder, name) for name in unlisted])
    if is_local(folder):
        for place, _, _ in os.walk(folder, topdown=False):
            if not os.listdir(place):
                os.rmdir(place)
