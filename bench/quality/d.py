"""D: agreement with retraining, in general (the linear datamodeling score) and by one step (tail-patch).

corpus + facts -> a part of it (lm.py) -> one training on all of it -> facts -> scores `[facts, examples]` of every arm
  -> `subsets` trainings, each on another half of the examples -> the target's log probability `[facts, subsets]`
  -> one optimizer step on each example alone -> the gain in the target's probability `[facts, examples]`

LDS (TRAK, arXiv 2303.14186): a fact's rank correlation, over the subsets, of the sum of the scores of the examples in a
subset with the log probability that the LM trained on that subset gives the target; the mean over facts. All trainings
start from the same weights and read what they share in the same order (attribution/training.py).

Tail-patch (TrackStar, arXiv 2410.17413): how much the probability of the target rises by one training step on a
proponent, the mean over a fact's best k. The step goes on with the training: a batch that holds this example alone,
with the optimizer's second moments, at the learning rate that the training ended with (`config.learning_rate`). At its
highest rate a step on what is known by heart, where the moments are small, makes the target less probable.

The arms, all of the one checkpoint, of the product by its `trace` with every example as a candidate: `fused`, `bm25`,
`dense` and `gradient` of an index with its defaults; the variants of the gradient signal (a2.py), each with an index of
its own; what the product has no option for (raw.py), among it an ablation of each choice of the default gradients;
`random`; the peers (peers.py). `seconds` of an arm are those of its index and of a trace with the default candidates,
or of all that a peer does, with the same threads: what is compared is to have cost no more. (Those of raw.py share one
time, of all together. The trace that ranks every example is for the scores here alone.)
"""

import json
import os
import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from attribution.ascent import ascended, loss_gradient
from attribution.checkpoint import load_checkpoint, read_meta
from attribution.held_out import losses
from attribution.optimizer_state import read_whole_moments
from attribution.sequences import encode_example, encode_fact
from bench.quality import a1, a2, lm, metrics, peers, raw
from bench.quality.data import Data, say
from bench.quality.kept import Kept
from pipelines import index, progress
from pipelines.config import IndexConfig
from pipelines.resources import resolve_checkpoints
from pipelines.stage import library_versions
from schemas.errors import ConfigError
from schemas.jsonl import jsonl_bytes
from schemas.manifest import FORMAT_VERSION
from schemas.records import Fact

SEED = 0
LEAST_FACTS = 4
KS = (1, 3, 5, 10)
SIGNALS = {"fused": "fused", "bm25": "bm25", "dense": "dense", "gradient": "gradient"}
RAW = (*raw.PLAIN, *raw.CONTRAST, *raw.ABLATIONS)
PASSAGES = 4  # of an example at most: a long one is cut
TOGETHER = 10  # trainings a process: to start one takes some 6 s


@dataclass(frozen=True)
class Plan:
    """How much is measured. `recipe` holds options of `train`; of the part's facts at most `facts` are asked."""

    part: lm.Part
    recipe: dict[str, Any]
    facts: int
    subsets: int = 100
    gradients: tuple[a2.Gradient, ...] = a2.GRADIENTS


SETTINGS = {
    # 903 facts in 1,000 sentences of 13 words.
    "small": Plan(
        part=lm.Part(sentences=1000, most_words=20, most_statements=8, per_object=20, cue=1),
        recipe={
            "layers": 2,
            "width": 64,
            "heads": 4,
            "context": 96,
            "vocab_size": 2048,
            "epochs": 12,
            "batch_examples": 16,
            "learning_rate": 6e-3,
            "num_checkpoints": 1,
        },
        facts=200,
    ),
    "full": Plan(
        part=lm.Part(sentences=4000, most_words=40, most_statements=12, per_object=40, cue=1),
        recipe={
            "layers": 4,
            "width": 128,
            "heads": 4,
            "context": 96,
            "vocab_size": 4096,
            "epochs": 20,
            "batch_examples": 16,
            "learning_rate": 3e-3,
            "num_checkpoints": 1,
        },
        facts=1000,
        gradients=tuple(variant for variant in (*a2.GRADIENTS, *a2.MORE_GRADIENTS) if variant.last),
    ),
}


@dataclass(frozen=True, eq=False)
class Learned:
    """The part of the data that the LMs read, the training on all of it, its checkpoint and the facts asked."""

    part: Data
    job: lm.Training
    checkpoint: str
    learning_rate: float
    facts: list[Fact]
    asked: Path


def run(
    setting: str,
    data: Data,
    out: Path,
    encoder: str = "",
    plan: Plan | None = None,
    workers: int | None = None,
    programs: peers.Programs | None = None,
) -> dict[str, Any]:
    """The result of the track; what is expensive is kept in `out`. `encoder` is a folder, by default MiniLM's; `plan`
    stands in for that of the setting, `workers` for one a core (0: trainings in this process); `programs` are the
    peers'."""
    start, out, plan = time.perf_counter(), out.resolve(), plan or SETTINGS[setting]
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    encoder, encoder_version = (encoder, "given") if encoder else a1.default_encoder()
    versions = library_versions() | {"encoder": encoder_version}
    programs = programs or {}
    peer_versions, left_out = peers.versions(programs), peers.left_out(programs)
    learned = learn(data, plan, out)
    drawn = draw(len(learned.part.ids), plan.subsets)
    retrained = retrain(learned, plan, drawn, out, workers)
    trained = time.perf_counter()
    gains = measure_gains(learned, out)
    patched = time.perf_counter()
    scores, seconds = score(learned, plan, out, encoder, versions)
    key = learned.job.key | {"track": "D"}
    for arm, (found, took) in peers.measure(
        programs, out, key, learned.checkpoint, learned.part.texts, learned.facts
    ).items():
        scores[arm], seconds[arm] = found, took
    scored = time.perf_counter()
    said = [lm.said(job, out) for job in retrained]
    outcomes = np.array([[one.log_probability[fact.id] for one in said] for fact in learned.facts])
    return {
        "track": "D",
        "data": data.name,
        "data_sha256": data.sha256,
        "examples": len(learned.part.ids),
        "facts": len(learned.facts),
        "knowledge": {
            "answered_with_all_examples": answered(learned, out),
            "answered_with_half_of_them": float(np.mean([[one.known[f.id] for f in learned.facts] for one in said])),
        },
        **figures(scores, seconds, outcomes, drawn, gains, [*(v.name for v in plan.gradients), *RAW]),
        "left_out": left_out,
        "config": {
            "track": "D",
            "setting": setting,
            **asdict(plan),
            "learning_rate": learned.learning_rate,
            "ks": KS,
            "seed": SEED,
        },
        "seed": SEED,
        "versions": versions | peer_versions,
        "seconds": {
            "train": round(trained - start, 1),
            "step": round(patched - trained, 1),
            "score": round(scored - patched, 1),
            "all": round(time.perf_counter() - start, 1),
            "a training": round(float(np.mean([one.seconds for one in said])), 1),
        },
    }


def learn(data: Data, plan: Plan, out: Path) -> Learned:
    """Trains on the whole part, in this process. Raises ConfigError where it states too few facts."""
    key = {"data_sha256": data.sha256, "part": asdict(plan.part), "code_sha256": a1.code_sha256()}
    place = Kept(out).folder("part", key, lambda place: lm.write_part(data, plan.part, place))
    part = lm.read_part(place, data)
    if len(part.facts) < LEAST_FACTS:
        raise ConfigError(
            f"--data: expected at least {LEAST_FACTS} facts that {plan.part.sentences} short sentences state, found "
            f"{len(part.facts)}; give others"
        )
    facts = sorted(random.Random(SEED).sample(part.facts, min(plan.facts, len(part.facts))), key=lambda fact: fact.id)
    rows = [fact.to_row() for fact in facts]
    write = lambda place: (place / "facts.jsonl").write_bytes(jsonl_bytes(rows))  # noqa: E731
    asked = Kept(out).folder("facts", {"facts": rows}, write) / "facts.jsonl"
    say(
        f"the LM reads {len(part.ids)} sentences; {len(facts)} of the {len(part.facts)} facts that they state are asked"
    )
    job = lm.training("train", part, asked, SEED, plan.recipe, keeps_model=True)
    lm.train_all([job], out, workers=0)
    [checkpoint] = resolve_checkpoints((lm.model_of(job, out),))
    return Learned(part, job, checkpoint, read_meta(checkpoint)["learning_rate"], facts, asked)


def answered(learned: Learned, out: Path) -> float:
    known = lm.said(learned.job, out).known
    return float(np.mean([known[fact.id] for fact in learned.facts]))


def draw(examples: int, subsets: int) -> np.ndarray:
    """`[subsets, examples]` bool: half of the examples each, drawn one by one without replacement."""
    generator, drawn = np.random.default_rng(SEED), np.zeros((subsets, examples), dtype=bool)
    for row in drawn:
        row[generator.choice(examples, examples // 2, replace=False)] = True
    return drawn


def retrain(learned: Learned, plan: Plan, drawn: np.ndarray, out: Path, workers: int) -> list[lm.Training]:
    """A training on each subset, in the data order of that on all examples."""
    part, like, jobs = learned.part, lm.model_of(learned.job, out), []
    for number, row in enumerate(drawn):
        kept = [{"id": i, "text": text} for i, text, has in zip(part.ids, part.texts, row, strict=True) if has]
        removed = [i for i, has in zip(part.ids, row, strict=True) if not has]

        def write(place: Path, rows: list[dict[str, str]] = kept) -> None:
            (place / "corpus.jsonl").write_bytes(jsonl_bytes(rows))

        name = f"subset{number:03d}"
        key = {"data_sha256": part.sha256, "kept": [one["id"] for one in kept]}
        corpus = Kept(out).folder(name, key, write) / "corpus.jsonl"
        jobs.append(lm.training(f"train_{name}", part, learned.asked, SEED, plan.recipe, removed, str(corpus), like))
    lm.train_all(jobs, out, workers, together=TOGETHER)
    return jobs


def measure_gains(learned: Learned, out: Path) -> np.ndarray:
    """`tail_patch` of all examples, kept."""
    key = learned.job.key | {"code_sha256": a1.code_sha256(), "facts": [fact.id for fact in learned.facts]}

    def make(place: Path) -> None:
        found = tail_patch(learned.checkpoint, learned.part.texts, learned.facts, learned.learning_rate)
        np.save(place / "gains.npy", found)

    return np.load(Kept(out).folder("gains", key, make) / "gains.npy")


def tail_patch(path: str, texts: Sequence[str], facts: Sequence[Fact], learning_rate: float) -> np.ndarray:
    """`[facts, texts]`: what one step on a text alone adds to the probability of a fact's target."""
    checkpoint = load_checkpoint(path)
    state = read_whole_moments(path, checkpoint.model, checkpoint.meta, checkpoint.trainable)
    if state is None:
        raise ConfigError(f"{path}: expected the optimizer's second moments, which `train` writes, found none")
    (moments, eps, _), rate = state, learning_rate / checkpoint.meta["recipe"]["tokens_per_batch"]
    queries = [encode_fact(checkpoint, fact) for fact in facts]
    before, gains = np.exp(-losses(checkpoint, queries)), np.empty((len(facts), len(texts)))
    with progress.bar("one step an example", len(texts), "examples") as advance:
        for column, text in enumerate(texts):
            gradient = loss_gradient(checkpoint, [encode_example(checkpoint, text)])
            stepped = ascended(checkpoint, gradient, moments, eps, -rate)
            gains[:, column] = np.exp(-losses(stepped, queries)) - before
            advance(1)
    return gains


def score(
    learned: Learned, plan: Plan, out: Path, encoder: str, versions: dict[str, str]
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """(by arm the scores `[facts, examples]`, the seconds of index and trace), kept."""
    key = learned.job.key | {"versions": versions, "format_version": FORMAT_VERSION, "code_sha256": a1.code_sha256()}
    key |= {"facts": [fact.id for fact in learned.facts], "track": "D"}
    scores: dict[str, np.ndarray] = {}
    seconds: dict[str, float] = {}

    def keep(name: str, more: dict[str, Any], found: Callable[[Path], tuple[dict[str, np.ndarray], float]]) -> None:
        def make(place: Path) -> None:
            made, took = found(place)
            np.savez(place / "scores.npz", **made)
            (place / "seconds.json").write_text(json.dumps(round(took, 1)))

        place = Kept(out).folder(f"scores_{name}", key | more, make)
        with np.load(place / "scores.npz") as arms:
            scores.update({arm: arms[arm] for arm in arms.files})
            seconds.update(dict.fromkeys(arms.files, float(json.loads((place / "seconds.json").read_text()))))

    def by_index(name: str, arms: dict[str, str], **options: Any) -> None:
        options |= {"max_tokens": plan.recipe["context"] - 2, "batch_tokens": raw.BATCH_TOKENS, "seed": SEED}

        def found(place: Path) -> tuple[dict[str, np.ndarray], float]:
            shutil.rmtree(place)  # what a run that was stopped has left: its time is not known
            place.mkdir()
            start, folder = time.perf_counter(), place / "index"
            given = {"corpus": learned.part.corpus, "checkpoints": (learned.checkpoint,), "encoder": encoder}
            index.run(IndexConfig(output=str(folder), **(given | options)))
            for _ in a1.traces(place, folder, learned.facts, "timed"):
                pass
            took = time.perf_counter() - start
            return traced(place, folder, learned, arms), took

        keep(name, {"options": options}, found)

    by_index("index", SIGNALS)
    for variant in plan.gradients:
        by_index(variant.name, {variant.name: "gradient"}, encoder="", signals="bm25,gradient", **variant.options)

    def by_features(place: Path) -> tuple[dict[str, np.ndarray], float]:
        start = time.perf_counter()
        return raw.scores(learned.checkpoint, learned.part.texts, learned.facts, RAW), time.perf_counter() - start

    keep("raw", {}, by_features)
    return scores, seconds


def traced(place: Path, folder: Path, learned: Learned, signals: dict[str, str]) -> dict[str, np.ndarray]:
    """By arm the scores `[facts, examples]` that `trace` gives when every example is a candidate."""
    part, facts = learned.part, learned.facts
    found = {arm: np.full((len(facts), len(part.ids)), np.nan) for arm in signals}
    for row, (_, proponents) in enumerate(a1.traces(place, folder, facts, top_k=PASSAGES * len(part.ids))):
        for p in proponents:
            for arm, signal in signals.items():
                here = found[arm][row], part.row_of[p.example_id]
                here[0][here[1]] = np.fmax(here[0][here[1]], p.score if signal == "fused" else p.signals[signal])
    for arm, scores in found.items():
        if np.isnan(scores).any():
            raise AssertionError(f"{arm}: {int(np.isnan(scores).sum())} of the examples were no candidates")
    return found


def rank_correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`[rows]`: Spearman's of each row of `a` with that of `b`, equal values at their mean rank; 0 for a constant."""
    ranks = [rankdata(values, axis=1) for values in (a, b)]
    left, right = (r - r.mean(axis=1, keepdims=True) for r in ranks)
    norms = np.sqrt((left**2).sum(axis=1) * (right**2).sum(axis=1))
    return np.divide((left * right).sum(axis=1), norms, out=np.zeros(len(norms)), where=norms > 0)


def lds(scores: np.ndarray, outcomes: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """`[facts]`: of scores `[facts, examples]`, with the outcomes `[facts, subsets]`."""
    return rank_correlations(scores.astype(np.float64) @ drawn.T.astype(np.float64), outcomes)


def patched(scores: np.ndarray, gains: np.ndarray, ks: Sequence[int]) -> np.ndarray:
    """`[facts, ks]`: the mean gain of each fact's best k examples, the smaller row first where scores are equal."""
    order = np.argsort(-scores, axis=1, kind="stable")
    best = np.take_along_axis(gains, order[:, : max(ks)], axis=1)
    return np.stack([best[:, :k].mean(axis=1) for k in ks], axis=1)


def figures(
    scores: dict[str, np.ndarray],
    seconds: dict[str, float],
    outcomes: np.ndarray,
    drawn: np.ndarray,
    gains: np.ndarray,
    pure: Sequence[str],
) -> dict[str, Any]:
    """`arms`, `paired` (the best pure gradient arm by LDS less each other one, fact by fact) and `checks`."""
    columns = ["lds", *(f"tail_patch_at_{k}" for k in KS)]
    table = {
        arm: np.column_stack([lds(found, outcomes, drawn), patched(found, gains, KS)]) for arm, found in scores.items()
    }
    every = gains.mean(axis=1, keepdims=True)  # what any example gives, by expectation
    table["random"] = np.concatenate([np.zeros_like(every), np.repeat(every, len(KS), axis=1)], axis=1)
    best = max(pure, key=lambda arm: (table[arm][:, 0].mean(), arm))
    others = [arm for arm in table if arm != best]
    joined = np.concatenate([*table.values(), *(table[best] - table[arm] for arm in others)], axis=1)
    told = np.split(metrics.intervals(joined, SEED), len(table) + len(others), axis=1)
    arms: dict[str, Any] = {}
    for arm, found in zip(table, told, strict=False):
        arms[arm] = {name: mean for name, (mean, _, _) in zip(columns, found.T.tolist(), strict=True)}
        arms[arm] |= {f"{name}_interval": ends for name, (_, *ends) in zip(columns, found.T.tolist(), strict=True)}
        if arm in seconds:
            arms[arm]["seconds"] = seconds[arm]
    paired = {
        f"{best} - {arm}": {
            name: {"difference": mean, "interval": ends}
            for name, (mean, *ends) in zip(columns, found.T.tolist(), strict=True)
        }
        for arm, found in zip(others, told[len(table) :], strict=True)
    }
    return {"arms": arms, "paired": paired, "checks": checks(arms, paired, best)}


def checks(arms: dict[str, Any], paired: dict[str, Any], best: str) -> list[dict[str, Any]]:
    """What is to hold, each with what was found: `holds`. `best` is the best pure gradient arm."""
    found = []
    for peer in [arm for arm in peers.ARMS if arm in arms]:
        for name, row in paired[f"{best} - {peer}"].items():
            low = row["interval"][0]
            what = f"{name.replace('_', ' ')}, {best} - {peer}: above (low end > 0)"
            found.append({"what": what, "found": low, "holds": low > 0})
        ratio = round(arms[best]["seconds"] / arms[peer]["seconds"], 6)
        found.append({"what": f"seconds, {best} / {peer} <= 1", "found": ratio, "holds": ratio <= 1})
    return found
