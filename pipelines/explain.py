"""`explain`: one example's chain, from the request to the bytes that are gone. It only prints.

run (requests, evidence, proposal, ledger) -> cleaned corpora (what was taken out, and that it is not there now)
  -> certificates of purges (which files of an index changed, their old and new hash)
"""

import json
from collections.abc import Iterator

from pipelines.audit import read_certificate
from pipelines.config import ExplainConfig
from pipelines.corpus import CLEANED, CorpusFormat, Record, read_records, relative_name
from pipelines.requests import read_asked
from pipelines.storage import absolute, join, read_bytes, read_manifest, verified
from pipelines.versions import taken_out
from schemas.errors import ConfigError
from schemas.ledger import Entry, read_ledger, standing
from schemas.manifest import Manifest
from schemas.records import Removal
from schemas.removals import EVIDENCE, REMOVALS, parse_removals
from schemas.visible import visible

SHOWN = 200  # characters of a text


def _shown(text: str) -> str:
    """A text in one line of a terminal: without what moves its cursor or turns its direction."""
    line = visible(" ".join(text.split()))
    return f"'{line[:SHOWN]}'" + (f" and {len(line) - SHOWN:,} characters more" if len(line) > SHOWN else "")


def _from_requests(run: str, example_id: str) -> Iterator[str]:
    """What asked for the example, and the evidence that it had."""
    asked = {request.request.request_id: request for request in read_asked(run)}
    lines = read_bytes(verified(run, EVIDENCE)).split(b"\n")
    for row in (row for row in map(json.loads, filter(None, lines)) if row["example_id"] == example_id):
        request = asked[row["request_id"]]
        given = ", ".join(
            f"{name} {value}"
            for name in ("requester", "reason", "deadline")
            if (value := getattr(request.request, name))
        )
        yield f"request {row['request_id']} ({request.request.category}){': ' + _shown(given) if given else ''}"
        for case in request.cases:
            told = {True: "says it", False: "does not say it by itself", None: "was not asked"}[case.known]
            yield f"  prompt {_shown(case.prompt)}, output complained of {_shown(case.output)}; the model {told}"
        place = f"{row['file']}, row {row['row']}"
        yield f"  passage {place}, characters {row['start']} to {row['end']}: {_shown(row['text'])}"
        scores = ", ".join(f"{name} {value:.4g} (rank {row['ranks'][name]})" for name, value in row["signals"].items())
        copied = f"near-duplicate of {row['duplicate_of']}, " if "duplicate_of" in row else ""
        copied += "with another name in it, " if row.get("renamed") else ""
        yield f"  rank {row['rank']}, score {row['score']:.4f}; {copied}{scores or 'no signal of its own'}"
        for label in row["labels"]:
            yield f"  label {label['scorer']}/{label['label']} {label['score']:.3f} (version {label['version']})"
        for failed in row["not_scored"]:
            yield f"  not scored by {failed['scorer']}: {_shown(failed['reason'])}"
        yield f"  proposed: {row['proposal']['action']}, by {_shown(row['proposal']['rule'])}"


def _decision(entry: Entry, stands: bool) -> str:
    spans = f" of characters {', '.join(f'{start} to {end}' for start, end in entry.spans)}" if entry.spans else ""
    why = f": {_shown(entry.reason)}" if entry.reason else ""
    return (
        f"decision {entry.seq}, {entry.time}, {_shown(entry.reviewer)}: {entry.decision} ({entry.action}{spans}){why}; "
        f"hash {entry.hash}{', stands' if stands else ''}"
    )


def _from_decisions(run: str, removal: Removal | None, example_id: str) -> Iterator[str]:
    entries = read_ledger(run)
    last = standing(entries).get(example_id)
    own = [entry for entry in entries if entry.example_id == example_id]
    for entry in own:
        yield _decision(entry, entry is last)
    if removal is not None and removal.decision != "proposed" and last is None:
        yield f"decision in {REMOVALS}, {removal.decided_at}, {_shown(removal.decided_by)}: {removal.decision}"
    if last is None and (removal is None or removal.decision == "proposed"):
        yield "no decision stands: nothing is removed"


def _text_now(folder: str, manifest: Manifest, file: str, example_id: str) -> str | None:
    """The text that a cleaned corpus has under the id now, in the file of that name; None where it has none."""
    name = CLEANED + relative_name(file, manifest.details["base"])
    if name not in {info.name for info in manifest.files}:
        return None
    format = CorpusFormat(manifest.config["id_field"], manifest.config["text_field"])
    base = join(absolute(folder), CLEANED)
    for record in read_records(join(absolute(folder), name), format, base):
        if isinstance(record, Record) and record.id == example_id:
            return record.text
    return None


def _from_corpus(folder: str, example_id: str) -> Iterator[str]:
    manifest = read_manifest(folder, "corpus")
    taken = [removed for removed in taken_out(folder) if removed.id == example_id]
    if not taken:
        yield f"corpus {folder}: it took nothing out of this example"
    for removed in taken:
        done = "redacted" if removed.action == "redact" else "taken out"
        kept = "its text is kept in removed/" if removed.text is not None else "its text was erased"
        yield (
            f"corpus {folder}, version {removed.version}: {done} from {removed.file}, row {removed.row}, text with the "
            f"sha256 {removed.sha256}; {kept}"
        )
        now = _text_now(folder, manifest, removed.file, example_id)
        yield "  now: no record has this id" if now is None else f"  now: {_shown(now)}"


def _from_certificate(path: str, example_id: str) -> Iterator[str]:
    row = read_certificate(path)
    if example_id not in {removed["example_id"] for removed in row["removed"]}:
        yield f"certificate {path}: the purge did not remove this example"
        return
    yield (
        f"index {row['index']}: purged in generation {row['generation']}, {row['time']}, by proponent {row['version']};"
        f" certificate {path}, sha256 {row['sha256']}"
    )
    for file in row["files"]:
        became = f"{file['new_name']}, sha256 {file['new_sha256']}" if file["new_name"] else "nothing: it is deleted"
        yield f"  {file['name']}, sha256 {file['sha256']} became {became}"


def run(config: ExplainConfig) -> list[str]:
    """The chain, a step a line. Raises ConfigError for an id that the run does not know, ArtifactMismatch for a ledger
    that is not as it was written.
    """
    folder = absolute(config.run)
    files = {info.name for info in read_manifest(folder, "removals").files}
    path = verified(folder, REMOVALS)
    removal = {r.example_id: r for r in parse_removals(read_bytes(path), path)}.get(config.id)
    lines = list(_from_requests(folder, config.id)) if EVIDENCE in files else []
    if removal is not None and EVIDENCE not in files:
        lines = [f"facts {', '.join(removal.fact_ids)}: {_shown(removal.reason)}"]
    if not lines:
        raise ConfigError(f"--id: expected an example that {config.run} has evidence about, found {config.id!r}")
    lines += _from_decisions(folder, removal, config.id)
    for corpus in config.cleaned:
        lines += _from_corpus(corpus, config.id)
    for certificate in config.certificates:
        lines += _from_certificate(certificate, config.id)
    return lines


def print_result(lines: list[str]) -> None:
    """One step a line, whatever stands in an id or a file's name."""
    print("\n".join(visible(line).replace("\n", "\\n") for line in lines))
