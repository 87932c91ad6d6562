"""Embeddings for a measured log, made once and kept where measurements are kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from stream_dmgin.datasets.content import Embedding, embed, with_embeddings
from stream_dmgin.datasets.form import Dataset
from stream_dmgin.training.keep import Keep, of_code, of_data

VECTORS = "vectors.npy"
MAKES = ("groups/encode.py", "groups/coread.py", "groups/items.py", "datasets/content.py")


def embedded(data: Dataset, how: Embedding, keep: Path | None, say: Callable[[str], None]) -> Dataset:
    """The log with embeddings of its items; `keep`: a folder as of `evaluate --keep`. Raises InputError, UsageError."""

    def make() -> np.ndarray:
        made = embed(data, how)
        say(
            f"embeddings by {how.encoder}: {int(made.vectors.any(1).sum())} items, taught by {made.taught} users' clicks"
        )
        return made.vectors

    if keep is None:
        return with_embeddings(data, make())

    def save(half: Path) -> None:
        half.mkdir(parents=True)
        np.save(half / VECTORS, make())

    facts = {"how": asdict(how), "log": of_data(data), "code": of_code(*MAKES)}
    return with_embeddings(data, np.load(Keep(keep, say).folder("embeddings", facts, save) / VECTORS))
