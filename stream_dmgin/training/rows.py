"""The training set: ragged and compact copies of the inputs that replay produced, with their labels, in memory or in a
folder.

A request's user side is stored once for all its candidates, existing groups and events alone (padding would be 70 % and
more): about 600 bytes a request and 250 a candidate. A "row" is one (request, candidate), numbered in the order of
appending.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stream_dmgin.errors import InputError
from stream_dmgin.features.spec import N_STAT, InputSpec
from stream_dmgin.models.ragged import GroupRows, TrainBatch, length_steps

Array = NDArray[Any]


class Column:
    """An array that grows at its end, its capacity doubling."""

    def __init__(self, dtype: str, *shape: int) -> None:
        self._data = np.zeros((1024, *shape), dtype)
        self._n = 0

    def extend(self, values: Array) -> None:
        """Append values [n,...], cast to the column's type."""
        end = self._n + len(values)
        if end > len(self._data):
            grown = np.zeros((max(end, 2 * len(self._data)), *self._data.shape[1:]), self._data.dtype)
            grown[: self._n] = self._data[: self._n]
            self._data = grown
        self._data[self._n : end] = values
        self._n = end

    def view(self) -> Array:
        """What was appended; not a copy."""
        return self._data[: self._n]

    @classmethod
    def of(cls, values: Array) -> Column:
        """A column that starts with these values (not copied)."""
        made = cls.__new__(cls)
        made._data, made._n = values, len(values)
        return made


@dataclass(frozen=True)
class Batch:
    """A batch of whole requests: inputs for `ragged.forward`; labels, c_mask [B,C]; rows [B,C]: number of the row, -1
    padding.
    """

    inputs: TrainBatch
    labels: Mapping[str, Tensor]  # per head ("ctr" and further): float [B,C], -1 where missing or padding
    rows: Tensor


class TrainingRows:
    """Requests with labelled candidates. Fill with `append`, then read with `batches`; not for several threads."""

    def __init__(self, spec: InputSpec, heads: Sequence[str] = ()) -> None:
        self.spec, self.heads = spec, tuple(heads)
        self.columns: dict[str, Column] = {
            # per request
            "r_groups": Column("i4"), "r_short": Column("i4"), "r_rows": Column("i4"), "r_ts": Column("i8"),
            "r_key": Column("u8"), "u_dense": Column("f4", len(spec.user_features)), "x_cat": Column("i4"),
            # per group
            "g_len": Column("i4"), "g_stat": Column("f2", N_STAT), "g_time": Column("f4"), "g_age": Column("f4"),
            "g_size": Column("f4"),
            # per event of a group, per short event
            "e_item": Column("i4", 3), "e_id": Column("i4"), "e_cls": Column("u1"), "e_time": Column("u1"),
            "e_dwell": Column("u1"), "e_hour": Column("u1"),
            "s_item": Column("i4", 3), "s_cls": Column("u1"), "s_time": Column("u1"), "s_dwell": Column("u1"),
            # per candidate
            "c_item": Column("i4", 3), "c_id": Column("i4"), "c_group": Column("i4"),
            "c_dense": Column("f4", len(spec.candidate_features)), "label": Column("i1", 1 + len(self.heads)),
        }  # fmt: skip
        self._offsets: tuple[int, dict[str, NDArray[np.int64]]] | None = None

    def __getitem__(self, name: str) -> Array:
        return self.columns[name].view()

    @property
    def requests(self) -> int:
        """Requests held."""
        return len(self["r_ts"])

    def __len__(self) -> int:
        """Rows held: labelled candidates."""
        return len(self["c_id"])

    def append(
        self,
        inputs: Mapping[str, Array],
        labels: Array,
        ts: Array,
        keys: Array,
        head_labels: Mapping[str, Array] | None = None,
    ) -> None:
        """Copy B requests. labels [B,C] int (1, 0; -1 unknown); head_labels: the same per head, all unknown where
        absent; ts [B] ms; keys [B]: any whole number below 2^64 that says whose or which request it is (for grouped
        AUC). Candidates outside c_mask are left out.
        """
        g_mask, e_mask, s_mask, c_mask = (inputs[k] for k in ("g_mask", "e_mask", "s_mask", "c_mask"))
        put = self.columns
        groups = g_mask.sum(1)
        for name, values in (
            ("r_groups", groups),
            ("r_short", s_mask.sum(1)),
            ("r_rows", c_mask.sum(1)),
            ("r_ts", ts),
            ("r_key", keys),
        ):
            put[name].extend(values)
        for name in ("u_dense", "x_cat"):
            put[name].extend(inputs[name])
        for name in ("g_stat", "g_time", "g_age", "g_size"):
            put[name].extend(inputs[name][g_mask])
        present = e_mask & g_mask[:, :, None]
        put["g_len"].extend(present.sum(-1)[g_mask])
        for name in ("e_item", "e_id", "e_cls", "e_time", "e_dwell", "e_hour"):
            put[name].extend(inputs[name][present])
        for name in ("s_item", "s_cls", "s_time", "s_dwell"):
            put[name].extend(inputs[name][s_mask])
        for name in ("c_item", "c_id", "c_group", "c_dense"):
            put[name].extend(inputs[name][c_mask])
        given = head_labels or {}
        every = [labels, *(given.get(h, np.full(labels.shape, -1, np.int8)) for h in self.heads)]
        put["label"].extend(np.stack([x[c_mask] for x in every], -1))

    def offsets(self) -> dict[str, NDArray[np.int64]]:
        """Where each request's groups, short events and rows start, and each group's events."""
        if self._offsets is None or self._offsets[0] != self.requests:
            starts = {
                k: np.r_[0, np.cumsum(self[k], dtype=np.int64)] for k in ("r_groups", "r_short", "r_rows", "g_len")
            }
            self._offsets = (self.requests, starts)
        return self._offsets[1]

    def labels(self, head: str = "ctr") -> NDArray[np.int8]:
        """Labels [rows] of a head; -1 unknown."""
        return self["label"][:, ("ctr", *self.heads).index(head)]

    def keys(self) -> NDArray[np.uint64]:
        """Key of each row's request [rows]."""
        return np.repeat(self["r_key"], self["r_rows"])

    def between(self, low: int, high: int) -> NDArray[np.int64]:
        """Numbers of the requests with low <= ts < high."""
        return np.flatnonzero((self["r_ts"] >= low) & (self["r_ts"] < high))

    def rows_of(self, requests: NDArray[np.int64]) -> NDArray[np.int64]:
        """Numbers of the rows of these requests."""
        return spans(self.offsets()["r_rows"][requests], self["r_rows"][requests])

    # -- batches -----------------------------------------------------------------------------------------------------

    def batches(
        self, size: int = 1024, requests: NDArray[np.int64] | None = None, generator: np.random.Generator | None = None
    ) -> Iterator[Batch]:
        """Batches of about `size` rows of whole requests. With a generator shuffled, requests of like sizes together
        (little padding).
        """
        chosen = np.arange(self.requests) if requests is None else requests
        chosen = chosen[self["r_rows"][chosen] > 0]
        like = np.ceil(np.log2(np.maximum(self["r_rows"], 1))) * 1000 + self["r_groups"]
        if generator is None:
            chosen = chosen[np.argsort(like[chosen], kind="stable")]
        else:
            chosen = generator.permutation(chosen)
            per = max(1, 16 * size // max(1, round(float(self["r_rows"][chosen].mean())) if len(chosen) else 1))
            chosen = np.concatenate(
                [part[np.argsort(like[part], kind="stable")] for part in np.split(chosen, range(per, len(chosen), per))]
            )
        ends = np.cumsum(self["r_rows"][chosen])
        cuts = np.searchsorted(ends, np.arange(size, (ends[-1] if len(ends) else 0) + size, size), side="left") + 1
        parts = [p for p in np.split(chosen, np.unique(np.minimum(cuts, len(chosen)))) if len(p)]
        if generator is not None:
            parts = [parts[i] for i in generator.permutation(len(parts))]
        for part in parts:
            yield self.collate(part)

    def collate(self, requests: NDArray[np.int64]) -> Batch:
        """One batch of these requests."""
        at, b = self.offsets(), len(requests)
        n = self["r_groups"][requests]
        g = max(1, int(n.max(initial=0)))
        groups, slot = spans(at["r_groups"][requests], n), spans(np.arange(b) * g, n)
        x: dict[str, Array] = {"u_dense": self["u_dense"][requests], "x_cat": self["x_cat"][requests]}
        for name in ("g_time", "g_age", "g_size"):
            x[name] = scatter(self[name][groups], slot, b, g)
        x["g_mask"] = np.arange(g) < n[:, None]
        n_short = self["r_short"][requests]
        s = max(1, int(n_short.max(initial=0)))
        short, s_slot = spans(at["r_short"][requests], n_short), spans(np.arange(b) * s, n_short)
        for name in ("s_item", "s_cls", "s_time", "s_dwell"):
            x[name] = scatter(self[name][short].astype(np.int32), s_slot, b, s)
        x["s_mask"] = np.arange(s) < n_short[:, None]
        n_rows = self["r_rows"][requests]
        c = max(1, int(n_rows.max(initial=0)))
        rows, c_slot = spans(at["r_rows"][requests], n_rows), spans(np.arange(b) * c, n_rows)
        for name in ("c_item", "c_id", "c_dense"):
            x[name] = scatter(self[name][rows], c_slot, b, c)
        x["c_group"] = scatter(self["c_group"][rows], c_slot, b, c, fill=self.spec.groups)
        lengths = self["g_len"][groups]
        # the groups that are some candidate's own: their numbers within this batch, and whose
        own = np.flatnonzero(x["c_group"].reshape(-1) < np.repeat(n, c))
        own_groups = (np.cumsum(n) - n)[own // c] + x["c_group"].reshape(-1)[own]
        place = np.zeros(len(groups), np.int64)
        encoded, owned, low = [], [], -1
        for high in length_steps(int(lengths.max(initial=0)), (1, 2, 4, 8)):
            some = np.flatnonzero((lengths > low) & (lengths <= high))
            place[some] = np.arange(len(some))
            here = (lengths[own_groups] > low) & (lengths[own_groups] <= high)
            low = high
            if len(some):
                encoded.append(GroupRows(torch.from_numpy(slot[some]), self.events_of(groups[some], high)))
                owned.append((torch.from_numpy(place[own_groups[here]]), torch.from_numpy(own[here])))
        labels = scatter(self["label"][rows].astype(np.float32), c_slot, b, c, fill=-1)
        return Batch(
            TrainBatch(encoded, owned, {k: torch.from_numpy(v) for k, v in x.items()}),
            {h: torch.from_numpy(labels[..., i]) for i, h in enumerate(("ctr", *self.heads))},
            torch.from_numpy(scatter(rows, c_slot, b, c, fill=-1)),
        )

    def events_of(self, groups: NDArray[np.int64], length: int) -> dict[str, Tensor]:
        """The e_* (e_id too) and g_stat of some groups, padded to `length` events."""
        mask = np.arange(length) < self["g_len"][groups][:, None]
        events = np.where(mask, self.offsets()["g_len"][groups][:, None] + np.arange(length), 0)
        x: dict[str, Array] = {"e_mask": mask, "g_stat": self["g_stat"][groups].astype(np.float32)}
        for name in ("e_item", "e_cls", "e_time", "e_dwell", "e_hour"):
            column = self[name]
            taken = column[events] if len(column) else np.zeros((*events.shape, *column.shape[1:]), column.dtype)
            x[name] = taken.astype(np.int32) * (mask[..., None] if taken.ndim == 3 else mask)
        x["e_id"] = np.where(mask, self["e_id"][events] if len(self["e_id"]) else 0, -1)
        return {k: torch.from_numpy(v) for k, v in x.items()}

    # -- a folder ----------------------------------------------------------------------------------------------------

    def save(self, directory: Path) -> None:
        """Write a folder of .npy files with rows.json."""
        directory.mkdir(parents=True, exist_ok=True)
        for name, column in self.columns.items():
            np.save(directory / f"{name}.npy", column.view())
        (directory / "rows.json").write_text(
            json.dumps({"format": 1, "spec": asdict(self.spec), "heads": self.heads}) + "\n"
        )

    @classmethod
    def load(cls, directory: Path, expected: InputSpec | None = None) -> TrainingRows:
        """Read what `save` wrote; arrays are mapped, not read. InputError where damaged, or not of the `expected` spec."""
        try:
            meta = json.loads((directory / "rows.json").read_text())
            made = cls(InputSpec.of(meta["spec"]), meta["heads"])
            for name in made.columns:
                made.columns[name] = Column.of(np.load(directory / f"{name}.npy", mmap_mode="c"))
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise InputError(
                f"{directory} is not a training set ({e}): make it again with `stream-dmgin train --rows`"
            ) from e
        if expected is not None and made.spec != expected:
            raise InputError(
                f"{directory} was made for other inputs than this model's: give another folder, or delete it"
            )
        return made


def spans(starts: NDArray[np.int64], counts: Array) -> NDArray[np.int64]:
    """start, start + 1, ... (count of them) of each pair, one after another."""
    counts = counts.astype(np.int64)
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    found: NDArray[np.int64] = np.arange(total, dtype=np.int64) + np.repeat(starts - ends + counts, counts)
    return found


def scatter(values: Array, slots: NDArray[np.int64], b: int, width: int, fill: float = 0) -> Array:
    """Values [n,...] at `slots` of a [b,width,...] array."""
    out = np.full((b * width, *values.shape[1:]), fill, values.dtype)
    out[slots] = values
    return out.reshape(b, width, *values.shape[1:])
