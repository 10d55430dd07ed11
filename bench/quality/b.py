"""B: removing the cause. What a signal ranks first is taken out, the LM is trained anew, and facts are gone or are not.

corpus + facts -> a part of it (lm.py) -> trainings with nothing removed -> the facts that each selecting seed knows
  -> index and trace with the first seed's model -> what each arm removes -> clean -> train --like -> facts lost

Some of the facts that the LM surely says on all selecting seeds, and whose subject does not name the object, are aimed
at: one removal takes out the union of what they rank first, k examples a fact (k = 1, 3, 5, and as many as are
annotated as stating it, + 2). The others are to stay.

The arms, each measured on seeds that selected nothing:

- `none`: nothing is removed; every effect is the difference to it, on the same seed;
- `annotated`: all examples that are annotated as stating one of the facts;
- `random`: as many as `fused` removes at annotated + 2, drawn as `flag` draws its control, and none that is annotated;
- `fused`, `bm25` and the gradient arms (`RANKED`): what the product's `trace` ranks first, by one signal or by all.

`lost` is, of the aimed facts that `none` says greedily, the share that the arm's LM does not say; `area` is the area
under lost over k = 1, 3, 5 (forgetting.py). An arm without a curve has its one removal in place of annotated + 2.
"""

import hashlib
import json
import math
import os
import random
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from attribution.removal import control
from bench.quality import a1, forgetting, lm
from bench.quality.data import Data, say
from bench.quality.forgetting import Known
from bench.quality.kept import Kept
from pipelines import clean, index, trace
from pipelines.config import CleanConfig, IndexConfig, TraceConfig
from pipelines.evaluate import signal_ranking
from pipelines.stage import library_versions
from pipelines.storage import delete_tree, read_manifest, read_rankings
from schemas.errors import ConfigError
from schemas.jsonl import jsonl_bytes
from schemas.manifest import FORMAT_VERSION, MANIFEST
from schemas.records import Fact, Removal

SEED, FACTS = 0, "facts.jsonl"
MORE = 2  # examples a fact beyond as many as are annotated
LAST = f"annotated + {MORE}"
# Probability of the target on each selecting seed. Of facts of 0.5 and more 0.92 are said on other seeds, and of these
# 0.92 once sentences of others are gone; of facts of 0.95 and more it is 0.97 and 0.96 (docs/log.md).
SURE = 0.95
LEAST_KNOWN = 4
AIMED_SHARE = 0.6  # of the known facts, at most; the others tell what stays
# Arms by the signal of a ranking that they follow; a new gradient arm is one more line.
RANKED = {"fused": "fused", "bm25": "bm25", "gradient": "gradient"}


@dataclass(frozen=True)
class Plan:
    """How much is measured. `recipe` holds options of `train`."""

    part: lm.Part
    recipe: dict[str, Any]
    aimed: int
    ranked: dict[str, str]
    ks: tuple[int, ...] = (1, 3, 5)
    selecting: tuple[int, ...] = (0, 1)
    measuring: tuple[int, ...] = (2, 3, 4)


SETTINGS = {
    # Some 110 s a training of one thread, 47 trainings. The more sentences, the smaller the share that is removed; but
    # of 1,500, which are read 20 times in that time, hardly any fact is surely known (docs/log.md).
    "small": Plan(
        part=lm.Part(sentences=800, most_words=40, most_statements=8, per_object=20, cue=2),
        recipe={
            "layers": 2,
            "width": 128,
            "heads": 4,
            "context": 96,
            "vocab_size": 2048,
            "epochs": 40,
            "batch_examples": 16,
            "learning_rate": 3e-3,
        },
        aimed=25,
        ranked=RANKED,
    ),
    "full": Plan(
        # Of 80 facts 3 to 4 % of the sentences are removed, if it is as many a fact as in the small setting.
        part=lm.Part(sentences=8000, most_words=60, most_statements=12, per_object=40, cue=1),
        recipe={
            "layers": 4,
            "width": 256,
            "heads": 4,
            "context": 96,
            "vocab_size": 8192,
            "epochs": 60,
            "batch_examples": 32,
            "learning_rate": 2e-3,
        },
        aimed=80,
        ranked=RANKED | {"dense": "dense"},
    ),
}


@dataclass(frozen=True, eq=False)
class Selected:
    """The part of the data that the LM reads, its trainings with nothing removed by seed, and what they know."""

    part: Data
    none: dict[int, lm.Training]
    said: dict[int, lm.Said]
    known: int
    named: int
    aimed: list[Fact]
    others: list[Fact]


def run(
    setting: str, data: Data, out: Path, encoder: str = "", plan: Plan | None = None, workers: int | None = None
) -> dict[str, Any]:
    """The result of the track; every training is kept in `out`. `encoder` is a folder, by default MiniLM's; `plan`
    stands in for that of the setting, `workers` for one a core (0: trainings in this process)."""
    start, out, plan = time.perf_counter(), out.resolve(), plan or SETTINGS[setting]
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    encoder, encoder_version = (encoder, "given") if encoder else a1.default_encoder()
    versions = library_versions() | {"encoder": encoder_version}
    found = select(data, plan, out, workers)
    trained = time.perf_counter()
    index_folder, rankings = rank(found, plan, out, encoder, versions)
    removals = removals_of(rankings, found.aimed, found.part, plan.ks)
    ranked = time.perf_counter()
    facts, none = [*found.aimed, *found.others], [found.said[seed] for seed in plan.measuring]
    said = retrain(removals, found, plan, out, workers)
    answers, before = {name: known_by(facts, rows) for name, rows in said.items()}, known_by(facts, none)
    seconds = [one.seconds for rows in (found.said.values(), *said.values()) for one in rows]
    return {
        "track": "B",
        "data": data.name,
        "data_sha256": data.sha256,
        "examples": len(found.part.ids),
        "facts": len(found.aimed),
        "knowledge": {
            "facts_asked": len(found.part.facts),
            "known_on_selecting_seeds": found.known,
            "of_these_in_the_subjects_name": found.named,
            "aimed_at": len(found.aimed),
            "others": len(found.others),
            "still_known_on_measuring_seeds": [float(row.mean()) for row in before.known],
        },
        **figures(removals, answers, before, found.aimed, found.others, plan),
        "config": {"track": "B", "setting": setting, **asdict(plan), "sure": SURE, "seed": SEED},
        "fusion": read_manifest(str(index_folder), "index").details["fusion"],
        "seed": SEED,
        "versions": versions,
        "seconds": {
            "train and select": round(trained - start, 1),
            "index and trace": round(ranked - trained, 1),
            "remove and train": round(time.perf_counter() - ranked, 1),
            "all": round(time.perf_counter() - start, 1),
            "a training": round(float(np.mean(seconds)), 1),
        },
    }


def select(data: Data, plan: Plan, out: Path, workers: int) -> Selected:
    """Trains with nothing removed, on the selecting and the measuring seeds; the first one's model is kept."""
    key = {"data_sha256": data.sha256, "part": asdict(plan.part), "code_sha256": a1.code_sha256()}
    place = Kept(out).folder("part", key, lambda place: lm.write_part(data, plan.part, place))
    part, asked = lm.read_part(place, data), place / "facts.jsonl"
    say(f"the LM reads {len(part.ids)} sentences, and is asked the {len(part.facts)} facts that they state")
    none = {
        seed: lm.training(
            f"train_none_seed{seed}", part, asked, seed, plan.recipe, keeps_model=seed == plan.selecting[0]
        )
        for seed in (*plan.selecting, *plan.measuring)
    }
    lm.train_all(list(none.values()), out, workers)
    said = {seed: lm.said(job, out) for seed, job in none.items()}
    known, named = surely_known(part.facts, [said[seed] for seed in plan.selecting])
    aimed, others = draw(known, plan.aimed, len(part.facts), plan.selecting)
    told = f"{len(known) + named} facts, of which {named} are in their subject's name"
    say(f"known on seeds {plan.selecting}: {told}; {len(aimed)} are aimed at, {len(others)} are to stay")
    return Selected(part, none, said, len(known) + named, named, aimed, others)


def rank(
    found: Selected, plan: Plan, out: Path, encoder: str, versions: dict[str, str]
) -> tuple[Path, dict[str, dict[str, list[str]]]]:
    """(the index, by arm and fact the ids of the examples, best first), both by the first selecting seed's model."""
    kept, job = Kept(out), found.none[plan.selecting[0]]
    key = job.key | {"versions": versions, "code_sha256": a1.code_sha256(), "format_version": FORMAT_VERSION}

    def make_index(place: Path) -> None:
        if not (place / "index" / MANIFEST).is_file():
            index.run(
                IndexConfig(
                    corpus=found.part.corpus,
                    output=str(place / "index"),
                    checkpoints=(lm.model_of(job, out),),
                    encoder=encoder,
                    max_tokens=plan.recipe["context"] - 2,
                    seed=SEED,
                )
            )

    folder = kept.folder("index", key, make_index) / "index"
    key |= {"aimed": [fact.id for fact in found.aimed], "ranked": plan.ranked}
    place = kept.folder("rankings", key, lambda place: make_rankings(place, folder, found.aimed, plan.ranked))
    return folder, json.loads((place / "rankings.json").read_text())


def retrain(
    removals: dict[str, list[str]], found: Selected, plan: Plan, out: Path, workers: int
) -> dict[str, list[lm.Said]]:
    """By removal, what its trainings say, one a measuring seed; removals that are alike share their trainings."""
    key = {"data_sha256": found.part.sha256, "facts": [fact.id for fact in (*found.aimed, *found.others)]}
    asked = Kept(out).folder("facts", key, lambda place: write_facts(place / FACTS, [*found.aimed, *found.others]))
    like, same_as, jobs = lm.model_of(found.none[plan.selecting[0]], out), {}, {}
    for name, ids in removals.items():
        if same_as.setdefault(tuple(ids), name) == name:
            cleaned = without(ids, name, found.part, out)
            jobs[name] = [
                lm.training(
                    f"train_{name}_seed{seed}", found.part, asked / FACTS, seed, plan.recipe, ids, cleaned, like
                )
                for seed in plan.measuring
            ]
    lm.train_all([job for rows in jobs.values() for job in rows], out, workers)
    return {name: [lm.said(job, out) for job in jobs[same_as[tuple(ids)]]] for name, ids in removals.items()}


def known_by(facts: list[Fact], said: list[lm.Said]) -> Known:
    return Known(
        np.array([[one.known[fact.id] for fact in facts] for one in said]),
        np.array([[one.log_probability[fact.id] for fact in facts] for one in said]),
    )


def is_sure(fact: Fact, said: lm.Said) -> bool:
    """Whether an LM says the fact and is sure of it: what it hardly says, another seed does not say."""
    return said.known[fact.id] and said.log_probability[fact.id] >= math.log(SURE)


def surely_known(facts: list[Fact], said: list[lm.Said]) -> tuple[list[Fact], int]:
    """(the facts that every LM surely says and their subject does not, how many of those it says were left out)."""
    sure = [fact for fact in facts if all(is_sure(fact, one) for one in said)]
    known = [fact for fact in sure if not names_itself(fact)]
    return known, len(sure) - len(known)


def names_itself(fact: Fact) -> bool:
    """Whether the subject holds the object: that the Muskegon River is a river is said of it with no statement read."""
    return set(fact.object.lower().split()) <= set(fact.subject.lower().split())


def draw(known: list[Fact], most: int, num_asked: int, seeds: tuple[int, ...]) -> tuple[list[Fact], list[Fact]]:
    """(those that are aimed at, those that are to stay: of the rest the ones that share no statement with them).

    Raises ConfigError where too few are known.
    """
    if len(known) < LEAST_KNOWN:
        raise ConfigError(
            f"--data: expected at least {LEAST_KNOWN} facts that the LM knows on each of the seeds {seeds}, and "
            f"whose subject does not name the object, found {len(known)} of {num_asked} asked; give facts that more "
            "short sentences state"
        )
    drawn = list(known)
    random.Random(SEED).shuffle(drawn)
    count = min(most, round(AIMED_SHARE * len(drawn)))
    aimed = drawn[:count]
    stated = {example for fact in aimed for example in fact.proponents or ()}
    return aimed, [fact for fact in drawn[count:] if stated.isdisjoint(fact.proponents or ())]


def write_facts(path: Path, facts: list[Fact]) -> None:
    """What is traced or asked, without the proponents that are known."""
    path.write_bytes(jsonl_bytes(replace(fact, proponents=None).to_row() for fact in facts))


def make_rankings(place: Path, index_folder: Path, aimed: list[Fact], ranked: dict[str, str]) -> None:
    """Writes `rankings.json`: of each arm and fact the ids of the examples, best first."""
    write_facts(place / FACTS, aimed)
    config = TraceConfig(index=str(index_folder), facts=str(place / FACTS), output=str(place / "trace"))
    delete_tree(config.output)  # of a run that was stopped
    trace.run(config)
    found: dict[str, dict[str, list[str]]] = {arm: {} for arm in ranked}
    for ranking in read_rankings(config.output):
        for arm, signal in ranked.items():
            found[arm][ranking[0].fact_id] = signal_ranking(ranking, signal, config.top_k)
    (place / "rankings.json").write_text(json.dumps(found))


def removals_of(
    rankings: dict[str, dict[str, list[str]]], aimed: list[Fact], part: Data, ks: tuple[int, ...]
) -> dict[str, list[str]]:
    """What each arm takes out, by `label`: the ids, sorted."""
    stated = {fact.id: list(fact.proponents or ()) for fact in aimed}
    more = {fact: len(examples) + MORE for fact, examples in stated.items()}
    found = {"annotated": forgetting.union(stated, more)}
    for arm, by_fact in rankings.items():
        for k in ks:
            found[label(arm, k)] = forgetting.union(by_fact, dict.fromkeys(by_fact, k))
        found[label(arm)] = forgetting.union(by_fact, more)
    told = [Removal(i, "", "approved", "") for i in found["fused"]]
    rest = [(i, "") for i in part.ids if i not in set(found["annotated"])]
    found["random"] = [removal.example_id for removal in control(rest, told, SEED)]
    return found


def label(arm: str, k: int | None = None) -> str:
    """The name of an arm's removal at k; without k, of that at annotated + 2."""
    return arm if k is None else f"{arm}_k{k}"


def without(ids: list[str], name: str, part: Data, out: Path) -> str:
    """The folder of the corpus that `clean` writes without these examples."""

    def make(place: Path) -> None:
        (place / "removed_ids.txt").write_text("".join(f"{i}\n" for i in ids))
        delete_tree(str(place / "cleaned"))  # of a run that was stopped
        clean.run(
            CleanConfig(
                corpus=part.corpus,
                removals=str(place / "removed_ids.txt"),
                output=str(place / "cleaned"),
                removals_are="ids",
                by="bench.quality B",
                reason=name,
            )
        )

    key = {"data_sha256": part.sha256, "removed_sha256": hashlib.sha256("\n".join(ids).encode()).hexdigest()}
    return str(Kept(out).folder(f"corpus_{name}", key, make) / "cleaned")


def figures(
    removals: dict[str, list[str]],
    answers: dict[str, Known],
    none: Known,
    aimed: list[Fact],
    others: list[Fact],
    plan: Plan,
) -> dict[str, Any]:
    """`arms`, `paired` (fused less another arm, fact by fact) and `checks`; `answers` are by label."""
    first, rest = np.arange(len(aimed)), np.arange(len(aimed), len(aimed) + len(others))
    before, kept_before = none.of(first), none.of(rest)
    lost = {name: forgetting.lost(before, found.of(first)) for name, found in answers.items()}

    def told(name: str) -> dict[str, Any]:
        taken, arm = set(removals[name]), answers[name]
        untouched = np.array([taken.isdisjoint(fact.proponents or ()) for fact in others], dtype=bool)
        by_seed = lost[name].sum(axis=1) / np.maximum(1, before.known.sum(axis=1))
        rows: dict[str, Any] = {"removed": len(taken)}
        rows |= _row("lost", forgetting.share(lost[name], before.known))
        rows |= {"lost_by_seed": [round(float(value), 6) for value in by_seed]}
        rows |= _row("log_probability_change", forgetting.change(before, arm.of(first)))
        for measure, counted in (("retained", np.ones_like(untouched)), ("retained_untouched", untouched)):
            rows |= _row(measure, forgetting.retained(kept_before, arm.of(rest), counted))
            rows[f"{measure}_facts"] = int((kept_before.known.any(axis=0) & counted).sum())
        return rows

    arms: dict[str, Any] = {"none": {"removed": 0, "lost": 0.0, "lost_interval": [0.0, 0.0]}}
    areas = {}
    for arm in ("annotated", "random", *plan.ranked):
        arms[arm] = told(arm)
        if arm in plan.ranked:
            areas[arm] = forgetting.area({k: lost[label(arm, k)] for k in plan.ks})
            arms[arm] |= _row("area", forgetting.share(areas[arm], before.known))
            arms[arm]["curve"] = {str(k): told(label(arm, k)) for k in plan.ks} | {LAST: told(arm)}
    paired: dict[str, Any] = {}
    for arm in ("annotated", "random", *plan.ranked):
        if arm != "fused":
            row = {"lost": _paired(lost["fused"] - lost[arm], before.known)}
            if arm in areas:
                row["area"] = _paired(areas["fused"] - areas[arm], before.known)
                for k in plan.ks:
                    row[f"lost at k = {k}"] = _paired(lost[label("fused", k)] - lost[label(arm, k)], before.known)
            paired[f"fused - {arm}"] = row
    return {"arms": arms, "paired": paired, "checks": checks(arms, paired)}


def _row(name: str, found: forgetting.Ends | None) -> dict[str, Any]:
    return {} if found is None else {name: found[0], f"{name}_interval": list(found[1:])}


def _paired(values: np.ndarray, known: np.ndarray) -> dict[str, Any]:
    mean, low, high = forgetting.share(values, known)
    return {"difference": mean, "interval": [low, high]}


def checks(arms: dict[str, Any], paired: dict[str, Any]) -> list[dict[str, Any]]:
    """What is to hold, each with what was found: `holds`."""
    found = []

    def check(what: str, value: float, holds: bool) -> None:
        found.append({"what": what, "found": value, "holds": holds})

    low = paired["fused - annotated"]["lost"]["interval"][0]
    check("lost at annotated + 2, fused - annotated: low end >= -0.05", low, low >= -0.05)
    for name, row in paired.items():
        if "area" in row:
            low, high = row["area"]["interval"]
            check(f"area, {name}: not below (high end >= 0)", high, high >= 0)
            check(f"area, {name}: above (low end > 0)", low, low > 0)
    check("lost by random <= 0.05", arms["random"]["lost"], arms["random"]["lost"] <= 0.05)
    for arm in ("fused", "random"):
        for measure in ("retained", "retained_untouched"):
            if measure in arms[arm]:
                value = arms[arm][measure]
                check(f"other facts {measure.replace('_', ', statements ')} by {arm} >= 0.95", value, value >= 0.95)
    return found
