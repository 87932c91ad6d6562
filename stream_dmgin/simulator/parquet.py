"""A simulated history as Parquet in the normalised form, with the truth in a file of its own.

`oracle.parquet` (request_id, item_id, p) and `groups.csv` (item_id, group: the shop's concept) lie beside it; nothing
but an evaluation may read the oracle.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stream_dmgin.datasets import form
from stream_dmgin.simulator import behaviour as b
from stream_dmgin.simulator.city import City
from stream_dmgin.simulator.ids import delay, event_numbers, lag, request_numbers, tag
from stream_dmgin.simulator.users import UserArrays
from stream_dmgin.simulator.words import SURFACES
from stream_dmgin.simulator.world import DAY_MS, Plan, World, build_world, history

HEADS = ("order", "cart", "favourite", "share", "negative")
_TOPIC = np.array([0, 1, 2, 2, 2, 2, 2, 2])  # of each kind


def write_history(
    plan: Plan, out: Path, rows_days: int | None = None, done: Callable[[int], None] = lambda n: None
) -> dict[str, Any]:
    """Write the directory; returns counts. `rows_days`: labelled rows of the last days only (None: of all). `done` is called
    with the number of events after each block of users. Memory: about 300 bytes an event at the peak."""
    world = build_world(plan)
    events, rows = [], []
    for users, views, found in history(world):
        visible = _visible(plan, users, views, found)
        events.append(_events(plan, users, views, found, visible))
        labelled_at = _ordered_at(views, found, visible) if plan.order_delay_days else None
        rows.append(_rows(plan, world, users, views, rows_days, labelled_at))
        done(len(found.page))
    table = pa.concat_tables(events)
    table = table.take(pa.array(np.argsort(table["visible_at"].to_numpy(), kind="stable")))
    labelled = pa.concat_tables(rows)
    # stable, and each request lies in one piece: requests of the same millisecond stay whole
    labelled = labelled.take(pa.array(np.argsort(labelled["ts"].to_numpy(), kind="stable")))
    oracle = labelled.select(["request_id", "item_id", "p"])
    labelled = labelled.drop_columns(["p"])
    meta = form.Meta("city", plan.start_ms, heads=list(HEADS), item_numbers=["rating"], gauc="user")
    form.write(form.Dataset(table, labelled, items_table(world.city), meta), out)
    pq.write_table(oracle, out / "oracle.parquet", compression="zstd")
    write_groups(world.city, out / "groups.csv")
    clicked = labelled["label"].to_numpy()
    return {
        **meta.counts,
        "ctr": float(clicked.mean()) if len(clicked) else None,
        "days": plan.days,
        "start_ms": plan.start_ms,
    }


def items_table(city: City) -> pa.Table:
    """The catalogue as items.parquet, with the concept as group."""
    items = city.items()
    columns: dict[str, Any] = {n: [getattr(i, n) for i in items] for n in form.ITEMS if n not in ("attrs", "group")}
    columns |= {"attrs": [json.dumps(i.attrs) for i in items], "group": city.arrays.concept.astype(np.int64)}
    return form.table(form.ITEMS, columns)


def write_groups(city: City, path: Path) -> None:
    """The group map as CSV: item_id,group."""
    lines = [f"s{i},{k}\n" for i, k in enumerate(city.arrays.concept.tolist())]
    path.write_text("item_id,group\n" + "".join(lines))


def _visible(plan: Plan, users: UserArrays, views: b.Views, e: b.Events) -> NDArray[np.int64]:
    """When each event becomes known."""
    number = event_numbers(request_numbers(users.first + views.user, views.number)[e.page], e.position, e.kind)
    late = delay(number, plan.order_delay_days) if plan.order_delay_days else 0
    return e.ts + lag(number) + np.where(e.kind == b.ORDER, late, 0)


def _ordered_at(views: b.Views, e: b.Events, visible: NDArray[np.int64]) -> NDArray[np.int64]:
    """When the order of each place on a page becomes known, -1 without one."""
    at = np.full(views.item.shape, -1, np.int64)
    orders = e.kind == b.ORDER
    at[e.page[orders], e.position[orders]] = visible[orders]
    return at


def _events(plan: Plan, users: UserArrays, views: b.Views, e: b.Events, visible: NDArray[np.int64]) -> pa.Table:
    requests = request_numbers(users.first + views.user, views.number)
    number = event_numbers(requests[e.page], e.position, e.kind)
    t = tag(plan)
    return pa.table({
        "topic": _pick(("impressions", "clicks", "post-clicks"), _TOPIC[e.kind]),
        "user_id": _named("u", users.first, len(users.life), views.user[e.page]),
        "item_id": _named("s", 0, plan.items, e.item),
        "ts": e.ts,
        "visible_at": visible,
        "event_id": form.strings(number, "e" + t),
        "type": _pick(b.KINDS, e.kind),
        "dwell_ms": pa.array(e.dwell, mask=e.dwell < 0),
        "value": pa.array(e.value, mask=np.isnan(e.value)),
        "request_id": form.strings(requests, "q" + t).take(pa.array(e.page)),
        "position": e.position.astype(np.int64),
        "surface": _pick(SURFACES, views.surface[e.page]),
    })  # fmt: skip


def _rows(
    plan: Plan, world: World, users: UserArrays, views: b.Views, rows_days: int | None, ordered_at: NDArray[np.int64] | None
) -> pa.Table:  # fmt: skip
    first_ts = plan.start_ms + max(0, plan.days - rows_days) * DAY_MS if rows_days is not None else 0
    page, slot = np.nonzero((views.item >= 0) & (views.ts >= first_ts)[:, None])
    requests = request_numbers(users.first + views.user, views.number)
    outcome = views.outcome[page, slot]
    clicked = (outcome >> b.CLICK) & 1
    lat, lon = world.city.latlon(views.x, views.y)
    t = tag(plan)
    heads = {
        f"label_{h}": pa.array(((outcome >> b.KINDS.index(h)) & 1).astype(np.int8), mask=clicked == 0) for h in HEADS
    }
    if ordered_at is not None:
        at = ordered_at[page, slot]
        heads["label_order_at"] = pa.array(at, mask=at < 0)
    impression = event_numbers(requests[page], slot.astype(np.int16), np.zeros(len(page), np.uint8))
    return pa.table({
        "request_id": form.strings(requests, "q" + t).take(pa.array(page)),
        "user_id": _named("u", users.first, len(users.life), views.user[page]),
        "item_id": _named("s", 0, plan.items, views.item[page, slot]),
        "ts": views.ts[page],
        "label": clicked.astype(np.int8),
        "surface": _pick(SURFACES, views.surface[page]),
        "lat": lat[page],
        "lon": lon[page],
        "impression_id": form.strings(impression, "e" + t),
        **heads,
        "p": views.p[page, slot],
    })  # fmt: skip


def _pick(words: tuple[str, ...], index: NDArray[Any]) -> pa.Array:
    return pa.array(words).take(pa.array(index))


def _named(prefix: str, first: int, count: int, index: NDArray[Any]) -> pa.Array:
    return form.strings(np.arange(first, first + count), prefix).take(pa.array(index))
