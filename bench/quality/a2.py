"""A2: finding the statements of what an LM says, by every signal over the sentences that it was trained on.

corpus + facts -> a part of it (lm.py) -> one training, its checkpoints -> the facts that it answers greedily
  -> an index an arm or group of arms -> trace -> rankings of every arm -> figures

The arms, each asked for the same facts over the same sentences:

- `fused`: what the product's `trace` ranks with its defaults, of an index with all checkpoints; `bm25` (subject +
  object), `dense` and `gradient` are the signals in it, as `evaluate` ranks them;
- `fused_reranked`: the order that `trace --rerank` gives; `gradient_exact`: its exact products, of its shortlist alone,
  which the fused order has chosen;
- `bm25_prompt_target`: the same index asked by prompt + target;
- `dense_hidden`: the dense signal with the LM's own last hidden states, their mean over the tokens;
- the variants of the gradient signal (`GRADIENTS`, in the full setting `MORE_GRADIENTS`, too), each with an index of
  its own;
- what the product has no option for (raw.py), of the last checkpoint: `gradient_dot`, `gradient_embedding`,
  `kfac_contrast`, in the full setting an ablation of each choice of the default gradients;
- `rrf`: reciprocal rank fusion of `bm25`, `dense` and `gradient`;
- `bergson_trackstar_default`, `bergson_trackstar`, `kronfluence_ekfac`: the peers (peers.py), of the last checkpoint;
- `random`: what chance gives, by formula.

Words find these statements very well; the gradient arms are compared among each other. The pure ones are those that no
other signal has chosen candidates for.
"""

import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench.quality import a1, lm, metrics, peers, raw
from bench.quality.data import Data, say
from bench.quality.kept import Kept
from bench.quality.scores import Opened
from pipelines import index
from pipelines.config import IndexConfig
from pipelines.evaluate import signal_ranking
from pipelines.rerank import EXACT
from pipelines.resources import resolve_checkpoints
from pipelines.stage import library_versions
from pipelines.storage import read_manifest
from schemas.errors import ConfigError
from schemas.facts import text_query
from schemas.manifest import FORMAT_VERSION, MANIFEST
from schemas.rankings import best_per_example
from schemas.records import Fact, Proponent

SEED = 0
LEAST_ANSWERED = 4
SIGNALS = {"fused": "fused", "bm25": "bm25", "dense": "dense", "gradient": "gradient"}
COSINE, PEERS = "gradient_cosine", tuple(peers.ARMS)
TRACKSTARS = ("bergson_trackstar", "bergson_trackstar_default")
TIMES_PEER, TIMES_COSINE = 5.0, 3.0  # what the best pure gradient arm's MRR is to be of theirs


@dataclass(frozen=True)
class Gradient:
    """A variant of the gradient signal: of the last checkpoint or of all, with these options of `index`."""

    name: str
    last: bool
    options: dict[str, Any] = field(default_factory=dict)


TRACKSTAR = {"gradients": "trackstar"}
PLAIN = TRACKSTAR | {"optimizer_correction": "none", "curvature": "none"}
GRADIENTS = (
    Gradient(COSINE, True, PLAIN),
    Gradient("gradient_adam", True, TRACKSTAR | {"curvature": "none"}),
    Gradient("gradient_trackstar", True, TRACKSTAR),
    Gradient("gradient_kfac", True),
    Gradient("gradient_kfac_32", True, {"projection_dim": 32}),
    Gradient("gradient_kfac_16", True, {"projection_dim": 16}),
)
MORE_GRADIENTS = (
    Gradient("gradient_tracin", False, PLAIN),
    Gradient("gradient_trackstar_32", True, TRACKSTAR | {"projection_dim": 32}),
)


@dataclass(frozen=True)
class Plan:
    """How much is measured. `recipe` holds options of `train`; `rerank` is the shortlist of exact products."""

    part: lm.Part
    recipe: dict[str, Any]
    rerank: int
    gradients: tuple[Gradient, ...] = GRADIENTS
    raw: tuple[str, ...] = (*raw.PLAIN, *raw.CONTRAST)


RECIPE = {
    "layers": 4,
    "width": 256,
    "heads": 4,
    "context": 96,
    "vocab_size": 8192,
    "epochs": 14,
    "batch_examples": 32,
    "learning_rate": 2e-3,
    "num_checkpoints": 5,
}
SETTINGS = {
    # Of T-REx 3,351 facts, of which 1,849 are told as they are asked; about one in five of these is answered. The
    # training takes some 34 minutes on one core.
    "small": Plan(
        part=lm.Part(sentences=6500, most_words=60, most_statements=12, per_object=40, cue=1), recipe=RECIPE, rerank=10
    ),
    "full": Plan(
        part=lm.Part(sentences=20_000, most_words=60, most_statements=12, per_object=100, cue=1),
        recipe=RECIPE | {"epochs": 20},
        rerank=100,
        gradients=(*GRADIENTS, *MORE_GRADIENTS),
        raw=(*raw.PLAIN, *raw.CONTRAST, *raw.ABLATIONS),
    ),
}


@dataclass(frozen=True, eq=False)
class Learned:
    """The part of the data that the LM reads, its training, its checkpoints in order and the facts it answers."""

    part: Data
    job: lm.Training
    checkpoints: tuple[str, ...]
    facts: list[Fact]


def run(
    setting: str,
    data: Data,
    out: Path,
    encoder: str = "",
    plan: Plan | None = None,
    workers: int = 1,
    programs: peers.Programs | None = None,
) -> dict[str, Any]:
    """The result of the track; what is expensive is kept in `out`. `encoder` is a folder, by default MiniLM's; `plan`
    stands in for that of the setting, `workers` is 0 for a training in this process, `programs` are the peers'."""
    start, out, plan = time.perf_counter(), out.resolve(), plan or SETTINGS[setting]
    encoder, encoder_version = (encoder, "given") if encoder else a1.default_encoder()
    versions = library_versions() | {"encoder": encoder_version}
    programs = programs or {}
    peer_versions, left_out = peers.versions(programs), peers.left_out(programs)
    learned = learn(data, plan, out, workers)
    trained = time.perf_counter()
    main, places = indexes(learned, plan, out, encoder, versions)
    indexed = time.perf_counter()
    key = learned.job.key
    scored = peers.measure(programs, out, key, learned.checkpoints[-1], learned.part.texts, learned.facts)
    peered = time.perf_counter()
    key |= {
        "versions": versions,
        "code_sha256": a1.code_sha256(),
        "facts": [fact.id for fact in learned.facts],
        "plan": asdict(plan),
    }
    place = Kept(out).folder("rankings", key, lambda place: make_rankings(place, learned, plan, main, places))
    with np.load(place / "rankings.npz") as found:
        rankings = {name: found[name] for name in found.files}
    rankings |= {arm: a1.padded(best_rows(scores)) for arm, (scores, _) in scored.items()}
    ranked = time.perf_counter()
    say("measuring")
    return {
        "track": "A2",
        "data": data.name,
        "data_sha256": data.sha256,
        "examples": len(learned.part.ids),
        "facts": len(learned.facts),
        "facts_asked": len(learned.part.facts),
        **figures(rankings, learned.part, learned.facts, plan),
        "left_out": left_out,
        "config": {"track": "A2", "setting": setting, **asdict(plan), "seed": SEED, "top_k": a1.TOP, "rrf_k": a1.RRF_K},
        "fusion": read_manifest(str(main), "index").details["fusion"],
        "seed": SEED,
        "versions": versions | peer_versions,
        "seconds": {
            "train": round(trained - start, 1),
            "index": round(indexed - trained, 1),
            "peers": round(peered - indexed, 1),
            "rank": round(ranked - peered, 1),
            "all": round(time.perf_counter() - start, 1),
        },
    }


def learn(data: Data, plan: Plan, out: Path, workers: int) -> Learned:
    """Trains the LM, alone and so on all cores. Raises ConfigError where it answers too few facts."""
    key = {"data_sha256": data.sha256, "part": asdict(plan.part), "code_sha256": a1.code_sha256()}
    place = Kept(out).folder("part", key, lambda place: lm.write_part(data, plan.part, place))
    part, asked = lm.read_part(place, data), place / "facts.jsonl"
    say(f"the LM reads {len(part.ids)} sentences, and is asked the {len(part.facts)} facts that they state")
    job = lm.training("train", part, asked, SEED, plan.recipe, keeps_model=True)
    lm.train_all([job], out, workers, threads=len(os.sched_getaffinity(0)))
    known = lm.said(job, out).known
    facts = [fact for fact in part.facts if known[fact.id]]
    if len(facts) < LEAST_ANSWERED:
        raise ConfigError(
            f"--data: expected at least {LEAST_ANSWERED} facts that the LM answers, found {len(facts)} of "
            f"{len(part.facts)} asked; give facts that more short sentences state"
        )
    say(f"it answers {len(facts)} of them")
    return Learned(part, job, resolve_checkpoints((lm.model_of(job, out),)), facts)


def indexes(
    learned: Learned, plan: Plan, out: Path, encoder: str, versions: dict[str, str]
) -> tuple[Path, dict[str, Path]]:
    """(the index with the product's defaults, those of the other arms by name)."""
    last = learned.checkpoints[-1:]

    def make(name: str, checkpoints: tuple[str, ...] = (), encoder: str = "", **options: Any) -> Path:
        options |= {"max_tokens": plan.recipe["context"] - 2, "batch_tokens": raw.BATCH_TOKENS, "seed": SEED}

        def make_index(place: Path) -> None:
            if not (place / "index" / MANIFEST).is_file():
                say(f"{name}: indexing")
                given = {"corpus": learned.part.corpus, "checkpoints": checkpoints, "encoder": encoder}
                index.run(IndexConfig(output=str(place / "index"), **given, **options))

        key = learned.job.key | {"versions": versions, "format_version": FORMAT_VERSION, "options": options}
        key |= {"checkpoints": len(checkpoints), "product_sha256": a1.code_sha256(a1.PRODUCT)}
        return Kept(out).folder(name, key, make_index) / "index"

    main = make("index", learned.checkpoints, encoder)
    places = {"dense_hidden": make("index_dense_hidden", encoder=last[0], signals="bm25,dense")}
    for variant in plan.gradients:
        checkpoints = last if variant.last else learned.checkpoints
        places[variant.name] = make(f"index_{variant.name}", checkpoints, signals="bm25,gradient", **variant.options)
    return main, places


def make_rankings(place: Path, learned: Learned, plan: Plan, main: Path, places: dict[str, Path]) -> None:
    """Writes `rankings.npz`: of each arm the rows `[facts, at most 100]`, padded with -1."""
    part, facts, found = learned.part, learned.facts, {}

    def rank(folder: Path, signals: dict[str, str], **options: Any) -> None:
        found.update({arm: [] for arm in signals})
        name = f"trace_{'_'.join(signals)}"  # another index' rankings go to another folder
        for _, proponents in a1.traces(place, folder, facts, name, **options):
            for arm, signal in signals.items():
                found[arm].append([part.row_of[example] for example in by_signal(proponents, signal)])

    rank(main, SIGNALS)
    rank(main, {"fused_reranked": "fused", EXACT: EXACT}, rerank=plan.rerank)
    for arm, folder in places.items():
        rank(folder, {arm: "dense" if arm == "dense_hidden" else "gradient"})
    opened = Opened(main, part.row_of)
    found["bm25_prompt_target"] = [opened.bm25_ranking(text_query(fact, "prompt_target"), a1.TOP) for fact in facts]
    ranked = zip(*(found[name] for name in ("bm25", "dense", "gradient")), strict=True)
    found["rrf"] = [a1.fused_by_rank(list(rankings)) for rankings in ranked]
    say("gradients that no index holds")
    made = raw.scores(learned.checkpoints[-1], part.texts, facts, plan.raw)
    found |= {arm: best_rows(scores) for arm, scores in made.items()}
    np.savez(place / "rankings.npz", **{name: a1.padded(rankings) for name, rankings in found.items()})


def by_signal(proponents: list[Proponent], signal: str) -> list[str]:
    """Example ids, best first; exact products are there for a shortlist alone."""
    if signal != EXACT:
        return signal_ranking(proponents, signal, a1.TOP)[: a1.TOP]
    short = [p for p in proponents if EXACT in p.signals]
    short.sort(key=lambda p: (-p.signals[EXACT], p.example_id, p.start))
    return [p.example_id for p in best_per_example(short)]


def best_rows(scores: np.ndarray) -> list[list[int]]:
    """Of scores `[facts, examples]` each fact's best rows, the smaller one first where these are equal."""
    every = np.arange(scores.shape[1])
    return [a1.by_score(row, every)[: a1.TOP] for row in scores]


def figures(rankings: dict[str, np.ndarray], part: Data, facts: list[Fact], plan: Plan) -> dict[str, Any]:
    """All that is reported of the rankings; `paired` holds the best pure gradient arm's differences as well."""
    known = [part.proponents(fact) for fact in facts]
    arms = {name: metrics.per_fact(table, known) for name, table in rankings.items()}
    arms["random"] = np.array([metrics.chance(len(part.ids), len(rows), a1.TOP) for rows in known])
    pure = ["gradient", *(variant.name for variant in plan.gradients), *plan.raw]
    best = max(pure, key=lambda name: (arms[name][:, 0].mean(), name))
    compared = metrics.compare(arms, "fused", SEED)
    beside = {name: arms[name] for name in (best, COSINE, *PEERS) if name in arms}
    compared["paired"] |= metrics.compare(beside, best, SEED)["paired"]
    return {
        **compared,
        "checks": checks(compared["arms"], compared["paired"], best),
        **a1.details(arms, rankings, ("fused", "bm25", "gradient", best), part, facts),
    }


def checks(arms: dict[str, Any], paired: dict[str, Any], best: str) -> list[dict[str, Any]]:
    """What is to hold, each with what was found: `holds`. `best` is the best pure gradient arm."""
    found = []
    for name, times in (*((name, TIMES_PEER) for name in TRACKSTARS), (COSINE, TIMES_COSINE)):
        if name in arms:
            ratio = round(arms[best]["mrr"] / max(arms[name]["mrr"], 1e-6), 6)
            what = f"MRR of the best pure gradient arm ({best}) / {name} >= {times:g}"
            found.append({"what": what, "found": ratio, "holds": ratio >= times})
    other = max((name for name in arms if name != "fused"), key=lambda name: arms[name]["mrr"])
    high = paired[f"fused - {other}"]["mrr"]["interval"][1]
    what = f"MRR, fused - the best other arm ({other}): not below (high end >= 0)"
    return [*found, {"what": what, "found": high, "holds": high >= 0}]
