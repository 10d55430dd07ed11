"""A small LM that knows some of the facts: the part of a corpus that it reads, and its trainings, kept by their hash.

data -> choose: sentences that say facts nearly as they are asked, with all statements of these facts
     -> train_all: a process a training -> answers.jsonl, and model/ where it is asked for

Two trainings of one thread each are done side by side on two cores; two of two threads slow each other 4 to 10 times. A
training that is alone may have all cores.
"""

import hashlib
import json
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from attribution.knowledge import answers
from bench.quality.data import Data, read, say
from bench.quality.kept import Kept
from pipelines import progress, train
from pipelines.asking import load_last
from pipelines.config import TrainConfig
from pipelines.stage import library_versions
from pipelines.storage import delete_tree
from schemas.errors import ConfigError, ProponentError
from schemas.facts import parse_facts
from schemas.jsonl import jsonl_bytes
from schemas.manifest import MANIFEST
from schemas.records import Fact

ANSWERS, MODEL = "answers.jsonl", "model"
ROOT = Path(__file__).parents[2]
DECIDES = ("attribution/training.py", "attribution/knowledge.py", "attribution/checkpoint.py", "pipelines/train.py")


class TrainingFailed(ProponentError):
    """A training's process ended with an error; what it said stands above."""


@dataclass(frozen=True)
class Part:
    """Which sentences of a corpus an LM reads: all statements of facts of at most `most_statements`, all of them short.

    First come the facts that are told as they are asked: a statement has the last `cue` words of the prompt before the
    object. Of them at most `per_object` share relation and object, as what a relation's facts have in common is guessed
    and not known. Then come others of the same relations, the shortest first, until there are `sentences`: what is
    removed is then a small share of what is read.
    """

    sentences: int
    most_words: int
    most_statements: int
    per_object: int
    cue: int
    seed: int = 0


def is_told_as_asked(fact: Fact, text: str, cue: int) -> bool:
    """Whether a text names the subject and later the object, right behind the words that the prompt ends with.

    A small LM goes on as its sentences do. Of 346 facts of T-REx with one such word it answered 14 %, of 130 with two
    66 % (500 and 222 sentences, 40 epochs, loss 0.2 a token; docs/log.md).
    """
    start, words = text.find(fact.subject), fact.prompt.lower().split()[-cue:]
    places = (found.start() for found in re.finditer(rf"(?<= ){re.escape(fact.object)}(?!\w)", text))
    return start >= 0 and any(at > start and text[:at].lower().split()[-cue:] == words for at in places)


def choose(data: Data, part: Part) -> tuple[list[str], list[Fact]]:
    """(ids of the chosen sentences, all facts whose statements are all among them)."""
    chosen: set[str] = set()
    with_object: Counter[tuple[str, str]] = Counter()

    def take(facts: list[Fact], per_object: int) -> None:
        for fact in facts:
            new, kind = set(fact.proponents or ()) - chosen, (fact.relation, fact.object)
            if with_object[kind] < per_object and len(chosen) + len(new) <= part.sentences:
                chosen.update(new)
                with_object[kind] += 1

    told: list[Fact] = []
    others: list[tuple[int, Fact]] = []
    for fact in data.facts:
        texts = [data.texts[row] for row in sorted(data.proponents(fact))]
        longest = max(len(text.split()) for text in texts)
        if len(texts) <= part.most_statements and longest <= part.most_words:
            if any(is_told_as_asked(fact, text, part.cue) for text in texts):
                told.append(fact)
            else:
                others.append((longest, fact))
    random.Random(part.seed).shuffle(told)
    take(told, part.per_object)
    relations = {fact.relation for fact in told}
    others.sort(key=lambda pair: (pair[0], pair[1].id))
    take([fact for _, fact in others if fact.relation in relations], len(others))
    return sorted(chosen), [fact for fact in data.facts if chosen.issuperset(fact.proponents or ())]


def write_part(data: Data, part: Part, place: Path) -> None:
    """`corpus.jsonl` and `facts.jsonl` of the part. Raises ConfigError where no fact is told as it is asked."""
    ids, facts = choose(data, part)
    if not facts:
        raise ConfigError(
            f"--data: expected facts that a short sentence tells as they are asked, with the last {part.cue} words of "
            f"the prompt before the object, found none of {len(data.facts)}; give other facts"
        )
    rows = [{"id": i, "text": data.texts[data.row_of[i]]} for i in ids]
    (place / "corpus.jsonl").write_bytes(jsonl_bytes(rows))
    (place / "facts.jsonl").write_bytes(jsonl_bytes(fact.to_row() for fact in facts))


def read_part(place: Path, data: Data) -> Data:
    return read(place, data.name)


@dataclass(frozen=True)
class Training:
    """One training: of what, in which order, and what is asked of it; `key` is all that decides its answers.

    `recipe` are options of `train`; with `like`, a folder that `train` wrote, all but the corpus and the seed is its.
    """

    name: str
    corpus: str
    facts: str
    seed: int
    recipe: dict[str, Any]
    like: str
    keeps_model: bool
    key: dict[str, Any]


def training(
    name: str,
    data: Data,
    facts: Path,
    seed: int,
    recipe: dict[str, Any],
    removed: Sequence[str] = (),
    corpus: str = "",
    like: str = "",
    keeps_model: bool = False,
) -> Training:
    """A training on `data`, or on `corpus`, which is it without the examples `removed`; `facts` is what it is asked.

    `like` is a training by this recipe on all of `data`: `recipe` stands for it in the key.
    """
    key = {
        "data_sha256": data.sha256,
        "removed_sha256": _sha256("\n".join(sorted(removed)).encode()),
        "asked_sha256": _sha256(facts.read_bytes()),
        "recipe": recipe,
        "seed": seed,
        "keeps_model": keeps_model,
        "code_sha256": _sha256(b"".join((ROOT / path).read_bytes() for path in DECIDES)),
        "versions": library_versions(),
    }
    return Training(name, corpus or data.corpus, str(facts), seed, recipe, like, keeps_model, key)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def train_one(job: Training, out: Path) -> None:
    """Trains and asks; in the kept folder stay the answers, a note of the time, and the model where it is asked for."""

    def make(place: Path) -> None:
        start, model = time.perf_counter(), place / MODEL
        if not (model / MANIFEST).is_file():
            how = {"like": job.like} if job.like else job.recipe
            options = TrainConfig(corpus=job.corpus, output=str(model), seed=job.seed, quiet=True, **how)
            train.run(options)
        asked = parse_facts(Path(job.facts).read_bytes(), job.facts)
        trained = time.perf_counter()
        said = answers(load_last(str(model)), asked)
        (place / ANSWERS).write_bytes(jsonl_bytes(answer.to_row() for answer in said))
        seconds = {"train": round(trained - start, 1), "ask": round(time.perf_counter() - trained, 1)}
        (place / "seconds.json").write_text(json.dumps(seconds))
        if not job.keeps_model:
            delete_tree(str(model))

    Kept(out).folder(job.name, job.key, make)


def train_all(jobs: Sequence[Training], out: Path, workers: int, threads: int = 1, together: int = 1) -> None:
    """Does the trainings that are not kept, `workers` at a time, `together` in a process of its own with as many
    `threads`; with 0 workers, in this one.

    A training that was begun by a run that was killed goes on to its end and is kept, as its process is not this one's.
    """
    kept = Kept(out)
    missing = [job for job in jobs if not kept.finished(job.name, job.key)]
    if len(missing) < len(jobs):
        say(f"training: {len(jobs) - len(missing)} of {len(jobs)} kept, used again")
    if workers == 0:
        for job in missing:
            train_one(job, out)
        return
    start, done = time.perf_counter(), 0
    with ThreadPoolExecutor(workers) as pool:
        shares = [missing[first : first + together] for first in range(0, len(missing), together)]
        futures = {pool.submit(_in_a_process, share, out, threads): share for share in shares}
        for future in as_completed(futures):
            if future.exception():
                pool.shutdown(cancel_futures=True)
            future.result()
            done, passed = done + len(futures[future]), time.perf_counter() - start
            left = passed / done * (len(missing) - done) / 60
            say(f"training: {futures[future][-1].name} done, {done} of {len(missing)}; about {left:.0f} min left")


def _in_a_process(jobs: Sequence[Training], out: Path, threads: int) -> None:
    command = [sys.executable, "-m", "bench.quality.lm", str(out)]
    alone = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    given = json.dumps([asdict(job) for job in jobs])
    done = subprocess.run(command, input=given, text=True, env=alone, check=False, cwd=ROOT)
    if done.returncode:
        names = f"{jobs[0].name} to {jobs[-1].name}" if len(jobs) > 1 else jobs[0].name
        raise TrainingFailed(f"training {names}: its process ended with {done.returncode}; --resume goes on from it")


@dataclass(frozen=True)
class Said:
    """What one training's model answers: of each fact whether it is known and the target's log probability (nats)."""

    known: dict[str, bool]
    log_probability: dict[str, float]
    seconds: float


def said(job: Training, out: Path) -> Said:
    place = Kept(out).place(job.name, job.key)
    rows = [json.loads(line) for line in (place / ANSWERS).read_text().splitlines()]
    return Said(
        {row["fact_id"]: row["known"] for row in rows},
        {row["fact_id"]: row["log_probability"] for row in rows},
        sum(json.loads((place / "seconds.json").read_text()).values()),
    )


def model_of(job: Training, out: Path) -> str:
    return str(Kept(out).place(job.name, job.key) / MODEL)


if __name__ == "__main__":
    progress.set_quiet(True)
    for row in json.loads(sys.stdin.read()):
        train_one(Training(**row), Path(sys.argv[1]))
