"""What the peers of A2 and D share: an environment and processes of their own, and the scores that they leave.

A peer is no dependency of this project: it is named by the folder of its environment's programs.
"""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from schemas.errors import ConfigError, ProponentError

VERSION = "import importlib.metadata as m, sys; print(m.version(sys.argv[1]))"
SCORES, LOG = "scores.npy", "log.txt"


class PeerFailed(ProponentError):
    """A peer ended with an error, or gave scores that are none."""


def version(package: str, programs: Path, needed: Sequence[str]) -> str:
    """The package's version. Raises ConfigError where the folder lacks it, so that nothing is trained in vain."""
    lacking = [name for name in needed if not (programs / name).is_file()]
    if lacking:
        raise ConfigError(
            f"--{package} {programs}: expected the folder with the programs {' and '.join(needed)} of its environment "
            f"(bin), found no {' and no '.join(lacking)}; name it, or leave the option out"
        )
    command = [programs.absolute() / "python", "-c", VERSION, package]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        raise ConfigError(f"--{package} {programs}: its python does not find {package}:\n{found.stderr.strip()[-500:]}")
    return found.stdout.strip()


def call(command: Sequence[str | Path], place: Path) -> None:
    """Runs a program in `place`, offline, with as many threads as this process; what it says is added to LOG there.

    Raises PeerFailed.
    """
    alone = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HOME": str(place / "home")}
    threads = str(torch.get_num_threads())
    alone |= {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    told = [str(part) for part in command]
    with open(place / LOG, "a") as log:
        done = subprocess.run(told, cwd=place, env=os.environ | alone, stdout=log, stderr=log, check=False)
    if done.returncode:
        tail = (place / LOG).read_text(errors="replace")[-2000:]
        raise PeerFailed(f"{command[0]}: ended with {done.returncode}; the end of what it said:\n{tail}")


def read_scores(path: Path, num_facts: int, num_texts: int) -> np.ndarray:
    """`[facts, texts]`. Raises PeerFailed for another shape and for what is no number."""
    scores = np.load(path, allow_pickle=False)
    if scores.shape != (num_facts, num_texts):
        raise PeerFailed(
            f"{path}: expected scores of {num_facts} facts by {num_texts} texts, found {scores.shape}; did the peer "
            "leave some out?"
        )
    if not np.isfinite(scores).all():
        raise PeerFailed(f"{path}: {int((~np.isfinite(scores)).sum())} of the peer's scores are no finite numbers")
    return scores
