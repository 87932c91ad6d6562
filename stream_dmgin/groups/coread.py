"""Embeddings of content bent to what is read together: in closed form, in seconds, without training.

Some directions of the embeddings tell readers apart (a sport, a city), others don't (the length of a title). Pairs of items that one
user read say which: where such pairs vary together, the direction counts; where items vary without their readers, it doesn't. What is
kept are the first directions of the pairs' covariance relative to that of all that is read. Items that nobody read yet have their place
there as soon as they have words.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from stream_dmgin.groups.items import Matrix, unit

RIDGE = 1.0  # added to each direction's variance, in multiples of the mean one: what varies little is mostly noise
FEW = 500  # with fewer users who read two items there is nothing to learn

Ints = NDArray[np.int64]


def bent(vectors: Matrix, user: Ints, item: Ints, width: int) -> tuple[Matrix, int]:
    """(float32[N,width], of length 1 each; how many users taught). Their products say how likely one user reads both.

    `vectors`: float32[N,D], of length 1. `user`, `item`: who read which row of `vectors`, once or more. Where fewer than FEW users read two
    items, these are the vectors' own first directions, and nobody taught. Columns beyond what there is to say are 0.
    """
    x = vectors.astype(np.float64)
    pairs = np.unique(np.stack([user, item], 1), axis=0)
    number, reader = np.unique(pairs[:, 0], return_inverse=True)
    size = np.bincount(reader, minlength=len(number))
    taught = int((size > 1).sum())
    if taught < FEW:
        x -= x.mean(0)
        return _padded(x, _first(x.T @ x, width)[1], width), 0
    share = np.bincount(pairs[:, 1], minlength=len(x)) / len(pairs)
    x -= share @ x
    whole = (x * share[:, None]).T @ x
    variance, axes = np.linalg.eigh(whole)
    axes /= np.sqrt(np.maximum(variance, 0.0) + RIDGE * max(float(variance.mean()), 1e-12))
    # A user of k items teaches k - 1 times as much as one pair: lives of hundreds of items must not teach alone
    weight = np.where(size > 1, 1.0 / np.maximum(size - 1, 1), 0.0)
    read = csr_matrix((np.ones(len(pairs)), (reader, pairs[:, 1])), shape=(len(number), len(x)))
    sums = read @ x
    own = read.T @ weight
    together = (sums * weight[:, None]).T @ sums - (x * own[:, None]).T @ x
    value, turn = _first(axes.T @ together @ axes / size.sum(), width)
    return _padded(x, axes @ turn * np.sqrt(np.maximum(value, 0.0)), width), taught


def _first(a: NDArray[np.float64], n: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The n greatest eigenvalues of a symmetric matrix, and their vectors as columns, each with its greatest number above 0."""
    value, vector = np.linalg.eigh((a + a.T) / 2)
    value, vector = value[::-1][:n], vector[:, ::-1][:, :n]
    greatest = vector[np.abs(vector).argmax(0), np.arange(vector.shape[1])]
    return value, vector * np.where(greatest < 0, -1.0, 1.0)


def _padded(x: NDArray[np.float64], axes: NDArray[np.float64], width: int) -> Matrix:
    out = np.zeros((len(x), width), np.float32)
    out[:, : axes.shape[1]] = x @ axes
    return unit(out)
