"""What gradient features cost on a GPU, beside a training step there: the 135M Llama shape and one of a billion.

    python -m bench.gpu

Prints one JSON object, one line, last on standard output. Random weights and random token sequences serve: 512 tokens a
sequence, every batch full. By shape and dtype:

- `tokens_per_second` of features (projection 16 x 16, every linear layer of the blocks), and `ratio_to_training_step`:
  their seconds over those of forward with labels and full backward on the same batches, alternated; in bfloat16 the
  training step's whole model is in it.
- `share_of_peak`: 4 operations a token and parameter of the linear layers and the head, over those of a matrix product
  of 8,192 x 8,192 x 8,192 in the same dtype and run.
- `least_cosine_to_cpu`: the least cosine between a sequence's features on the GPU and in float32 on the CPU (135M).
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from attribution.checkpoint import load_checkpoint
from attribution.gradients import FeatureExtractor
from attribution.projection import Projection
from attribution.sequences import causal
from attribution.tracin import unit
from attribution.training import train_tokenizer

LENGTH, ROUNDS = 512, 8
SHAPES = {
    "135M": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
             "num_key_value_heads": 3, "batch": 32},
    "1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
           "num_key_value_heads": 8, "batch": 16},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
             "num_key_value_heads": 2, "batch": 2},
}  # fmt: skip
VOCABULARY = 49_152
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def seconds(work: Callable[[], Any], device: str) -> float:
    start = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak(dtype: torch.dtype, device: str, size: int) -> float:
    """Operations a second of a square matrix product, the best of three."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / min(seconds(lambda: a @ b, device) for _ in range(3))


def measure(name: str, dtype: str, folder: Path, device: str, size: int) -> dict[str, Any]:
    batch = SHAPES[name]["batch"]
    loaded = load_checkpoint(str(folder), dtype, device)
    extractor = FeatureExtractor(loaded, Projection(16), batch * LENGTH, blocks_only=True)
    trained = load_checkpoint(str(folder), "float32", device).model.to(DTYPES[dtype]).requires_grad_(True)
    generator = np.random.default_rng(0)
    took: dict[str, list[float]] = {"features": [], "step": []}
    for number in range(ROUNDS + 2):
        ids = generator.integers(2, VOCABULARY, size=(batch, LENGTH))
        tokens = torch.tensor(ids, device=device)

        def step(tokens: torch.Tensor = tokens) -> None:
            trained.zero_grad()
            trained(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()

        sequences = [causal(row) for row in ids.tolist()]
        pair = {"features": lambda s=sequences: extractor.features(s), "step": step}
        for arm, work in pair.items():
            spent = seconds(work, device)
            if number >= 2:  # the first ones warm up
                took[arm].append(spent)
    features, steps = (np.array(took[arm]) for arm in ("features", "step"))
    sizes = [p.numel() for p in trained.parameters()]
    linear = sum(p.numel() for p in trained.parameters() if p.ndim == 2)  # the tied embedding counts as the head
    rate = batch * LENGTH * len(features) / features.sum()
    return {
        "tokens_per_second": round(rate),
        "ratio_to_training_step": round(float(features.sum() / steps.sum()), 4),
        "share_of_peak": round(4 * linear * rate / peak(DTYPES[dtype], device, size), 4),
        "parameters": sum(sizes),
    }


def least_cosine(folder: Path, dtype: str, device: str) -> float:
    """Between features on the device and in float32 on the CPU, over 8 sequences of several lengths."""
    generator = np.random.default_rng(1)
    sequences = [causal(generator.integers(2, VOCABULARY, size=length).tolist()) for length in (5, 17, 33, 64) * 2]
    places = ((dtype, device), ("float32", "cpu"))
    a, b = (
        unit(FeatureExtractor(load_checkpoint(str(folder), *place), Projection(16), 1024).features(sequences))
        for place in places
    )
    return float((a * b).sum(axis=1).min())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=["135M", "1B"])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("expected a GPU that torch sees, found none; --device cpu tries the script")
    size = 8192 if options.device == "cuda" else 512
    torch.backends.cuda.matmul.allow_tf32 = False  # float32 is float32
    name = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    result: dict[str, Any] = {"device": name, "torch": torch.__version__, "transformers": transformers.__version__}
    for shape in options.shapes:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            torch.manual_seed(0)
            settings = {key: value for key, value in SHAPES[shape].items() if key != "batch"}
            config = transformers.LlamaConfig(
                vocab_size=VOCABULARY, max_position_embeddings=2048, tie_word_embeddings=True, bos_token_id=0,
                eos_token_id=1, **settings,
            )  # fmt: skip
            transformers.LlamaForCausalLM(config).save_pretrained(folder)
            train_tokenizer([f"word{n}" for n in range(1000)], 500, 2048).save_pretrained(folder)
            for dtype in DTYPES:
                found = measure(shape, dtype, folder, options.device, size)
                if shape != "1B":
                    found["least_cosine_to_cpu"] = round(least_cosine(folder, dtype, options.device), 6)
                result |= {f"{shape}_{dtype}_{key}": value for key, value in found.items()}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
