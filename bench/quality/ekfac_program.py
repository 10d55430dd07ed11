"""What ekfac.py runs in kronfluence's environment: model/ and sequences.json here -> the file of scores that is named.

Imports nothing of this project. A sequence is [tokens, labels]: `labels[t]` is the token to predict at t, or negative.
"""

import json
import sys

import numpy as np
import torch
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.task import Task
from kronfluence.utils.dataset import DataLoaderKwargs
from torch.nn import functional
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

NO_LABEL = -100
# Each batch of queries takes a pass over the texts; 512 gradients of 3 million numbers are 6 GB.
TRAIN_BATCH, QUERY_BATCH = 32, 512


class LanguageModeling(Task):
    """Next-token loss over the labels, summed."""

    def __init__(self, names):
        super().__init__()
        self.names = names

    def compute_train_loss(self, batch, model, sample=False):
        tokens, mask, labels = batch
        logits = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits.flatten(0, 1).float()
        labels = labels.flatten()
        if sample:
            with torch.no_grad():
                drawn = torch.multinomial(logits.softmax(-1), 1).flatten()
            labels = torch.where(labels == NO_LABEL, labels, drawn)
        return functional.cross_entropy(logits, labels, ignore_index=NO_LABEL, reduction="sum")

    def compute_measurement(self, batch, model):
        return self.compute_train_loss(batch, model)

    def get_influence_tracked_modules(self):
        return self.names

    def get_attention_mask(self, batch):
        return batch[1]


def replace_conv1d(module):
    """GPT-2's layers as linear ones, which kronfluence tracks."""
    for name, child in module.named_children():
        if isinstance(child, Conv1D):
            linear = torch.nn.Linear(*child.weight.shape)
            linear.weight.data.copy_(child.weight.T)
            linear.bias.data.copy_(child.bias)
            setattr(module, name, linear)
        else:
            replace_conv1d(child)


def collate(rows):
    """Sequences padded to the longest of the batch: tokens, mask and labels `[rows, width]`."""
    width = max(len(tokens) for tokens, _ in rows)
    tokens, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    labels = torch.full((len(rows), width), NO_LABEL)
    for place, (given, told) in enumerate(rows):
        tokens[place, : len(given)], mask[place, : len(given)] = torch.tensor(given), 1
        wanted = torch.tensor(told)
        labels[place, : len(told)] = torch.where(wanted < 0, NO_LABEL, wanted)
    return tokens, mask, labels


def main(path):
    with open("sequences.json") as file:
        rows = json.load(file)
    model = AutoModelForCausalLM.from_pretrained("model", dtype=torch.float32)
    replace_conv1d(model)
    head = model.get_output_embeddings()
    names = [name for name, part in model.named_modules() if isinstance(part, torch.nn.Linear) and part is not head]
    task = LanguageModeling(names)
    analyzer = Analyzer("attribution", prepare_model(model, task), task, cpu=True, disable_tqdm=True)
    analyzer.set_dataloader_kwargs(DataLoaderKwargs(collate_fn=collate))
    # Neighbours in length share a batch: padded to the longest of all, half of a batch of T-REx sentences is padding.
    order = sorted(range(len(rows["texts"])), key=lambda place: len(rows["texts"][place][0]))
    texts, facts = [rows["texts"][place] for place in order], rows["facts"]
    analyzer.fit_all_factors("ekfac", dataset=texts, per_device_batch_size=TRAIN_BATCH)
    analyzer.compute_pairwise_scores(
        "scores",
        factors_name="ekfac",
        query_dataset=facts,
        train_dataset=texts,
        per_device_query_batch_size=QUERY_BATCH,
        per_device_train_batch_size=TRAIN_BATCH,
    )
    found = analyzer.load_pairwise_scores("scores")["all_modules"].float().numpy()
    np.save(path, found[:, np.argsort(order)], allow_pickle=False)


if __name__ == "__main__":
    main(sys.argv[1])
