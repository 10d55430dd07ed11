"""What the workers load: once a process, kept at module level, because runners call `setup` as often as they like.

The caches have no lock of their own: a process works one shard at a time (pipelines/stage.py).
"""

import logging
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
import transformers

from attribution.bm25 import Tokenize, word_spans, word_tokenizer
from attribution.checkpoint import Checkpoint, load_checkpoint, load_tokenizer, model_hash, tokenizer_hash
from attribution.embedding import Encoder, load_encoder
from attribution.gradients import FeatureExtractor
from attribution.kfac import load_roots
from attribution.layers import tracked_layers
from attribution.optimizer_state import read_moments
from attribution.passages import Spans
from attribution.preconditioner import load_moments
from attribution.preconditioner import scales as optimizer_scales
from attribution.projection import Projection, fitting_dim
from pipelines.memory import keep_freed_memory
from pipelines.storage import absolute, exists, join, read_manifest
from schemas.errors import ArtifactMismatch, ConfigError
from schemas.manifest import MANIFEST, require_match

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


KFAC = "kfac"


@dataclass(frozen=True)
class GradientRecipe:
    """All that decides a feature but the checkpoint; kept in the index's manifest and read from there by `trace`.

    `projection_dim` 0 is what fits the checkpoint's layers (attribution/projection.py).
    """

    projection_dim: int
    seed: int
    layers: float
    dtype: str
    correction: str
    batch_tokens: int
    device: str = "auto"


def extractor(path: str, recipe: GradientRecipe, estimated: str = "") -> tuple[FeatureExtractor, str]:
    """(the extractor, the file that the optimizer's state was read from or nothing).

    `estimated` is a file of second moments that stand in for a state. One at a time: the checkpoint is the outer loop,
    so that a big model is loaded once and held alone. Raises ConfigError.
    """
    return _extractor(path, recipe, estimated)  # a cache would take an argument left out for another call


@lru_cache(maxsize=1)
def _extractor(path: str, recipe: GradientRecipe, estimated: str) -> tuple[FeatureExtractor, str]:
    checkpoint.cache_clear()
    _extractor.cache_clear()  # the last one goes before this one comes
    loaded, scales, source = load_checkpoint(path, recipe.dtype, recipe.device), None, ""
    state, kfac = None, recipe.correction == KFAC
    layers, _ = tracked_layers(loaded.model, loaded.trainable, recipe.layers, kfac)
    if recipe.correction == "auto":
        state = read_moments(path, layers, loaded.model, loaded.meta, loaded.trainable)
    if state is not None:
        moments, eps, source = state
        scales = {name: optimizer_scales(moment, eps) for name, moment in moments.items()}
    elif estimated and kfac:
        scales = load_roots(estimated)
    elif estimated:
        # Adam's default eps keeps a row without a gradient from an infinite scale, as it does in training.
        scales = {name: optimizer_scales(moment, 1e-8) for name, moment in load_moments(estimated).items()}
    projection = Projection(recipe.projection_dim or fitting_dim(layer.shape for layer in layers), recipe.seed)
    options = {"blocks_only": kfac, "scales": scales, "unit_labels": kfac, "norm_a_layer": kfac}
    return FeatureExtractor(loaded, projection, recipe.batch_tokens, recipe.layers, **options), source


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


def require_same_loss(path: str, recorded: float, found: float, dtype: str) -> None:
    """Raises ArtifactMismatch if the model's loss on the fixed batch is not what it was when the index was made."""
    tolerance = 1e-3 if dtype == "float32" else 3e-2
    if abs(found - recorded) > tolerance * abs(recorded):
        raise ArtifactMismatch(
            f"checkpoint at {path}: expected a loss of {recorded:.4f} on the fixed batch, as when the index was made, "
            f"found {found:.4f}; another version of the libraries computes the model differently: index again with it"
        )


def require_still_there(what: str, path: str) -> None:
    """Raises ArtifactMismatch if a local model that an index names has gone."""
    if path.startswith("/") and not exists(path):
        raise ArtifactMismatch(
            f"{what}: expected it at {path}, where the index was made from it, found nothing; put it back there, or "
            "index again"
        )
