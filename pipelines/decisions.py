"""The approvals that `clean` and `purge` act on: of a removals.jsonl, or of a run with what stands in its ledger."""

from pipelines.storage import exists, is_local, join, read_bytes, read_manifest, verified
from schemas.errors import ConfigError
from schemas.ledger import read_ledger, standing_removals
from schemas.manifest import MANIFEST
from schemas.records import Removal
from schemas.removals import approved, parse_removals

REMOVALS = "removals.jsonl"


def read_approved(path: str) -> list[Removal]:
    """The approved removals and redactions. Raises ConfigError where there are none, ArtifactMismatch for a ledger that
    is not as it was written.
    """
    if not exists(join(path, MANIFEST)):
        found = parse_removals(read_bytes(path), path)
    elif not is_local(path):
        raise ConfigError(
            f"{path}: expected a run on this machine, where its ledger is, found a remote one; copy it here"
        )
    else:
        read_manifest(path, "removals")
        file = verified(path, REMOVALS)
        found = standing_removals(parse_removals(read_bytes(file), file), read_ledger(path))
    chosen = approved(found)
    if not chosen:
        raise ConfigError(
            f"{path}: expected at least one removal whose decision is 'approved', found none; decide with `proponent "
            "review RUN`, edit the file, or run flag with --approve all --by NAME"
        )
    return chosen
