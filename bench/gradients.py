"""What the gradient signal costs, on T-REx sentences with a 135M Llama-shaped model (random weights serve).

    python -m bench.gradients                         beside bergson where its program is on the path
    python -m bench.gradients --bergson VENV/bin      beside the one in this folder

Prints one JSON object, one line, last on standard output; progress goes to standard error. Skips, saying so, where the
T-REx data is absent. Every figure is a ratio against a baseline of the same run, alternated batch by batch:

- `ratio_to_training_step`: seconds of features (projection 16 x 16 on every linear layer of the blocks) over those of a
  plain training step (forward with labels, full backward; no mask either) on the same batches of about 1,024 real
  tokens. The floor is 2/3. `upper_half_ratio_to_training_step` likewise, from the upper half of the blocks.
- `ratio_to_naive_batching`: real tokens a second against the same extractor on batches of 8 documents in corpus order,
  padded, with the attention mask.
- `ratio_to_bergson`: tokens a second of writing features to disk, from the difference of a 100- and a 500-sentence run,
  against bergson's `build` with the same model, documents, projection and dtype. Under tied embeddings, as this shape
  has them, bergson computes the head's weight gradient and drops it.
- `bfloat16_speedup`, and `bfloat16_spearman`: the mean over 100 queries of the rank correlation over 500 documents.
- `peak_extra_gib`: resident memory beyond the loaded model over 3,000 documents, and its ratio to that over 300.
  (Of 100 documents no batch is full: 882 of 1,024 real tokens, which moves the peak by more than 5 %.)
- `int8_top10_changed`, `float16_top10_changed`: share of the top 10 of 100 facts that float32 storage does not give.
"""

import argparse
import gzip
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import transformers

from attribution.backward import token_batches
from attribution.checkpoint import Checkpoint, load_checkpoint
from attribution.feature_rows import RowReader, RowWriter, bytes_per_row
from attribution.gradients import FeatureExtractor
from attribution.projection import Projection
from attribution.sequences import Sequence, causal, encode_fact
from attribution.tracin import unit
from attribution.training import train_tokenizer
from pipelines.memory import keep_freed_memory
from schemas.facts import fact_from_row

DATA = Path(__file__).parents[1].parent / "shared" / "data" / "trex"
BATCH_TOKENS = 1024
SHAPE = {
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 2048,
}


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def read(name: str) -> list[dict[str, Any]]:
    with gzip.open(DATA / name) as file:
        return [json.loads(line) for line in file]


def save_model(folder: Path, texts: list[str]) -> None:
    """A model of the shape with seeded random weights, and a tokenizer trained on the sentences."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SHAPE, tie_word_embeddings=True, bos_token_id=0, eos_token_id=1)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    train_tokenizer(texts, SHAPE["vocab_size"], SHAPE["max_position_embeddings"]).save_pretrained(folder)


def extractor(checkpoint: Checkpoint, upper: float = 1.0) -> FeatureExtractor:
    return FeatureExtractor(checkpoint, Projection(16), BATCH_TOKENS, upper=upper, blocks_only=True)


def documents(checkpoint: Checkpoint, texts: list[str]) -> list[list[int]]:
    return [checkpoint.tokenizer(text).input_ids for text in texts]


def training_step(model: torch.nn.Module, batch: list[list[int]]) -> None:
    """Forward with labels and full backward on a right-padded batch, as a training loop without a mask has it."""
    width = max(map(len, batch))
    tokens = torch.tensor([tokens + [0] * (width - len(tokens)) for tokens in batch])
    real = torch.tensor([[1] * len(tokens) + [0] * (width - len(tokens)) for tokens in batch])
    model.zero_grad()
    model(input_ids=tokens, labels=tokens.masked_fill(real == 0, -100), use_cache=False).loss.backward()


def ratio(numerators: list[float], denominators: list[float]) -> dict[str, Any]:
    """The ratio of the sums with a 95 % bootstrap interval over the rounds."""
    a, b = np.array(numerators), np.array(denominators)
    drawn = np.random.default_rng(0).integers(len(a), size=(10_000, len(a)))
    low, high = np.percentile(a[drawn].sum(1) / b[drawn].sum(1), [2.5, 97.5])
    return {"ratio": round(float(a.sum() / b.sum()), 4), "interval": [round(float(low), 4), round(float(high), 4)]}


def timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def alternate(folder: Path, texts: list[str], rounds: int) -> dict[str, Any]:
    """Lines 1 and 2, and bfloat16's speed: every arm on the batches of each round."""
    trained = load_checkpoint(str(folder))
    ids = documents(trained, texts)
    buckets = [[ids[i] for i in batch] for batch in token_batches([len(tokens) for tokens in ids], BATCH_TOKENS)]
    buckets = [batch for batch in buckets if sum(map(len, batch)) > 0.9 * BATCH_TOKENS]
    random.Random(0).shuffle(buckets)
    naive = [ids[i : i + 8] for i in range(0, len(ids) - 7, 8)]
    random.Random(1).shuffle(naive)
    model = trained.model.requires_grad_(True)
    arms = {"full": extractor(load_checkpoint(str(folder)))}
    arms["upper"] = extractor(load_checkpoint(str(folder)), upper=0.5)
    arms["bfloat16"] = extractor(load_checkpoint(str(folder), "bfloat16"))
    masked = extractor(load_checkpoint(str(folder)))
    masked.backward.uses_mask, masked.batch_tokens = True, 10**9
    seconds, naive_tokens, tokens = defaultdict(list), [], []
    for number in range(rounds + 1):
        batch, small = buckets[number], naive[3 * number : 3 * number + 3]
        work: dict[str, Callable[[], Any]] = {"step": lambda b=batch: training_step(model, b)}
        for name, arm in arms.items():
            work[name] = lambda b=batch, arm=arm: arm.features([causal(tokens) for tokens in b])
        work["naive"] = lambda s=small: [masked.features([causal(tokens) for tokens in docs]) for docs in s]
        took = {name: timed(w) for name, w in work.items()}
        say(f"round {number}: " + ", ".join(f"{name} {value:.2f} s" for name, value in took.items()))
        if number:  # the first warms up
            for name, value in took.items():
                seconds[name].append(value)
            tokens.append(sum(map(len, batch)))
            naive_tokens.append(sum(len(doc) for docs in small for doc in docs))
    full, step = ratio(seconds["full"], seconds["step"]), ratio(seconds["upper"], seconds["step"])
    rate = sum(tokens) / sum(seconds["full"])
    return {
        "ratio_to_training_step": full["ratio"],
        "ratio_to_training_step_interval": full["interval"],
        "upper_half_ratio_to_training_step": step["ratio"],
        "upper_half_ratio_to_training_step_interval": step["interval"],
        "ratio_to_naive_batching": round(rate / (sum(naive_tokens) / sum(seconds["naive"])), 3),
        "bfloat16_speedup": round(sum(seconds["full"]) / sum(seconds["bfloat16"]), 3),
        "tokens_per_second": round(rate, 1),
        "real_tokens_a_batch": round(sum(tokens) / rounds),
        "rounds": rounds,
    }


def build(arm: FeatureExtractor, sequences: list[Sequence], folder: Path, stem: str, kind: str = "float32") -> None:
    """Features of all sequences, written to disk as `index` does."""
    widths = [columns.stop - columns.start for columns in arm.columns.values()]
    folder.mkdir(exist_ok=True)
    with RowWriter(folder, stem, len(sequences), widths, kind) as writer:
        for positions, found in arm.batches(sequences):
            writer.write(positions, found)


def bergson_rate(programs: Path, folder: Path, texts: list[str], tokens: list[int], room: Path) -> float:
    """Tokens a second of bergson's `build`, from the difference of a run over 100 and one over all documents."""
    seconds = []
    for count in (100, len(texts)):
        source = room / f"docs-{count}.jsonl"
        source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[:count]))
        command = [programs / "bergson", "build", room / f"bergson-{count}", "--model", folder, "--tokenizer", folder]
        command += ["--dataset", source, "--split", "train", "--prompt_column", "text", "--truncation"]
        command += ["--projection_dim", "16", "--precision", "fp32", "--token_batch_size", str(BATCH_TOKENS)]
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        environment |= {"HF_HOME": str(room / f"home-{count}"), "OMP_NUM_THREADS": str(torch.get_num_threads())}
        start = time.perf_counter()
        done = subprocess.run(
            [*map(str, command), "--nproc_per_node", "1"], env=environment, capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(f"bergson build failed:\n{done.stderr[-3000:]}")
        seconds.append(time.perf_counter() - start)
        say(f"bergson, {count} sentences: {seconds[-1]:.0f} s")
    return sum(tokens[100:]) / (seconds[1] - seconds[0])


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over rows of the rank correlation of two score matrices `[queries, documents]`."""
    ranks = [scores.argsort(1).argsort(1).astype(np.float64) for scores in (a, b)]
    centred = [r - r.mean(1, keepdims=True) for r in ranks]
    norms = [np.sqrt((c**2).sum(1)) for c in centred]
    return float(((centred[0] * centred[1]).sum(1) / (norms[0] * norms[1])).mean())


def stored(folder: Path, stem: str) -> np.ndarray:
    """All rows of a shard at unit norm."""
    return unit(np.concatenate([found for _, found in RowReader(folder / stem).blocks()]))


def changed(scores: np.ndarray, exact: np.ndarray, k: int = 10) -> float:
    """Share of the members of the exact top k that the other scores do not give, over all queries."""
    tops = [np.argsort(-s, axis=1, kind="stable")[:, :k] for s in (scores, exact)]
    return float(np.mean([len(set(e) - set(s)) / k for s, e in zip(*tops, strict=True)]))


def quality(folder: Path, texts: list[str], facts: list[dict[str, Any]], room: Path) -> dict[str, Any]:
    """Our rate of writing features, bfloat16 against float32, and what half precision and int8 change."""
    scores, seconds, result = {}, {}, {}
    place = room / "features"
    for dtype in ("float32", "bfloat16"):
        checkpoint = load_checkpoint(str(folder), dtype)
        arm = extractor(checkpoint)
        sequences = [causal(tokens) for tokens in documents(checkpoint, texts)]
        arm.features(sequences[:20])  # warms up
        for count in (100, len(texts)) if dtype == "float32" else (len(texts),):
            seconds[count] = timed(lambda a=arm, s=sequences[:count], d=dtype: build(a, s, place, d))
            say(f"ours, {dtype}, {count} sentences: {seconds[count]:.0f} s")
        queries = unit(arm.features([encode_fact(checkpoint, fact_from_row(fact)) for fact in facts]))
        scores[dtype] = queries @ stored(place, dtype).T
        if dtype == "float32":
            tokens = [len(ids) for ids in documents(checkpoint, texts)]
            result["tokens"] = tokens
            result["rate"] = sum(tokens[100:]) / (seconds[len(texts)] - seconds[100])
            widths = [columns.stop - columns.start for columns in arm.columns.values()]
            result["bytes_per_example"] = {}
            for kind in ("float16", "int8"):
                with RowWriter(place, kind, len(texts), widths, kind) as writer:
                    for start, found in RowReader(place / dtype).blocks():
                        writer.write(list(range(start, start + len(found))), found)
                result[f"{kind}_top10_changed"] = changed(queries @ stored(place, kind).T, scores[dtype])
            for kind in ("float32", "float16", "int8"):
                result["bytes_per_example"][kind] = bytes_per_row(widths, kind)
    result["bfloat16_spearman"] = round(spearman(scores["float32"], scores["bfloat16"]), 5)
    return result


def peak(folder: Path, count: int, room: Path) -> None:
    """Prints the peak of resident bytes beyond the loaded model, over `count` documents; in a process of its own."""
    before = psutil.Process().memory_info().rss
    checkpoint = load_checkpoint(str(folder))
    model = sum(p.numel() * p.element_size() for p in checkpoint.model.parameters())
    sequences = [
        causal(tokens) for tokens in documents(checkpoint, [r["text"] for r in read("corpus.jsonl.gz")[:count]])
    ]
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew from here
    build(extractor(checkpoint), sequences, room / f"peak-{count}", "rows", "float16")
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    print(json.dumps({"extra": int(line.split()[1]) * 1024 - before - model}))


def peaks(folder: Path, count: int, room: Path) -> dict[str, Any]:
    found = []
    for documents_ in (count, 10 * count):
        command = [sys.executable, "-m", "bench.gradients", "--peak", str(documents_), "--model", str(folder)]
        done = subprocess.run([*command, "--room", str(room)], capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout.splitlines()[-1])["extra"] / 2**30)
        say(f"peak over {documents_} documents: {found[-1]:.2f} GiB beyond the model")
    return {"peak_extra_gib": round(found[1], 3), "peak_ratio_at_ten_times": round(found[1] / found[0], 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found = shutil.which("bergson")
    help_text = "folder with the bergson program and its python (default: where the path has it)"
    parser.add_argument("--bergson", type=Path, default=found and Path(found).parent, help=help_text)
    parser.add_argument("--rounds", type=int, default=12, help="batches that every arm is timed on")
    parser.add_argument("--sentences", type=int, default=500, help="documents of the rates and the rank correlation")
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--room", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not DATA.is_dir():
        sys.exit(f"skipped: the T-REx data is not at {DATA}")
    keep_freed_memory()
    if options.peak:
        peak(options.model, options.peak, options.room)
        return
    rows, facts = read("corpus.jsonl.gz"), read("facts.jsonl.gz")
    random.Random(0).shuffle(rows)
    random.Random(0).shuffle(facts)
    texts, start = [row["text"] for row in rows], time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder)
        save_model(room / "model", texts)
        say("model and tokenizer are made")
        result = alternate(room / "model", texts[:1000], options.rounds)
        found = quality(room / "model", texts[: options.sentences], facts[:100], room)
        tokens, rate = found.pop("tokens"), found.pop("rate")
        result |= found | peaks(room / "model", 3 * options.sentences // 5, room)
        result |= {"ratio_to_bergson": None, "bergson_version": None}
        if options.bergson:
            theirs = bergson_rate(options.bergson, room / "model", texts[: options.sentences], tokens, room)
            asked = "import importlib.metadata as m; print(m.version('bergson'))"
            done = subprocess.run([options.bergson / "python", "-c", asked], capture_output=True, text=True, check=True)
            result |= {"ratio_to_bergson": round(rate / theirs, 3), "bergson_version": done.stdout.strip()}
            result |= {"bergson_tokens_per_second": round(theirs, 1)}
        result |= {"build_tokens_per_second": round(rate, 1), "torch_version": metadata.version("torch")}
        result |= {"threads": torch.get_num_threads(), "seconds": round(time.perf_counter() - start)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
