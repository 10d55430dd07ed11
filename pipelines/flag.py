"""`flag`: rankings become proposed removals, a file that a person reads and edits, and a random control.

rankings/ + the index's examples -> removals.jsonl, control_removals.jsonl
"""

import datetime
import logging
from collections.abc import Iterator
from dataclasses import asdict, replace

import pyarrow.parquet as pq

from attribution.removal import control, propose
from pipelines import progress
from pipelines.config import FlagConfig
from pipelines.stage import library_versions
from pipelines.storage import OutputFolder, join, read_manifest, read_rankings, verified
from schemas.errors import ConfigError
from schemas.manifest import Manifest
from schemas.removals import removals_to_jsonl

log = logging.getLogger(__name__)


def _examples(index: str, names: list[str]) -> Iterator[tuple[str, str]]:
    """(id, sha256) of every indexed example, once, though it may be many passages."""
    for name in names:
        table = pq.read_table(verified(index, f"examples/{name}.parquet"), columns=["example_id", "start", "sha256"])
        for row in table.to_pylist():
            if row["start"] == 0:
                yield row["example_id"], row["sha256"]


def cut_in_words(config: FlagConfig) -> str:
    return (
        f"at most {config.max_per_fact} examples a fact, each holding at least {config.min_coverage:.0%} of the "
        "query's word weight (idf)"
    )


def run(config: FlagConfig) -> Manifest:
    """Writes proposals and control to `config.output`. Raises ConfigError if the evidence is enough for none."""
    rankings = read_manifest(config.rankings, "rankings")
    index_folder = rankings.details["index"]
    index = read_manifest(index_folder, "index")
    proposed = propose(read_rankings(config.rankings), config.max_per_fact, config.min_coverage)
    if not proposed:
        raise ConfigError(
            f"{config.rankings}: expected a passage with enough evidence ({cut_in_words(config)}), found none; "
            "lower --min_coverage, or read rankings.jsonl: the corpus may not say it"
        )
    if config.approve == "all":
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        proposed = [replace(r, decision="approved", decided_by=config.by, decided_at=now) for r in proposed]
    randomly = control(_examples(index_folder, [s["name"] for s in index.details["shards"]]), proposed, config.seed)
    if len(randomly) < len(proposed):
        raise ConfigError(
            f"the control needs {len(proposed)} other examples, the index has {len(randomly)}; lower --max_per_fact"
        )
    plan = asdict(config)
    plan.pop("quiet")
    with OutputFolder(config.output, plan) as output:
        files = [
            output.write("removals.jsonl", removals_to_jsonl(proposed), len(proposed)),
            output.write("control_removals.jsonl", removals_to_jsonl(randomly), len(randomly)),
        ]
        manifest = Manifest(
            kind="removals",
            config=asdict(config),
            versions=library_versions(),
            counts={
                "in": index.counts["kept"],
                "kept": index.counts["kept"] - len(proposed),
                "removed": len(proposed),
                "dead": 0,
            },
            details={"cut": cut_in_words(config), "rankings": config.rankings, "approve": config.approve},
            files=files,
        )
        output.finish(manifest)
    progress.summary(
        "flag",
        {
            "proposed": len(proposed),
            "cut": cut_in_words(config),
            "decision": proposed[0].decision,
            "edit": join(config.output, "removals.jsonl"),
        },
    )
    return manifest
