"""Embeddings of items from what users clicked around them, for items that no encoder has seen.

Counts of pairs become positive pointwise mutual information, reduced by a singular value decomposition (what item2vec
factorises without saying so). Where other items have content, a ridge regression carries the result into their space.
"""

from __future__ import annotations

import numpy as np

from stream_dmgin.groups.coclicks import Pairs
from stream_dmgin.groups.items import Matrix, View, unit

LEAST = 2  # pairs that an item must be in
WIDTH = 64
_RIDGE = 1.0
_SMOOTH = 0.75  # power of the contexts' counts: rare contexts say less than they seem to


def behaviour(pairs: Pairs, n: int, width: int = WIDTH, seed: int = 0) -> View | None:
    """Vectors of length 1 of the items in at least LEAST pairs; None where there are too few to say anything."""
    from scipy.sparse import coo_matrix
    from sklearn.decomposition import TruncatedSVD

    a, b = np.r_[pairs.left, pairs.right], np.r_[pairs.right, pairs.left]
    seen = np.bincount(a, minlength=n)
    rows = np.flatnonzero(seen >= LEAST)
    if len(rows) < 3:
        return None
    at = np.full(n, -1, np.int64)
    at[rows] = np.arange(len(rows))
    both = (at[a] >= 0) & (at[b] >= 0)
    counts = coo_matrix((np.ones(int(both.sum())), (at[a[both]], at[b[both]])), shape=(len(rows), len(rows))).tocsr()
    if not counts.nnz:
        return None
    total = np.asarray(counts.sum(1)).ravel()
    context = total**_SMOOTH / (total**_SMOOTH).sum()
    c = counts.tocoo()
    pmi = np.log(c.data / (total[c.row] * context[c.col]))
    keep = pmi > 0
    table = coo_matrix((pmi[keep], (c.row[keep], c.col[keep])), shape=counts.shape).tocsr()
    svd = TruncatedSVD(max(1, min(width, len(rows) - 1)), random_state=seed)
    x = svd.fit_transform(table) / np.maximum(svd.singular_values_, 1e-12) ** 0.5
    known = np.abs(x).sum(1) > 1e-9
    return View(rows[known], unit(x[known].astype(np.float32))) if known.any() else None


def carried(content: View, behaved: View) -> View:
    """Items of `behaved` that are not in `content`, in the space of `content`: a ridge regression fitted on those in both.
    Empty where fewer than ten are in both."""
    new = ~np.isin(behaved.rows, content.rows)
    shared, i, j = np.intersect1d(content.rows, behaved.rows, return_indices=True)
    width = content.vectors.shape[1]
    if len(shared) < 10 or not new.any():
        return View(np.zeros(0, np.int64), np.zeros((0, width), np.float32))
    x, y = behaved.vectors[j].astype(np.float64), unit(content.vectors[i]).astype(np.float64)
    mean = y.mean(0)
    w = np.linalg.solve(x.T @ x + _RIDGE * np.eye(x.shape[1]), x.T @ (y - mean))
    out: Matrix = unit((behaved.vectors[new] @ w + mean).astype(np.float32))
    return View(behaved.rows[new], out)
