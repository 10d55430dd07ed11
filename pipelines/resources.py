"""What the workers load: once a process, kept at module level, because runners call `setup` as often as they like."""

import ctypes
import logging
import platform
import sys
from functools import lru_cache, partial

import torch
import transformers

from attribution.bm25 import Tokenize, word_spans, word_tokenizer
from attribution.checkpoint import Checkpoint, load_checkpoint, load_tokenizer, model_hash, tokenizer_hash
from attribution.embedding import Encoder, load_encoder
from attribution.gradients import FeatureExtractor
from attribution.passages import Spans
from attribution.projection import Projection
from pipelines.storage import absolute, exists, join, read_manifest
from schemas.errors import ArtifactMismatch, ConfigError
from schemas.manifest import MANIFEST, require_match


def keep_freed_memory() -> None:
    """Tells glibc to keep the memory of freed tensors instead of handing it back to the system after every batch.

    Each step asks for the same tens of megabytes again, and fresh pages cost more than the arithmetic: a training step
    of a small model took 0.80 s instead of 1.76 s per three (2 cores, virtual machine). Elsewhere it does nothing.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        trim_threshold, top_pad, mmap_max = -1, -2, -4
        for option, value in ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 2**26)):
            libc.mallopt(option, value)


keep_freed_memory()
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
logging.getLogger("httpx").setLevel(logging.WARNING)


def resolve_checkpoints(paths: tuple[str, ...]) -> tuple[str, ...]:
    """Each path, a folder that `train` wrote replaced by the checkpoints in it, oldest first; local ones absolute."""
    found: list[str] = []
    for path in paths:
        if exists(join(path, MANIFEST)):
            manifest = read_manifest(path, "checkpoints")
            found += [absolute(join(path, name)) for name in manifest.details["checkpoints"]]
        else:
            found.append(absolute(path) if exists(path) else path)
    return tuple(found)


@lru_cache(maxsize=1)
def checkpoint(path: str) -> Checkpoint:
    return load_checkpoint(path)


@lru_cache(maxsize=1)
def extractor(path: str, projection: Projection) -> FeatureExtractor:
    """One at a time: the checkpoint is the outer loop, so that a big model is loaded once and held alone."""
    checkpoint.cache_clear()
    return FeatureExtractor(load_checkpoint(path), projection)


@lru_cache(maxsize=1)
def encoder(path: str) -> Encoder:
    return load_encoder(path)


@lru_cache(maxsize=4)
def subword_tokenizer(path: str) -> transformers.PreTrainedTokenizerFast:
    return load_tokenizer(path)


def subword_spans(text: str, path: str) -> list[tuple[int, int]]:
    encoded = subword_tokenizer(path)(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return encoded["offset_mapping"]


def spans(path: str) -> Spans:
    """Character spans of tokens: words, or the subwords of the tokenizer at `path`."""
    return partial(subword_spans, path=path) if path else word_spans


def _subwords(text: str, path: str) -> list[str]:
    return subword_tokenizer(path).tokenize(text, add_special_tokens=False)


def bm25_tokenizer(name: str, stemming: str) -> Tokenize:
    """BM25's tokenizer. Raises ConfigError for a stemming language that does not exist."""
    if name != "word":
        return partial(_subwords, path=name)
    try:
        return word_tokenizer(stemming)
    except KeyError as error:
        raise ConfigError(f"--stemming: expected a Snowball language such as english, found {stemming!r}") from error


def require_same_model(what: str, path: str, recorded: dict, model: torch.nn.Module, tokenizer: object) -> None:
    """Raises ArtifactMismatch if the model or tokenizer at `path` is not the one that the index was made with."""
    remedy = "the index was made by another one: put the old one back at this path, or index again with this one"
    require_match(f"{what} tokenizer at {path}", recorded["tokenizer_sha256"], tokenizer_hash(tokenizer), remedy)
    require_match(f"{what} weights at {path}", recorded["model_sha256"], model_hash(model), remedy)


def require_still_there(what: str, path: str) -> None:
    """Raises ArtifactMismatch if a local model that an index names has gone."""
    if path.startswith("/") and not exists(path):
        raise ArtifactMismatch(
            f"{what}: expected it at {path}, where the index was made from it, found nothing; put it back there, or "
            "index again"
        )
