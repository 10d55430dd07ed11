"""The approvals that `clean` and `purge` act on: of a removals.jsonl, or of a run with what stands in its ledger.

A run's own removals.jsonl is read with its ledger too, so that no decision of a reviewer is passed by; its control is
cut to as many examples as are approved.
"""

import os

from pipelines.storage import exists, is_local, join, kind_of, read_bytes, read_manifest, verified
from schemas.errors import ConfigError
from schemas.ledger import read_ledger, standing_removals
from schemas.manifest import MANIFEST
from schemas.records import Removal
from schemas.removals import CONTROL, REMOVALS, approved, parse_removals


def _with_ledger(folder: str, file: str) -> list[Removal]:
    """The decisions of a run's removals.jsonl, edited or not, with what stands in its ledger over them."""
    found = parse_removals(read_bytes(file), file)
    return standing_removals(found, read_ledger(folder)) if is_local(folder) else found


def _control_of(folder: str, file: str) -> list[Removal]:
    """As many of a run's random examples as are approved in it, none of those among them."""
    taken = {removal.example_id for removal in approved(_with_ledger(folder, join(folder, REMOVALS)))}
    others = [removal for removal in parse_removals(read_bytes(file), file) if removal.example_id not in taken]
    if len(others) < len(taken):
        raise ConfigError(
            f"{file}: expected as many random examples as are approved in the run, {len(taken)}, found {len(others)} "
            "that are not approved themselves; flag again with a higher --max_per_fact"
        )
    return others[: len(taken)]


def read_approved(path: str) -> list[Removal]:
    """The approved removals and redactions. Raises ConfigError where there are none, ArtifactMismatch for a ledger that
    is not as it was written.
    """
    folder, name = os.path.split(path.rstrip("/"))
    if exists(join(path, MANIFEST)):
        read_manifest(path, "removals")
        if not is_local(path):
            raise ConfigError(f"{path}: expected a run on this machine, with its ledger, found a remote one; copy it")
        chosen = approved(_with_ledger(path, verified(path, REMOVALS)))
    elif name == REMOVALS and kind_of(folder) == "removals":
        chosen = approved(_with_ledger(folder, path))
    elif name == CONTROL and kind_of(folder) == "removals":
        chosen = _control_of(folder, path)
    else:
        chosen = approved(parse_removals(read_bytes(path), path))
    if not chosen:
        raise ConfigError(
            f"{path}: expected at least one removal whose decision is 'approved', found none; decide with `proponent "
            "review RUN`, edit the file, or run flag with --approve all --by NAME"
        )
    return chosen
