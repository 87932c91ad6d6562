"""K-means on the unit sphere by the fastest library at hand: faiss (extra `groups`), else scikit-learn.

Small problems are solved whole, with several starts. Large ones in two levels: the items into about sqrt(K) parts, each part into
its share of the K groups; that costs n * sqrt(K) instead of n * K.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.errors import UsageError
from stream_dmgin.groups.items import Matrix

LIBRARIES = ("auto", "faiss", "sklearn")
_WHOLE = 500_000  # items x groups up to which scikit-learn's K-means with four starts costs next to nothing
_LEVELS = 40_000_000  # items x groups from which two levels pay
_POINTS = 256  # items a centre learns from, at most

Labels = NDArray[np.int64]


def available() -> str:
    """The library that `auto` takes for large problems."""
    return "sklearn" if importlib.util.find_spec("faiss") is None else "faiss"


def kmeans(
    x: Matrix, k: int, seed: int = 0, library: str = "auto", start: Matrix | None = None
) -> tuple[Labels, Matrix]:
    """(label of each row, centres float32[k,D]). A centre may end without rows. `start`: centres to begin with (fewer than `k`
    are filled up with rows far from them), so that a new clustering resembles the one they came from. The same seed, input and
    library give the same result on the same machine. Raises UsageError for a library that is not there."""
    if library not in LIBRARIES:
        raise UsageError(f"--library {library!r} is not known: choose one of {', '.join(LIBRARIES)}")
    if library == "faiss" and available() != "faiss":
        raise UsageError("--library faiss needs the extra `groups`: pip install 'stream-dmgin[groups]'")
    if start is not None:
        return _flat(x, k, seed, library, _filled(x, start, k, seed))
    if len(x) * k >= _LEVELS:
        return _two_levels(x, k, seed, library)
    return _flat(x, k, seed, library, None)


def _flat(x: Matrix, k: int, seed: int, library: str, start: Matrix | None) -> tuple[Labels, Matrix]:
    fast = available() if library == "auto" else library
    if fast == "faiss" and (library == "faiss" or len(x) * k > _WHOLE):
        return _faiss(x, k, seed, start)
    return _sklearn(x, k, seed, start)


def _sklearn(x: Matrix, k: int, seed: int, start: Matrix | None) -> tuple[Labels, Matrix]:
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    begin: dict[str, Any] = {"init": start, "n_init": 1} if start is not None else {}
    if len(x) * k <= _WHOLE:
        means = KMeans(k, random_state=seed, **(begin or {"n_init": 4}))
    else:
        means = MiniBatchKMeans(
            k, batch_size=max(1024, 4 * k), max_no_improvement=20, random_state=seed, **(begin or {"n_init": 1})
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct items than k: some groups stay empty
        labels = means.fit_predict(x)
    return np.asarray(labels, np.int64), np.asarray(means.cluster_centers_, np.float32)


def _faiss(x: Matrix, k: int, seed: int, start: Matrix | None, rounds: int = 20) -> tuple[Labels, Matrix]:
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)  # it tells each instruction set it tries
    import faiss

    x = np.ascontiguousarray(x)
    means = faiss.Kmeans(
        x.shape[1], k, niter=rounds, seed=seed + 1, min_points_per_centroid=1, max_points_per_centroid=_POINTS,
    )  # fmt: skip
    means.train(x, init_centroids=start)
    _, labels = means.index.search(x, 1)
    return labels[:, 0].astype(np.int64), np.asarray(means.centroids, np.float32).reshape(k, -1)


def _two_levels(x: Matrix, k: int, seed: int, library: str) -> tuple[Labels, Matrix]:
    parts = round(k**0.5)
    coarse, _ = _flat(x, parts, seed, library, None)
    sizes = np.bincount(coarse, minlength=parts)
    shares = _shares(sizes, k)
    labels = np.empty(len(x), np.int64)
    centres = []
    at = 0
    for part in np.flatnonzero(sizes):
        rows = np.flatnonzero(coarse == part)
        found, means = _flat(x[rows], int(shares[part]), seed, library, None)
        labels[rows] = found + at
        centres.append(means)
        at += len(means)
    if library != "sklearn" and available() == "faiss":  # items near a border of two parts may belong beyond it
        return _faiss(x, at, seed, np.concatenate(centres), rounds=2)
    return labels, np.concatenate(centres)


def _shares(sizes: Labels, k: int) -> Labels:
    """`k` groups over the parts in proportion to their sizes: at least one for a part with items, never more than its items."""
    out = np.minimum(np.maximum((sizes * (k / sizes.sum())).astype(np.int64), sizes > 0), sizes)
    while (left := k - int(out.sum())) != 0:
        load = sizes / np.maximum(out, 1)
        can = out < sizes if left > 0 else out > 1
        order = np.argsort(-load if left > 0 else load, kind="stable")
        some = order[can[order]][: abs(left)]
        out[some] += 1 if left > 0 else -1
    return np.asarray(out, np.int64)


def _filled(x: Matrix, start: Matrix, k: int, seed: int) -> Matrix:
    if len(start) >= k:
        return np.ascontiguousarray(start[:k])
    # those that are badly served by the old centres are where a new one is wanted
    r = np.random.default_rng(seed)
    near = np.full(len(x), -np.inf)
    for at in range(0, len(x), 65536):
        near[at : at + 65536] = (x[at : at + 65536] @ start.T).max(1)
    far = np.clip(1.0 - near, 1e-6, None)
    some = r.choice(len(x), k - len(start), replace=False, p=far / far.sum())
    return np.concatenate([start, x[np.sort(some)]]).astype(np.float32)
