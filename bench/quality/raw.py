"""Gradient scores that the product has no option for: of a checkpoint's projected features, each text with each fact.

`gradient_dot` and `gradient_embedding` are of the loss' gradients as they are: their dot product, and the cosine of the
word embedding's part alone (which is the head's, too, where the two are tied). The others take from the product's
default (attribution/kfac.py: unit labels, both sides of a layer whitened, the mean of the layers' cosines) one choice:

- `kfac_without_unit_labels`: the loss' gradients as they are;
- `kfac_without_whitening`;
- `kfac_without_norms`: one cosine of all layers together;
- `kfac_influence`: neither unit labels nor norms, the dot product: an influence function with K-FAC, projected.
"""

from collections.abc import Sequence

import numpy as np

from attribution.checkpoint import Checkpoint, load_checkpoint
from attribution.gradients import FeatureExtractor
from attribution.kfac import estimate_roots
from attribution.projection import Projection
from attribution.sequences import encode_example, encode_fact
from attribution.tracin import unit
from pipelines.config import IndexConfig
from pipelines.gradient import FACTOR_SAMPLE
from schemas.records import Fact

SEED = 0
BATCH_TOKENS = 1024
PLAIN = ("gradient_dot", "gradient_embedding")
ABLATIONS = ("kfac_without_unit_labels", "kfac_without_whitening", "kfac_without_norms", "kfac_influence")


def scores(checkpoint: str, texts: Sequence[str], facts: Sequence[Fact], arms: Sequence[str]) -> dict[str, np.ndarray]:
    """`[facts, texts]` by arm."""
    loaded, found = load_checkpoint(checkpoint), {}
    examples = [encode_example(loaded, text) for text in texts]
    queries = [encode_fact(loaded, fact) for fact in facts]
    if set(arms) & set(PLAIN):
        extractor = _extractor(loaded)
        asked, made = extractor.features(queries), extractor.features(examples)
        embedding = loaded.model.get_input_embeddings().weight
        [columns] = [extractor.columns[layer] for layer in extractor.layers if layer.parameter is embedding]
        found["gradient_dot"] = asked @ made.T
        found["gradient_embedding"] = unit(asked[:, columns]) @ unit(made[:, columns]).T
    for labels in (False, True) if set(arms) & set(ABLATIONS) else ():
        bare = _extractor(loaded, blocks_only=True, unit_labels=labels)
        drawn = np.random.default_rng(SEED).permutation(len(examples))[:FACTOR_SAMPLE]
        roots = estimate_roots(bare.backward, [examples[i] for i in drawn], BATCH_TOKENS)
        white = _extractor(loaded, blocks_only=True, unit_labels=labels, scales=roots)
        asked, made = white.features(queries), white.features(examples)
        if labels:
            found["kfac_without_norms"] = unit(asked) @ unit(made).T
            found["kfac_without_whitening"] = _by_layer(bare, bare.features(queries), bare.features(examples))
        else:
            found["kfac_without_unit_labels"] = _by_layer(white, asked, made)
            found["kfac_influence"] = asked @ made.T
    return {arm: found[arm] for arm in arms}


def _extractor(loaded: Checkpoint, **options) -> FeatureExtractor:
    return FeatureExtractor(loaded, Projection(IndexConfig.projection_dim, SEED), BATCH_TOKENS, **options)


def _by_layer(extractor: FeatureExtractor, asked: np.ndarray, made: np.ndarray) -> np.ndarray:
    """The mean of the layers' cosines."""
    columns = extractor.columns.values()
    return sum(unit(asked[:, c]) @ unit(made[:, c]).T for c in columns) / len(columns)
