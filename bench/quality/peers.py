"""The peers of A2 and D by arm, each measured in the environment that the command names, and kept."""

import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.quality import bergson, ekfac, peer
from bench.quality.data import say
from bench.quality.kept import Kept
from schemas.records import Fact

# By package, the folder of the programs of its environment.
Programs = dict[str, Path]
PACKAGES: dict[str, Callable[[Path], str]] = {"bergson": bergson.version, "kronfluence": ekfac.version}
EKFAC = "kronfluence_ekfac"
ARMS: dict[str, tuple[str, Callable[..., np.ndarray]]] = {
    name: ("bergson", partial(bergson.trackstar, options=options)) for name, options in bergson.OPTIONS.items()
} | {EKFAC: ("kronfluence", ekfac.scores)}


def versions(programs: Programs) -> dict[str, str]:
    """By package its version. Raises ConfigError where an environment lacks it."""
    return {package: PACKAGES[package](folder) for package, folder in programs.items()}


def left_out(programs: Programs) -> list[str]:
    """Says which arms are not measured, and why."""
    lines = [
        f"{arm}: no --{package} names the programs of its environment"
        for arm, (package, _) in ARMS.items()
        if package not in programs
    ]
    for line in lines:
        say(f"left out: {line}")
    return lines


def measure(
    programs: Programs, out: Path, key: dict[str, Any], checkpoint: str, texts: Sequence[str], facts: Sequence[Fact]
) -> dict[str, tuple[np.ndarray, float]]:
    """By arm (scores `[facts, texts]`, the seconds that they took); `key` tells the training and the texts."""
    found = {}
    for arm, (package, scores) in ARMS.items():
        if package not in programs:
            continue

        def make(place: Path, package: str = package, scores: Callable[..., np.ndarray] = scores) -> None:
            start = time.perf_counter()
            scores(programs[package], place, checkpoint, texts, facts)
            (place / "seconds.json").write_text(json.dumps(round(time.perf_counter() - start, 1)))

        told = key | {"version": PACKAGES[package](programs[package]), "checkpoint": Path(checkpoint).name}
        told |= {"facts": [fact.id for fact in facts], "arm": arm, "projection_dim": bergson.PROJECTION_DIM}
        place = Kept(out).folder(arm, told, make)
        kept = peer.read_scores(place / peer.SCORES, len(facts), len(texts))
        found[arm] = kept, float(json.loads((place / "seconds.json").read_text()))
    return found
