"""Retrieval metrics over examples: passages are collapsed to the best of their document before they come here."""

from collections.abc import Collection, Sequence


def reciprocal_rank(ranking: Sequence[str], proponents: Collection[str]) -> float:
    """1 / rank of the best-ranked proponent; 0 if none is ranked."""
    return next((1.0 / rank for rank, example in enumerate(ranking, start=1) if example in proponents), 0.0)


def recall_at(ranking: Sequence[str], proponents: Collection[str], k: int) -> float:
    """|top k and proponents| / min(k, |proponents|): 1 is reachable whatever k and the number of proponents."""
    return len(set(ranking[:k]) & set(proponents)) / min(k, len(proponents))
