"""How well `verify --predict` ranks what a training without the removals changes, on the demo's folders.

    python -m bench.predict                                  the folder that `make demo` wrote, demo-output
    python -m bench.predict --demo DIR --verification DIR    measured by another `verify` (several seeds: their mean)

Prints one JSON object, one line, last on standard output; skips, saying so, where the folder is absent. Nothing is
trained or written. For each of `STEP_SIZES` (in learning rates of the last checkpoint), over the false claims and the
true facts together, the predicted change in the target's probability (after minus control) beside the measured one:

- `pearson`, `spearman`; `spearman_true_facts` over the true facts alone, whose measured changes are small.
- `claims_first`: how often a claim's predicted change lies below a true fact's (0.5 is chance).
- `claims`, `true_facts`: means of the predicted change; beside them once, as measured, `measured_claims` and
  `measured_true_facts`.

`best_step_size` has the highest `pearson`: what `--step_size` is by default (pipelines/config.py).
"""

import argparse
import json
import sys
from collections import defaultdict
from math import exp
from pathlib import Path
from typing import Any

import numpy as np

from attribution.checkpoint import Checkpoint
from attribution.knowledge import answers
from bench.gradients import spearman
from pipelines.asking import load_last
from pipelines.config import VerifyConfig
from pipelines.predict import find_examples, read_removals, stepped
from pipelines.storage import read_manifest, verified
from schemas.facts import parse_facts
from schemas.records import Fact

STEP_SIZES = (0.1, 0.3, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 10.0)


def measured_changes(folder: Path, facts: list[Fact]) -> np.ndarray:
    """`[facts]`: the measured probability after minus that in the control, mean over seeds."""
    read_manifest(str(folder), "verification")
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for line in Path(verified(str(folder), "answers.jsonl")).read_text().splitlines():
        row = json.loads(line)
        found[row["arm"], row["fact_id"]].append(exp(row["log_probability"]))
    return np.array([np.mean(found["after", f.id]) - np.mean(found["control", f.id]) for f in facts])


def probabilities(checkpoint: Checkpoint, facts: list[Fact]) -> np.ndarray:
    return np.array([exp(said.log_probability) for said in answers(checkpoint, facts)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("demo-output"))
    parser.add_argument("--verification", type=Path)
    given = parser.parse_args()
    if not (given.demo / "summary.json").exists():
        sys.exit(f"skipped: {given.demo} is not there; make demo writes it")
    claims, true_facts = (
        parse_facts((given.demo / name).read_bytes(), name) for name in ("claims.jsonl", "true_facts.jsonl")
    )
    facts, first = claims + true_facts, len(claims)
    measured = measured_changes(given.verification or given.demo / "verification", facts)
    checkpoint, rows = load_last(str(given.demo / "before")), []
    for size in STEP_SIZES:
        config = VerifyConfig(
            predict=True,
            before=(str(given.demo / "before"),),
            facts=str(given.demo / "claims.jsonl"),
            retain_facts=str(given.demo / "true_facts.jsonl"),
            corpus=str(given.demo / "corpus.jsonl"),
            removals=str(given.demo / "removals/removals.jsonl"),
            control_removals=str(given.demo / "removals/control_removals.jsonl"),
            step_size=size,
            output="",
        )
        arms = {
            "after": read_removals(config.removals, "removals"),
            "control": read_removals(config.control_removals, "control_removals"),
        }
        examples = find_examples(config, [removal for removals in arms.values() for removal in removals])
        found = {arm: probabilities(copy, facts) for arm, copy in stepped(checkpoint, config, examples, arms)}
        predicted = found["after"] - found["control"]
        row: dict[str, Any] = {
            "step_size": size,
            "pearson": np.corrcoef(predicted, measured)[0, 1],
            "spearman": spearman(predicted[None], measured[None]),
            "spearman_true_facts": spearman(predicted[None, first:], measured[None, first:]),
            "claims_first": (predicted[:first, None] < predicted[None, first:]).mean(),
            "claims": predicted[:first].mean(),
            "true_facts": predicted[first:].mean(),
        }
        rows.append({name: round(float(value), 4) for name, value in row.items()})
        print(rows[-1], file=sys.stderr)
    result = {
        "best_step_size": max(rows, key=lambda row: row["pearson"])["step_size"],
        "measured_claims": round(float(measured[:first].mean()), 4),
        "measured_true_facts": round(float(measured[first:].mean()), 4),
        "facts": [len(claims), len(true_facts)],
        "step_sizes": rows,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
