"""Any Hugging Face text classifier: texts to the probabilities of its labels.

A text longer than the model takes is read in overlapping windows, and each label has its greatest probability among
them: one toxic paragraph makes a long document toxic.
"""

from dataclasses import dataclass

import numpy as np
import torch
import transformers

from attribution.checkpoint import choose_device, load_pretrained, load_tokenizer
from attribution.gradients import token_batches
from schemas.errors import ConfigError

OVERLAP = 8  # a window shares an eighth of its tokens with the next one
# Positions of these families begin after the padding's, so that as many fewer tokens fit.
SHIFTED = ("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl")


@dataclass(frozen=True)
class Classifier:
    """A loaded classifier; `labels` are its own names for its outputs, `max_tokens` is what it takes at once."""

    path: str
    model: transformers.PreTrainedModel
    tokenizer: transformers.PreTrainedTokenizerFast
    labels: tuple[str, ...]
    max_tokens: int


def load_classifier(path: str, device: str = "cpu") -> Classifier:
    """The classifier at a name or folder. Raises ConfigError if it, its head, or its tokenizer is not there."""
    place = choose_device(device)
    model = load_pretrained(transformers.AutoModelForSequenceClassification, path)
    tokenizer, config = load_tokenizer(path), model.config
    limits = [getattr(config, "max_position_embeddings", None), tokenizer.model_max_length]
    limit = int(min(limit for limit in limits if limit))
    if config.model_type in SHIFTED:
        limit = min(limit, config.max_position_embeddings - config.pad_token_id - 1)
    labels = tuple(config.id2label[i] for i in range(config.num_labels))
    if len(set(labels)) < len(labels):
        raise ConfigError(
            f"classifier {path}: expected a name of its own for each label in config.json (id2label), found "
            f"{', '.join(labels)}; correct them"
        )
    return Classifier(path, model.to(place), tokenizer, labels, limit)


def probabilities(logits: torch.Tensor, problem_type: str | None) -> torch.Tensor:
    """`[batch, labels]`: sigmoid of each for labels that exclude none, or of the only one; softmax of labels of which
    one holds; a regression's output as it is."""
    if problem_type == "regression":
        return logits
    if problem_type == "multi_label_classification" or logits.shape[1] == 1:
        return logits.sigmoid()
    return logits.softmax(1)


@torch.no_grad()
def classify(classifier: Classifier, texts: list[str], batch_tokens: int = 8192) -> np.ndarray:
    """Scores `[texts, labels]`, in the given order, whatever the batches. Raises ValueError for a text of no token."""
    scores = np.full((len(texts), len(classifier.labels)), -np.inf)
    if not texts:
        return scores
    tokenizer, device = classifier.tokenizer, classifier.model.device
    encoded = tokenizer(
        texts, truncation=True, max_length=classifier.max_tokens, stride=classifier.max_tokens // OVERLAP,
        return_overflowing_tokens=True,
    )  # fmt: skip
    tokenizer.backend_tokenizer.no_truncation()
    windows, owners = encoded["input_ids"], encoded["overflow_to_sample_mapping"]
    if not all(windows):
        raise ValueError(f"classifier {classifier.path}: the text has no token")
    pad = classifier.model.config.pad_token_id  # the model's, which some find the last token or the positions by
    batches = token_batches([len(tokens) for tokens in windows], batch_tokens)
    if pad is None:  # a decoder that was trained without: a window at a time
        batches = ([i] for batch in batches for i in batch)
    for batch in batches:
        width = max(len(windows[i]) for i in batch)
        tokens = torch.full((len(batch), width), pad or 0)
        mask = torch.zeros((len(batch), width), dtype=torch.long)
        for row, i in enumerate(batch):
            tokens[row, : len(windows[i])] = torch.tensor(windows[i])
            mask[row, : len(windows[i])] = 1
        logits = classifier.model(input_ids=tokens.to(device), attention_mask=mask.to(device)).logits
        found = probabilities(logits.float(), classifier.model.config.problem_type).cpu().numpy()
        for row, i in enumerate(batch):
            scores[owners[i]] = np.maximum(scores[owners[i]], found[row])  # NaN stays NaN
    return scores
