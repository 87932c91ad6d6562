"""What the scores of a log were worth: held against the clicks that came after, by request id. Nothing is scored again."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from stream_dmgin import topics
from stream_dmgin.errors import InputError
from stream_dmgin.log.base import Log
from stream_dmgin.records import decode_score
from stream_dmgin.replay.logsource import feedback, read_all
from stream_dmgin.training.metrics import ece_floor, summary


def measure_log(log: Log, prefix: str = topics.PREFIX) -> dict[str, Any]:
    """Counts by status, and metrics of each model over the candidates that were shown: clicked 1, not clicked 0.

    Scores of status `ok` and `fallback` count; a request answered twice counts once. Raises InputError for a missing topic.
    """
    shown, clicked = feedback(read_all(log, [prefix + t for t in topics.EVENTS]))
    records = read_all(log, [prefix + topics.SCORES])
    status: Counter[str] = Counter()
    rows: dict[str, list[tuple[str, int, float]]] = {}
    seen: set[tuple[str, str]] = set()
    for value in records.values:
        try:
            s = decode_score(value or b"")
        except Exception as e:
            raise InputError(f"{prefix + topics.SCORES} holds a record that is no score: {e}") from None
        status[s.status] += 1
        if s.status not in ("ok", "fallback") or (s.user_id, s.request_id) in seen:
            continue
        seen.add((s.user_id, s.request_id))
        hit, all_shown = clicked.get(s.request_id, set()), shown.get(s.request_id, set())
        found = rows.setdefault(s.model, [])
        for item, p in zip(s.candidates, s.ctr, strict=True):
            if item in hit or item in all_shown:
                found.append((s.user_id, int(item in hit), p))
    metrics: dict[str, dict[str, float]] = {}
    for model, found in rows.items():
        label = np.array([y for _, y, _ in found], np.int8)
        ctr = np.array([p for _, _, p in found], np.float64)
        users = np.array([u for u, _, _ in found], object)
        metrics[model] = {"rows": len(found), "clicks": int(label.sum())}
        if len(found) and label.min() != label.max():
            metrics[model] |= {**summary(label, ctr, users), "ece_noise": ece_floor(ctr)[0]}
    return {"scores": len(records), "status": dict(status), "metrics": metrics}
