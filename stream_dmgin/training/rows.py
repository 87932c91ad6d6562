"""The training set: ragged and compact copies of the inputs that replay produced, with their labels, in memory or in a
folder. A folder is mapped, not read: of a set larger than memory only what batches ask for is in it, and about 60 bytes a request.

A request's user side is stored once for all its candidates, existing groups and events alone (padding would be 70 % and
more): about 600 bytes a request and 250 a candidate. A "row" is one (request, candidate), numbered in the order of
appending.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stream_dmgin.errors import InputError
from stream_dmgin.features.spec import N_STAT, InputSpec
from stream_dmgin.models.ragged import GroupRows, TrainBatch, length_steps
from stream_dmgin.training.columns import Array, Column, FileColumn, scatter, spans

STEPS = (1, 2, 4, 8)  # upper ends of the length buckets of groups
FLAT = ("h_item", "h_cls", "h_dwell", "h_hour", "h_time", "h_age")
SCAN = 1 << 18  # requests looked at in one piece where all are


@dataclass(frozen=True)
class Batch:
    """A batch of whole requests: inputs for `ragged.forward`; labels, c_mask [B,C]; rows [B,C]: number of the row, -1
    padding.
    """

    inputs: TrainBatch
    labels: Mapping[str, Tensor]  # per head ("ctr" and further): float [B,C], -1 where missing or padding
    rows: Tensor
    seen: Mapping[str, Tensor] | None = None  # per post-click head, where it comes late: [B,C], as in `objective.late`


class TrainingRows:
    """Requests with labelled candidates. Fill with `append`, then read with `batches`; not for several threads."""

    def __init__(self, spec: InputSpec, heads: Sequence[str] = (), directory: Path | None = None) -> None:
        """`directory`: where to write what is appended, in place of memory; readable after `finish`."""
        self.spec, self.heads, self.directory = spec, tuple(heads), directory
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
        if spec.flat:  # per event of the flat sequence
            one = {k: Column("u1") for k in ("h_cls", "h_dwell", "h_hour", "h_time")}
            self.columns |= {"r_flat": Column("i4"), "h_item": Column("i4", 3), "h_age": Column("f4"), **one}
        self._offsets: tuple[int, dict[str, NDArray[np.int64]]] | None = None
        self._files: dict[str, FileColumn] = {}
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
            (directory / "rows.json").unlink(missing_ok=True)  # a folder without it is no training set
            self._files = {k: FileColumn(directory / f"{k}.npy", c.view()) for k, c in self.columns.items()}

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
        """Copy B requests. InputError where an input is no finite number. labels [B,C] int (1, 0; -1 unknown);
        head_labels: the same per head, all unknown where absent; ts [B] ms; keys [B]: any whole number below 2^64 that says
        whose or which request it is (for grouped AUC). Candidates outside c_mask are left out.
        """
        g_mask, e_mask, s_mask, c_mask = (inputs[k] for k in ("g_mask", "e_mask", "s_mask", "c_mask"))
        put: Mapping[str, Column | FileColumn] = self._files or self.columns
        for name, mask in (("u_dense", slice(None)), ("c_dense", c_mask), ("g_stat", g_mask)):
            if not np.isfinite(inputs[name][mask]).all():
                raise InputError(
                    f"{self._not_finite(name, inputs[name][mask])}: look for values that are no numbers in the log's items"
                )
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
        if self.spec.flat:
            put["r_flat"].extend(inputs["h_mask"].sum(1))
            for name in FLAT:
                put[name].extend(inputs[name][inputs["h_mask"]])
        given = head_labels or {}
        every = [labels, *(given.get(h, np.full(labels.shape, -1, np.int8)) for h in self.heads)]
        put["label"].extend(np.stack([x[c_mask] for x in every], -1))

    def _not_finite(self, name: str, values: Array) -> str:
        columns = {"u_dense": self.spec.user_features, "c_dense": self.spec.candidate_features}.get(name)
        at = int(np.flatnonzero(~np.isfinite(values.reshape(-1, values.shape[-1])).all(0))[0])
        return f"input {columns[at] if columns else f'{name}[{at}]'} is not finite"

    def offsets(self) -> dict[str, NDArray[np.int64]]:
        """Where each request's groups, short events, rows, flat events and events of groups (`events`) start."""
        if self._offsets is None or self._offsets[0] != self.requests:
            counted: list[str] = [k for k in ("r_groups", "r_short", "r_rows", "r_flat") if k in self.columns]
            starts = {k: np.r_[0, np.cumsum(self[k], dtype=np.int64)] for k in counted}
            groups, lengths = starts["r_groups"], self["g_len"]
            events = [np.zeros(1, np.int64)]
            for i in range(0, self.requests, SCAN):
                own = groups[i : i + SCAN + 1]
                until = np.r_[0, np.cumsum(lengths[own[0] : own[-1]], dtype=np.int64)]
                events.append(events[-1][-1] + until[own[1:] - own[0]])
            self._offsets = (self.requests, {**starts, "events": np.concatenate(events)})
        return self._offsets[1]

    def groups_in(self, requests: NDArray[np.int64]) -> int:
        """How many groups these requests have in all."""
        return int(self["r_groups"][requests].sum(dtype=np.int64))

    def known(self, requests: NDArray[np.int64]) -> dict[str, float]:
        """How many rows of these requests have a known label, per head."""
        n = (self["label"][self.rows_of(requests)] >= 0).sum(0)
        return {h: float(n[i]) for i, h in enumerate(("ctr", *self.heads))}

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

    def like(self, requests: NDArray[np.int64]) -> Array:
        """A number below 1,000 for each request: the nearer two are, the less padding a batch of both needs."""
        return self["r_groups"][requests]

    # -- batches -----------------------------------------------------------------------------------------------------

    def parts(
        self, size: int, requests: NDArray[np.int64], generator: np.random.Generator | None = None, stretch: int = 1
    ) -> list[NDArray[np.int64]]:
        """The requests of each batch of about `size` rows. With a generator shuffled, requests of like sizes together (little
        padding). `stretch`: so many neighbours stay neighbours in the shuffle of windows of batches, which reads a folder that is
        larger than memory in larger pieces.
        """
        chosen = requests[self["r_rows"][requests] > 0]
        if not len(chosen):
            return []
        like = np.ceil(np.log2(self["r_rows"][chosen])) * 1000 + self.like(chosen)
        if generator is None:
            order = np.argsort(like, kind="stable")
        else:
            order = generator.permutation(-(-len(chosen) // stretch))
            if stretch > 1:
                order = (order[:, None] * stretch + np.arange(stretch)).reshape(-1)
                order = order[order < len(chosen)]
            per = max(1, 16 * size // max(1, round(float(self["r_rows"][chosen].mean()))))
            order = np.concatenate(
                [part[np.argsort(like[part], kind="stable")] for part in np.split(order, range(per, len(order), per))]
            )
        chosen = chosen[order]
        ends = np.cumsum(self["r_rows"][chosen])
        cuts = np.searchsorted(ends, np.arange(size, ends[-1] + size, size), side="left") + 1
        parts = [p for p in np.split(chosen, np.unique(np.minimum(cuts, len(chosen)))) if len(p)]
        return parts if generator is None else [parts[i] for i in _near(len(parts), stretch, generator)]

    def batches(
        self, size: int = 1024, requests: NDArray[np.int64] | None = None, generator: np.random.Generator | None = None
    ) -> Iterator[Batch]:
        """The batches of `parts`, of all requests where none are named."""
        for part in self.parts(size, np.arange(self.requests) if requests is None else requests, generator):
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
        before = np.r_[0, np.cumsum(lengths, dtype=np.int64)]
        own_first = np.cumsum(n) - n  # number of each request's first group in this batch
        start = before[:-1] + np.repeat(at["events"][requests] - before[own_first], n)  # of each group's events
        # the groups that are some candidate's own: their numbers within this batch, and whose
        own = np.flatnonzero(x["c_group"].reshape(-1) < np.repeat(n, c))
        own_groups = own_first[own // c] + x["c_group"].reshape(-1)[own]
        place = np.zeros(len(groups), np.int64)
        encoded, owned, low = [], [], -1
        for high in length_steps(int(lengths.max(initial=0)), STEPS):
            some = np.flatnonzero((lengths > low) & (lengths <= high))
            place[some] = np.arange(len(some))
            here = (lengths[own_groups] > low) & (lengths[own_groups] <= high)
            low = high
            if len(some):
                encoded.append(GroupRows(torch.from_numpy(slot[some]), self.events_of(groups[some], start[some], high)))
                owned.append((torch.from_numpy(place[own_groups[here]]), torch.from_numpy(own[here])))
        labels = scatter(self["label"][rows].astype(np.float32), c_slot, b, c, fill=-1)
        return Batch(
            TrainBatch(encoded, owned, {k: torch.from_numpy(v) for k, v in x.items()}),
            {h: torch.from_numpy(labels[..., i]) for i, h in enumerate(("ctr", *self.heads))},
            torch.from_numpy(scatter(rows, c_slot, b, c, fill=-1)),
            self._seen(rows, c_slot, b, c),
        )

    def _seen(self, rows: NDArray[np.int64], slot: NDArray[np.int64], b: int, c: int) -> dict[str, Tensor] | None:
        if "seen" not in self.columns:
            return None
        padded = scatter(self["seen"][rows], slot, b, c, fill=1)
        return {h: torch.from_numpy(padded[..., i]) for i, h in enumerate(self.heads)}

    def events_of(self, groups: NDArray[np.int64], start: NDArray[np.int64], length: int) -> dict[str, Tensor]:
        """The e_* (e_id too) and g_stat of some groups, whose events begin at `start`, padded to `length` events."""
        mask = np.arange(length) < self["g_len"][groups][:, None]
        events = np.where(mask, start[:, None] + np.arange(length), 0)
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
        (directory / "rows.json").unlink(missing_ok=True)
        for name, column in self.columns.items():
            np.save(directory / f"{name}.npy", column.view())
        self._mark(directory)

    def _mark(self, directory: Path) -> None:
        (directory / "rows.json").write_text(
            json.dumps({"format": 1, "spec": asdict(self.spec), "heads": self.heads}) + "\n"
        )

    def finish(self) -> TrainingRows:
        """The set, ready to be read: itself, or what was written to its directory."""
        if self.directory is None:
            return self
        for column in self._files.values():
            column.close()
        self._mark(self.directory)
        return TrainingRows.load(self.directory)

    def check(self) -> None:
        """ValueError where the columns don't fit one another."""
        n = {"r": self.requests, "g": int(self["r_groups"].sum()), "s": int(self["r_short"].sum())}
        n |= {"c": int(self["r_rows"].sum()), "e": int(self["g_len"].sum())}
        n |= {"h": int(self["r_flat"].sum())} if self.spec.flat else {}
        per = {"u_dense": "r", "x_cat": "r", "label": "c"}
        for name in self.columns:
            if len(self[name]) != n[per.get(name, name[0])]:
                raise ValueError(f"{name} holds {len(self[name])} rows, {n[per.get(name, name[0])]} belong there")

    @classmethod
    def load(cls, directory: Path, expected: InputSpec | None = None) -> TrainingRows:
        """Read what `save` wrote; arrays are mapped, not read. InputError where damaged, or not of the `expected` spec."""
        try:
            meta = json.loads((directory / "rows.json").read_text())
            made = cls(InputSpec.of(meta["spec"]), meta["heads"])
            for name in made.columns:
                made.columns[name] = Column.of(np.load(directory / f"{name}.npy", mmap_mode="c"))
            made.check()
        except (OSError, EOFError, ValueError, KeyError, TypeError) as e:
            raise InputError(
                f"{directory} is not a training set ({e}): make it again with `stream-dmgin train --rows`"
            ) from e
        if expected is not None and made.spec != expected:
            raise InputError(
                f"{directory} was made for other inputs than this model's: give another folder, or delete it"
            )
        return made


def _near(n: int, stretch: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """A shuffle of n batches; where stretches are read, those of one window (16) stay close in time."""
    if stretch == 1:
        return generator.permutation(n)
    windows = [w + generator.permutation(min(16, n - w)) for w in range(0, n, 16)]
    return np.concatenate([windows[i] for i in generator.permutation(len(windows))])
