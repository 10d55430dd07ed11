"""The peer of A2 and D: kronfluence's EK-FAC in an environment and a process of its own (Grosse et al. 2023).

checkpoint + texts + facts -> model/, sequences.json (token ids, as the product makes them)
  -> ekfac_program.py by kronfluence's python -> scores.npy [facts, texts] float32

Influence functions with kronfluence's defaults (github.com/pomonam/kronfluence): the eigenvalue-corrected K-FAC of the
blocks' linear layers, as in its examples of language models; the measurement is the loss of the target's tokens.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from attribution.checkpoint import load_checkpoint
from attribution.sequences import encode_example, encode_fact
from bench.quality import peer
from bench.quality.data import say
from schemas.records import Fact

PROGRAM = Path(__file__).with_name("ekfac_program.py")


def version(programs: Path) -> str:
    return peer.version("kronfluence", programs, ("python",))


def scores(programs: Path, place: Path, checkpoint: str, texts: Sequence[str], facts: Sequence[Fact]) -> np.ndarray:
    """`[facts, texts]`: pairwise influence on the target's loss, higher for proponents. Raises PeerFailed."""
    place, loaded = place.absolute(), load_checkpoint(checkpoint)
    shutil.copytree(checkpoint, place / "model", dirs_exist_ok=True)
    found = {
        "texts": [encode_example(loaded, text) for text in texts],
        "facts": [encode_fact(loaded, fact) for fact in facts],
    }
    rows = {kind: [[one.tokens, one.labels] for one in sequences] for kind, sequences in found.items()}
    (place / "sequences.json").write_text(json.dumps(rows))
    say(f"kronfluence EK-FAC: {len(texts)} texts, {len(facts)} facts; its log is {place / peer.LOG}")
    (place / peer.LOG).unlink(missing_ok=True)
    # -P: the folder of the program is no place to import from.
    peer.call([programs.absolute() / "python", "-P", PROGRAM, peer.SCORES], place)
    for name in ("influence_results", "model", "home"):
        shutil.rmtree(place / name, ignore_errors=True)
    return peer.read_scores(place / peer.SCORES, len(facts), len(texts))
