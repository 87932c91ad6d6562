"""Embeddings for a measured log, made once and kept where measurements are kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from stream_dmgin.datasets.content import Embedding, embed, with_embeddings
from stream_dmgin.datasets.form import Dataset
from stream_dmgin.features.spec import InputSpec
from stream_dmgin.groups.encode import usual
from stream_dmgin.training.keep import Keep, of_code, of_data

VECTORS = "vectors.npy"
MAKES = ("groups/encode.py", "groups/coread.py", "groups/items.py", "datasets/content.py")


def as_asked(
    data: Dataset, asked: str | None, recipe: str, spec: InputSpec, until: int, keep: Path | None, say: Callable[[str], None]
) -> Dataset:  # fmt: skip
    """The log with the embeddings that its inputs read: as it is where it brings its own, or they read none; else by the encoder that was
    `asked` for (`Embedding`, or none), or that of its `recipe`, of clicks before `until` (ms)."""
    bare = data.items["embedding"].null_count == data.items.num_rows
    encoder = asked or (usual(recipe) if spec.reads_embeddings and bare else "none")
    if not asked and encoder not in (recipe, "none"):
        say(
            f"embeddings by {encoder}, since the recipe's encoder {recipe} is not installed: pip install 'stream-dmgin[text]'"
            " for the figures of docs/quality.md"
        )
    return data if encoder in ("", "none") else embedded(data, Embedding(encoder, spec.embedding, until), keep, say)


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
