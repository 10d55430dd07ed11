"""`review`: people decide about what `flag` proposed, on a page on this machine or in a file; the ledger keeps it all.

RUN/requests.jsonl, evidence.jsonl, removals.jsonl -> a page on 127.0.0.1 -> RUN/ledger.jsonl, ledger.head.json
an edited copy of RUN/removals.jsonl -> --take -> the same ledger

The run's own files stay as they are. What stands is read with `schemas.ledger.standing_removals`.
A line of the copy that says `proposed` says nothing: every line of a fresh copy does, and another reviewer may have
decided since. A decision is taken back by the word `undone`.
"""

import getpass
import logging
import socket
from dataclasses import replace

from pipelines import progress
from pipelines.config import ReviewConfig
from pipelines.review_items import Case, load_case
from pipelines.storage import absolute, is_local, join, read_bytes, read_manifest, verified
from schemas.errors import ArtifactMismatch, ConfigError
from schemas.ledger import LEDGER, Entry, append_with, not_taken_back, read_ledger, standing_removals
from schemas.records import Removal
from schemas.removals import EDITED, EVIDENCE, REMOVALS, parse_removals

log = logging.getLogger(__name__)
LOOPBACK = "127.0.0.1"
MOST_HEADER_BYTES = 16 * 1024


def run(config: ReviewConfig) -> None:
    """Serves the review until it is interrupted, or takes the decisions of an edited file."""
    folder = absolute(config.run).rstrip("/")
    if not is_local(folder):
        raise ConfigError(
            f"{folder}: expected a folder of this machine, found an object store, which has no locks and no appending "
            "for the ledger; copy the run here, review it, and copy it back"
        )
    if config.take:
        taken = take(folder, config.take, config.by)
        undone = sum(entry.decision == "undone" for entry in taken)
        told = {"taken from": config.take, "decisions appended": len(taken), "of these, taken back": undone}
        progress.summary("review", told | {"ledger": LEDGER})
        return
    serve(load_case(folder), reviewers_of(config), config.port)


def reviewers_of(config: ReviewConfig) -> list[str]:
    """Who gets a URL: --by, or else who is logged in, and the further --reviewers."""
    further = [name.strip() for name in config.reviewers.split(",") if name.strip()]
    names = [config.by or getpass.getuser(), *further]
    if len(set(names)) < len(names):
        raise ConfigError(f"--reviewers: expected names that differ, and from --by, found {', '.join(names)}")
    return names


# --------------------------------------------------------------------------------------------------------------- a file


def _known_examples(folder: str, removals: list[Removal]) -> dict[str, str]:
    """sha256 of every example that the run proposes or has evidence about."""
    known = {removal.example_id: removal.sha256 for removal in removals}
    if any(info.name == EVIDENCE for info in read_manifest(folder, "removals").files):
        case = load_case(folder)
        known |= {example_id: rows[0]["sha256"] for example_id, rows in case.passages.items()}
    return known


def _own_removals(folder: str) -> list[Removal]:
    try:
        return parse_removals(read_bytes(verified(folder, REMOVALS)), join(folder, REMOVALS))
    except ArtifactMismatch as error:
        raise ArtifactMismatch(
            f"{error}. To decide in the file, edit a copy: keep this one elsewhere, restore {REMOVALS} (`flag` writes "
            "the same again), then `proponent review RUN --take COPY --by NAME`"
        ) from error


def _entry(removal: Removal, by: str) -> Entry:
    return Entry(
        reviewer=by, example_id=removal.example_id, sha256=removal.sha256, decision=removal.decision,
        action=removal.action, spans=removal.spans, reason=removal.reason, request_ids=removal.request_ids,
    )  # fmt: skip


def differing(edited: list[Removal], removals: list[Removal], entries: list[Entry], by: str) -> list[Entry]:
    """The decisions of an edited file, as entries, that are not what stands; `removals` are the run's own.

    `undone` is what is to stand as well, namely nothing of the ledger: it becomes as many entries as there are
    decisions to take back. So the same file twice is once.
    """
    stands = {removal.example_id: removal for removal in standing_removals(removals, entries)}
    left, made, passed_by = not_taken_back(entries), [], 0
    for removal in edited:
        own, now = left.get(removal.example_id, []), stands.get(removal.example_id)
        told = (removal.decision, removal.action, removal.spans, removal.reason)
        if removal.decision == "proposed":
            passed_by += bool(own)
        elif removal.decision == "undone":
            made += [_entry(replace(removal, action=e.action, spans=e.spans), by) for e in reversed(own)]
        elif now is None or told != (now.decision, now.action, now.spans, now.reason):
            made.append(_entry(removal, by))
    if passed_by:
        log.info("lines that say 'proposed' where a decision stands: %d; it stands on ('undone' takes back)", passed_by)
    return made


def take(folder: str, path: str, by: str) -> list[Entry]:
    """Appends the decisions of an edited removals.jsonl to the run's ledger where they differ from what stands.

    `proposed` says nothing; `undone` takes back every decision that the ledger holds about the example. Raises
    ConfigError for an example that the run does not know, or for `undone` where the run itself came with a decision
    (it would stand again); ArtifactMismatch for an example with another content.
    """
    removals = _own_removals(folder)
    known, own = _known_examples(folder, removals), {removal.example_id: removal for removal in removals}
    edited = parse_removals(read_bytes(path), path, EDITED)
    for removal in edited:
        sha256 = known.get(removal.example_id)
        if sha256 is None:
            raise ConfigError(
                f"{path}: expected examples that {folder} proposes or has evidence about, found "
                f"{removal.example_id!r}; check the run, or give `clean --removals` this file itself"
            )
        if sha256 != removal.sha256:
            raise ArtifactMismatch(
                f"{path}: example {removal.example_id!r}: expected the sha256 {sha256}, as the run has it, found "
                f"{removal.sha256}: the line is of another run or was mistyped; restore its sha256"
            )
        came = own.get(removal.example_id)
        if removal.decision == "undone" and came and came.decision != "proposed":
            raise ConfigError(
                f"{path}: example {removal.example_id!r}: expected a decision of the ledger to take back, found "
                f"{came.decision!r} by {came.decided_by!r} in {join(folder, REMOVALS)}, which the run came with and "
                "which stands where the ledger holds nothing; write 'rejected' to keep the example, or 'approved'"
            )
    return append_with(folder, lambda entries: differing(edited, removals, entries, by))


# -------------------------------------------------------------------------------------------------------------- a page


def listening_socket(port: int) -> socket.socket:
    """A socket on the loopback address alone. Raises ConfigError where the port is taken."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((LOOPBACK, port))
        listening.listen(128)  # now, as the addresses are printed before the server has begun
    except OSError as error:
        listening.close()
        raise ConfigError(
            f"--port: expected a free port, found {port} ({error.strerror}); leave it out, or choose another"
        ) from error
    return listening


def serve(case: Case, reviewers: list[str], port: int) -> None:
    """Prints each reviewer's URL, serves until Ctrl-C, and says what was decided."""
    try:
        import uvicorn

        from pipelines.review_server import Sessions, make_app
    except ImportError as error:
        raise ConfigError(
            f"expected the libraries of the review page, found: {error}; pip install 'proponent[review]'"
        ) from error
    before = read_ledger(case.folder)  # a ledger that is not whole is refused before anyone looks at the page
    listening = listening_socket(port)
    origin = f"http://{LOOPBACK}:{listening.getsockname()[1]}"
    sessions = Sessions()
    for reviewer in reviewers:
        print(f"{reviewer}: {origin}/enter/{sessions.invite(reviewer)}", flush=True)
    log.info("each address works once and on this machine alone; every decision is on disk at once; Ctrl-C ends it")
    options = uvicorn.Config(
        make_app(case, sessions, origin), http="h11", ws="none", lifespan="off", log_level="warning", access_log=False,
        server_header=False, date_header=False, proxy_headers=False, timeout_graceful_shutdown=3,
        limit_concurrency=100, h11_max_incomplete_event_size=MOST_HEADER_BYTES,
    )  # fmt: skip
    try:
        uvicorn.Server(options).run(sockets=[listening])
    except KeyboardInterrupt:
        log.debug("interrupted")  # how a review ends
    finally:
        listening.close()
    progress.summary("review", counted(case, read_ledger(case.folder), len(before)))


def counted(case: Case, entries: list[Entry], num_before: int) -> dict[str, object]:
    """What a review ends with."""
    stands = {r.example_id: r for r in standing_removals(case.removals.values(), entries)}
    decided = [stands[i] for i in case.example_ids if i in stands and stands[i].decision != "proposed"]
    approved = [removal for removal in decided if removal.decision == "approved"]
    return {
        "decided": f"{len(decided):,} of {len(case.example_ids):,} examples",
        "approved for removal": sum(removal.action == "remove" for removal in approved),
        "approved for redaction": sum(removal.action == "redact" for removal in approved),
        "rejected": len(decided) - len(approved),
        "decisions in this session": len(entries) - num_before,
        "of these, taken back": sum(entry.decision == "undone" for entry in entries[num_before:]),
        "ledger": LEDGER if entries else "none: nothing was decided",
    }
