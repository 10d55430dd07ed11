"""The exact product for the best candidates of each fact: `trace --rerank N`, two steps of its search.

candidates -> shortlist (the best N by the fused score)
           -> exact, one checkpoint after another (a shard: a block of facts)   cosines and what each token adds
           -> rank_block joins them: signal `gradient_exact`, and the proponent's tokens

The exact gradient has no projection error, and no curvature, which needs features of one length: so it is a signal of
its own. In the order of the shortlist it shares the weight of `gradient` half and half.
"""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from attribution.exact import ExactScorer
from attribution.sequences import encode_example, encode_fact
from pipelines import progress
from pipelines.fused import Fused, Fuser
from pipelines.gradient import NO_TOKENS, extractor_of, recipe_of
from pipelines.names import Names
from pipelines.query import Candidates, Query, ask, fact_blocks, read_facts, read_passages
from pipelines.search import merge_block
from pipelines.stage import Done, Shard, run_stage
from pipelines.storage import STAGES, OutputFolder, join, read_bytes

FACTS_AT_ONCE = 16  # their gradients' sides are held: about 18 MB a query of 15 tokens for 135M parameters
EXACT = "gradient_exact"


def _place(checkpoint: int, block: int) -> str:
    return f"{STAGES}/exact/{checkpoint}/{block:05d}.jsonl"


def _token_spans(tokenizer: Any, text: str, count: int) -> list[tuple[int, int]]:
    """Character spans of a plain text's first `count` tokens, special ones empty."""
    encoded = tokenizer(text, return_offsets_mapping=True, verbose=False)
    return (encoded["offset_mapping"] + [(len(text), len(text))])[:count]


def exact_block(spec: dict[str, Any], folder: str, out: Path, query: Query, checkpoint: int, count: int) -> Done:
    """A line a fact: its shortlist's passages with their cosines and, of plain text, what each token adds."""
    row = query.details["gradient"]["checkpoints"][checkpoint]
    fuser = Fuser(query, Names(folder))
    facts = read_facts(folder)
    block = fact_blocks(len(facts))[spec["block"]]
    extractor = extractor_of(row, recipe_of(query.details), query.index)
    scorer, source = ExactScorer(extractor), extractor.checkpoint
    merged = list(merge_block(query, folder, spec["block"], len(facts)))
    texts = read_passages(query, np.unique(np.concatenate([c.passages for c in merged])))
    fused = [fuser.fuse(fact, c, texts) for fact, c in zip(facts[block], merged, strict=True)]
    shortlists = [c.passages[f.order[:count]] for c, f in zip(merged, fused, strict=True)]
    lines = []
    with progress.bar(f"exact, {row['name']}, block {spec['block']}", len(merged), "facts") as advance:
        for start in range(0, len(merged), FACTS_AT_ONCE):
            part = slice(start, min(start + FACTS_AT_ONCE, len(merged)))
            here = facts[block][part]
            variants, first = ask(here)
            ids = np.unique(np.concatenate(shortlists[part]))
            examples = []
            for i in ids.tolist():
                try:
                    examples.append(encode_example(source, texts[i]["text"], texts[i]["parts"]))
                except ValueError:  # its dead letter lies in the index
                    examples.append(NO_TOKENS)
            added = dict(scorer.token_scores([encode_fact(source, fact) for fact in variants], examples))
            for number, fact in enumerate(here):
                told = {}
                for i in shortlists[start + number].tolist():
                    position = int(np.searchsorted(ids, i))
                    shares = added[position][first[number] : first[number + 1]]
                    best = int(shares.sum(axis=1).argmax())
                    shares = shares[best] if fact.combine == "max" else shares.mean(axis=0)
                    told[i] = {"score": float(shares.sum())}
                    if source.kind == "causal" and not texts[i]["parts"]:
                        spans = _token_spans(source.tokenizer, texts[i]["text"], len(shares))
                        told[i]["tokens"] = [[*span, s] for span, s in zip(spans, shares.tolist(), strict=True)]
                lines.append(json.dumps(told))
            advance(len(here))
    name = _place(checkpoint, spec["block"])
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("\n".join(lines))
    return Done({"in": len(merged)}, {name: len(lines)})


def rerank(query: Query, num_facts: int, output: OutputFolder, beam_args: tuple[str, ...], count: int) -> None:
    """Runs the exact stages; `read_exact` then reads what they wrote."""
    shards = [Shard(f"{number:05d}", {"block": number}) for number in range(len(fact_blocks(num_facts)))]
    for checkpoint in range(len(query.details["gradient"]["checkpoints"])):
        work = partial(exact_block, query=query, checkpoint=checkpoint, count=count)
        run_stage(f"exact-{checkpoint}", shards, work, output, beam_args)


def read_exact(query: Query, folder: str, block: int) -> list[dict[int, dict[str, Any]]]:
    """Per fact of the block, by passage: the score over all checkpoints, by their weights, and its tokens' shares."""
    joined: list[dict[int, dict[str, Any]]] = []
    for number, row in enumerate(query.details["gradient"]["checkpoints"]):
        for fact, line in enumerate(read_bytes(join(folder, _place(number, block))).decode().split("\n")):
            if not number:
                joined.append({})
            for passage, told in json.loads(line).items():
                kept = joined[fact].setdefault(int(passage), {"score": 0.0, "tokens": []})
                kept["score"] += row["weight"] * told["score"]
                shares = [[*span, row["weight"] * share] for *span, share in told.get("tokens", [])]
                earlier = kept["tokens"] or [[*span, 0.0] for *span, _ in shares]
                kept["tokens"] = [[*a[:2], a[2] + b[2]] for a, b in zip(earlier, shares, strict=True)]
    return joined


def reranked(
    candidates: Candidates, fused: Fused, weights: np.ndarray, gradient: int, exact: dict[int, dict[str, Any]]
) -> Fused:
    """The shortlist in its new order, above all others in theirs.

    The shortlist is scored with the mean of both cosines in the `gradient`'s column, and its scores are mapped to
    between its lowest old one and 1, so that scores fall with the rank.
    """
    short = np.sort(fused.order[: len(exact)])
    columns, scores = fused.columns.copy(), fused.scores.copy()
    found = np.clip([exact[int(candidates.passages[i])]["score"] for i in short], 0.0, 1.0)
    columns[short, gradient] = (columns[short, gradient] + found) / 2
    low = fused.scores[short].min()
    scores[short] = low + (1 - low) * (columns[short] @ weights)
    order = np.concatenate([short[np.argsort(-scores[short], kind="stable")], fused.order[len(exact) :]])
    return replace(fused, order=order, scores=scores)
