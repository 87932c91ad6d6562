"""A planted leak is refused, not scored: by the order of events, by what a state has seen, by what names a request."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from stream_dmgin.datasets import form
from stream_dmgin.datasets.grouping import group_map
from stream_dmgin.errors import InputError
from stream_dmgin.features.spec import InputSpec
from stream_dmgin.replay import world
from stream_dmgin.replay.guard import Leak
from stream_dmgin.replay.rows import training_rows
from stream_dmgin.replay.source import DatasetSource
from tests.logs import dataset

SPEC = InputSpec(groups=4, events=4, short=4, item_buckets=64, category_buckets=8, advertiser_buckets=8)


def replay(data: form.Dataset) -> None:
    training_rows(DatasetSource(data), group_map(data), SPEC)


def with_events(data: form.Dataset, events: pa.Table) -> form.Dataset:
    return form.Dataset(events, data.rows, data.items, data.meta)


def test_the_log_as_it_is_passes() -> None:
    replay(dataset(200))


def test_an_event_of_the_future_among_those_of_the_past() -> None:
    """An event that becomes visible later lies before earlier ones: it would be folded with them."""
    data = dataset(200)
    order = np.arange(data.events.num_rows)
    order[[10, -1]] = order[[-1, 10]]
    with pytest.raises(InputError, match=r"sort events.parquet by visible_at"):
        replay(with_events(data, data.events.take(pa.array(order))))


def test_a_clock_that_goes_too_far_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plant the classic fault, `<=` for `<`: events of the very moment of a request are folded before it is answered."""
    to = world.Clock.to
    monkeypatch.setattr(world.Clock, "to", lambda self, time: to(self, time + 1))
    with pytest.raises(Leak, match="would see an event that became visible at"):
        replay(dataset(200))


def test_a_state_that_was_filled_beforehand_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay that starts from the end's state (say, counters of the whole log) sees the future in its first request."""
    init = world.Clock.__init__

    def filled(self: world.Clock, w: world.World, source: DatasetSource) -> None:
        init(self, w, source)
        self.finish()

    monkeypatch.setattr(world.Clock, "__init__", filled)
    with pytest.raises(Leak, match="scores and training rows from this replay would know the future"):
        replay(dataset(200))


def test_a_clock_skewed_label_is_refused() -> None:
    """The click on a request, visible before the request was made: its own outcome would be its input."""
    data = dataset(200)
    visible, ts = (data.events[k].to_numpy().copy() for k in ("visible_at", "ts"))
    k = int(np.flatnonzero(data.events["type"].to_numpy(zero_copy_only=False) == "click")[-1])
    visible[k] = ts[k] - 1
    events = data.events.set_column(data.events.column_names.index("visible_at"), "visible_at", [visible])
    with pytest.raises(InputError, match=r"1 events became visible before the requests they came of, as click\d+"):
        replay(with_events(data, form.in_visible_order(events)))


def test_requests_out_of_order_are_refused() -> None:
    data = dataset(60)
    order = np.argsort(-data.rows["ts"].to_numpy(), kind="stable")
    late = form.Dataset(data.events, data.rows.take(pa.array(order)), data.items, data.meta)
    with pytest.raises(InputError, match=r"sort rows.parquet by ts"):
        replay(late)
