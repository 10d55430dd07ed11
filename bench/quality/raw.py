"""Gradient scores that the product has no option for: of a checkpoint's projected features, each text with each fact.

`gradient_dot` and `gradient_embedding` are of the loss' gradients as they are: their dot product, and the cosine of the
word embedding's part alone (which is the head's, too, where the two are tied), both 16 x 16. The others take from the
product's default (attribution/kfac.py: unit labels, both sides of a layer whitened, projected as wide as fits, the mean
of the layers' cosines) one choice:

- `kfac_without_unit_labels`: the loss' gradients as they are;
- `kfac_without_whitening`;
- `kfac_one_cosine`: of all layers together;
- `kfac_dot`: no norm at all;
- `kfac_influence`: no norms and no unit labels: an influence function with K-FAC, projected.

`kfac_contrast` divides the default's scores of a text by their root mean square over all facts that are asked: what a
text has for every question says little of one. It needs many.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from attribution.checkpoint import load_checkpoint
from attribution.gradients import FeatureExtractor
from attribution.kfac import estimate_roots
from attribution.layers import tracked_layers
from attribution.projection import LEAST_DIM, Projection, fitting_dim
from attribution.sequences import encode_example, encode_fact
from attribution.tracin import unit
from pipelines.gradient import FACTOR_SAMPLE
from schemas.records import Fact

SEED = 0
BATCH_TOKENS = 1024
PLAIN = ("gradient_dot", "gradient_embedding")
CONTRAST = ("kfac_contrast",)
ABLATIONS = ("kfac_without_unit_labels", "kfac_without_whitening", "kfac_one_cosine", "kfac_dot", "kfac_influence")


def scores(checkpoint: str, texts: Sequence[str], facts: Sequence[Fact], arms: Sequence[str]) -> dict[str, np.ndarray]:
    """`[facts, texts]` by arm."""
    loaded, found, wanted = load_checkpoint(checkpoint), {}, set(arms)
    examples = [encode_example(loaded, text) for text in texts]
    queries = [encode_fact(loaded, fact) for fact in facts]

    blocks, _ = tracked_layers(loaded.model, loaded.trainable, blocks_only=True)
    fitting = fitting_dim(layer.shape for layer in blocks)

    def features(dim: int = fitting, **options: Any) -> tuple[FeatureExtractor, np.ndarray, np.ndarray]:
        extractor = FeatureExtractor(loaded, Projection(dim, SEED), BATCH_TOKENS, **options)
        return extractor, extractor.features(queries), extractor.features(examples)

    def whitening(labels: bool) -> dict[str, Any]:
        options = {"blocks_only": True, "unit_labels": labels}
        bare = FeatureExtractor(loaded, Projection(LEAST_DIM, SEED), BATCH_TOKENS, **options)
        drawn = np.random.default_rng(SEED).permutation(len(examples))[:FACTOR_SAMPLE]
        return options | {"scales": estimate_roots(bare.backward, [examples[i] for i in drawn], BATCH_TOKENS)}

    if wanted & set(PLAIN):
        extractor, asked, made = features(LEAST_DIM)
        embedding = loaded.model.get_input_embeddings().weight
        [columns] = [extractor.columns[layer] for layer in extractor.layers if layer.parameter is embedding]
        found["gradient_dot"] = asked @ made.T
        found["gradient_embedding"] = unit(asked[:, columns]) @ unit(made[:, columns]).T
    if wanted & {*CONTRAST, *ABLATIONS}:
        extractor, asked, made = features(**whitening(True))
        found["kfac_contrast"] = contrast(by_layer(extractor, asked, made))
        found["kfac_one_cosine"], found["kfac_dot"] = unit(asked) @ unit(made).T, asked @ made.T
    if wanted & set(ABLATIONS):
        found["kfac_without_whitening"] = by_layer(*features(blocks_only=True, unit_labels=True))
        extractor, asked, made = features(**whitening(False))
        found["kfac_without_unit_labels"] = by_layer(extractor, asked, made)
        found["kfac_influence"] = asked @ made.T
    return {arm: found[arm] for arm in arms}


def by_layer(extractor: FeatureExtractor, asked: np.ndarray, made: np.ndarray) -> np.ndarray:
    """The mean of the layers' cosines."""
    columns = extractor.columns.values()
    return sum(unit(asked[:, c]) @ unit(made[:, c]).T for c in columns) / len(columns)


def contrast(scores: np.ndarray) -> np.ndarray:
    """Scores `[facts, texts]`, each text's over their root mean square over the facts; 0 where all are."""
    size = np.sqrt((scores**2).mean(axis=0))
    return np.divide(scores, size, out=np.zeros_like(scores), where=size > 0)
