"""Embeddings of content bent to what is read together, and embeddings of nothing but what is read together: in closed form, in seconds,
without training.

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
PRIOR = 10.0  # readers that every item is taken to have besides its own: what few read says little
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


def by_readers(user: Ints, item: Ints, n: int, width: int, seed: int = 0) -> tuple[Matrix, int]:
    """(float32[n,width], of length 1 or all 0; how many users taught): items that the same users read are near each other.

    `user`, `item`: who read which of n items, once or more. A singular value decomposition of users by items, both divided by the root
    of how much they have: a user of hundreds of items says less of each pair, an item that all read says little of its readers. An item
    that nobody read is all 0.
    """
    from sklearn.utils.extmath import randomized_svd

    out = np.zeros((n, width), np.float32)
    pairs = np.unique(np.stack([user, item], 1), axis=0)
    if not len(pairs):
        return out, 0
    reader = np.unique(pairs[:, 0], return_inverse=True)[1]
    size, readers = np.bincount(reader), np.bincount(pairs[:, 1], minlength=n)
    weight = 1.0 / np.sqrt(size[reader] * (readers[pairs[:, 1]] + PRIOR))
    table = csr_matrix((weight, (reader, pairs[:, 1])), shape=(len(size), n))
    k = min(width, *table.shape)
    # with the first direction, which is how popular an item is: that tells readers apart too
    _, value, turn = randomized_svd(table, k, random_state=seed)
    out[:, :k] = turn.T * value
    out[readers == 0] = 0.0
    return unit(out), int((size > 1).sum())


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
