"""The peer of A2 and D: bergson's `trackstar` in an environment and processes of its own.

checkpoint + texts + facts -> model/ (with a chat template), corpus.jsonl, queries.jsonl
  -> bergson trackstar -> run/scores -> scores.npy [facts, texts] float32, read without pickle

bergson (github.com/EleutherAI/bergson) is no dependency of this project, as it pins other versions of torch: it is
named by the folder of its programs. What it is given is what the product has: the same checkpoint, the same texts with
the EOS that they were trained with, cut at the model's context, the facts' prompt and target. A query with a prompt and
a completion needs a chat template, which here only joins the two behind BOS; its token batch may not be larger than the
model's context.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from attribution.checkpoint import load_checkpoint
from bench.quality import peer
from bench.quality.data import say
from schemas.jsonl import jsonl_bytes
from schemas.records import Fact

# TrackStar as bergson does it by default (H^-1, no unit norm), and as it was published (arXiv 2410.17413: unit norm).
OPTIONS: dict[str, tuple[str, ...]] = {
    "bergson_trackstar_default": (),
    "bergson_trackstar": ("--unit_normalize",),
}
PROJECTION_DIM = 16  # bergson's default; of ours `gradient_kfac_16` has as many
JOINED = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}"
# Runs in bergson's environment. Its file of scores is `[texts, facts]` with a flag beside each score.
READ = """
import sys
from pathlib import Path
import numpy as np
from bergson.data import load_scores
scores = np.asarray(load_scores(Path(sys.argv[1]))[:], np.float32)
np.save(sys.argv[2], np.ascontiguousarray(scores.T), allow_pickle=False)
"""


def version(programs: Path) -> str:
    return peer.version("bergson", programs, ("bergson", "python"))


def write_inputs(place: Path, checkpoint: str, texts: Sequence[str], facts: Sequence[Fact]) -> int:
    """`model/`, `corpus.jsonl` and `queries.jsonl` in the order given; returns the model's context."""
    loaded, model = load_checkpoint(checkpoint), place / "model"
    shutil.copytree(checkpoint, model, dirs_exist_ok=True)
    tokenizer_config = model / "tokenizer_config.json"
    tokenizer_config.write_text(json.dumps(json.loads(tokenizer_config.read_text()) | {"chat_template": JOINED}))
    eos = loaded.tokenizer.eos_token if loaded.adds_eos else ""
    rows = []
    for text in texts:
        text += eos
        ends = [end for _, end in loaded.tokenizer(text, return_offsets_mapping=True, verbose=False).offset_mapping]
        rows.append({"text": text if len(ends) <= loaded.max_tokens else text[: ends[loaded.max_tokens - 1]]})
    (place / "corpus.jsonl").write_bytes(jsonl_bytes(rows))
    queries = [{"prompt": fact.prompt, "completion": fact.target} for fact in facts]
    (place / "queries.jsonl").write_bytes(jsonl_bytes(queries))
    return loaded.max_tokens


def trackstar(
    programs: Path,
    place: Path,
    checkpoint: str,
    texts: Sequence[str],
    facts: Sequence[Fact],
    options: Sequence[str] = (),
) -> np.ndarray:
    """`[facts, texts]`: the scores of `bergson trackstar`, more of a proponent where higher. What it says is in a file
    of `place`, where `scores.npy` stays. Raises PeerFailed."""
    place, programs = place.absolute(), programs.absolute()
    context = write_inputs(place, checkpoint, texts, facts)
    command = [programs / "bergson", "trackstar", "run", "--overwrite", "--model", "model"]
    command += ["--data.dataset", "corpus.jsonl", "--data.prompt_column", "text"]
    command += ["--query.dataset", "queries.jsonl"]
    command += ["--query.prompt_column", "prompt", "--query.completion_column", "completion"]
    command += ["--projection_dim", str(PROJECTION_DIM), "--precision", "fp32", "--token_batch_size", str(context)]
    say(f"bergson trackstar {' '.join(options)}: {len(texts)} texts, {len(facts)} facts; its log is {place / peer.LOG}")
    (place / peer.LOG).unlink(missing_ok=True)
    peer.call([*command, "--nproc_per_node", "1", *options], place)
    peer.call([programs / "python", "-c", READ, "run/scores", peer.SCORES], place)
    for name in ("run", "model", "home"):
        shutil.rmtree(place / name, ignore_errors=True)
    return peer.read_scores(place / peer.SCORES, len(facts), len(texts))
