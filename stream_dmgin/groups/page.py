"""`groups show --html`: a map on one page that needs nothing beside it: sizes, where the groups stand, who their neighbours are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from stream_dmgin.groups import plots
from stream_dmgin.groups.describe import Seen, categories_of, clusters, describe, means_of, plane, some_of
from stream_dmgin.groups.items import Items, View
from stream_dmgin.groups.map import GroupMap

_DOTS = 4000  # items drawn
_NATS = {"remembered": "nats a click, by the user's past", "foretold": "nats a click, by one nearby"}


def html(
    groups: GroupMap, report: Mapping[str, Any] | None, items: Items | None = None, vectors: View | None = None
) -> str:
    """The page. `report`: what `groups build` wrote beside the map. Names and categories are escaped; only the plots, which
    escape theirs, go in as they are."""
    r = report or {}
    found = np.array(list(groups.sizes().values()), np.int64)
    drawn = None if items is None or vectors is None else _drawn(groups, items, vectors)
    page = Environment(autoescape=True, undefined=StrictUndefined).from_string(
        files(__package__).joinpath("page.html").read_text("utf-8")
    )
    return page.render(
        id=groups.id, hues=plots.HUES, how=_how(groups, r), tiles=_tiles(groups, found, r),
        size_plot=Markup(plots.sizes(found, _cap(found, r))) if len(found) else "",
        sources=[(k, n) for k, n in r.get("sources", {}).items() if n], previous=r.get("previous"),
        sweep=r.get("sweep"), sweep_plots=_sweep_plots(r), tower_plots=_tower_plots(r), largest=describe(groups, 6)[:20],
        **(drawn or {"map_plot": None, "keys": [], "samples": [], "width": 0}),
    )  # fmt: skip


def _how(groups: GroupMap, r: Mapping[str, Any]) -> str:
    said = [f"{len(groups):,} items in {len(groups.sizes()):,} groups"]
    if r:
        made = r.get("made_from", {})
        said.append(f"method {r['method']}, seed {r['seed']}, {r['library']}")
        if made.get("encoder", "none") != "none":
            said.append(f"words by {made['encoder']}")
        if made.get("pairs"):
            said.append("towers trained on " + ", ".join(f"{n:,} pairs {k}" for k, n in made["pairs"].items()))
    if groups.levels:
        said.append("levels of codes " + " x ".join(map(str, groups.levels)))
    return "; ".join(said) + "."


def _tiles(groups: GroupMap, found: Any, r: Mapping[str, Any]) -> list[tuple[str, str]]:
    out = [("items", f"{len(groups):,}"), ("groups", f"{len(found):,}")]
    if len(found):
        out += [("items a group, median", f"{np.median(found):,.0f}"), ("largest group", f"{found.max():,}")]
    q = r.get("quality", {})
    out += [(n, f"{q[n]:.3f}") for n in ("balance", "cohesion", "purity") if q.get(n) is not None]
    if (c := r.get("clicks")) is not None:
        out.append(("groups a user, median", f"{c['groups_per_user_median']:,.0f}"))
        out += [(said, f"{c[n]:.3f}") for n, said in _NATS.items() if c.get(n) is not None]
    return out


def _cap(found: Any, r: Mapping[str, Any]) -> int | None:
    if not r.get("max_load") or r.get("method") != "kmeans" or r["sources"].get("category"):
        return None
    q = r["quality"]
    return int(np.ceil(r["max_load"] * q["items"] / (q["groups"] + q["empty"])))


def _sweep_plots(r: Mapping[str, Any]) -> list[Markup]:
    swept = r.get("sweep")
    if not swept or len(swept["trials"]) < 2:
        return []
    names = {
        **_NATS, "cohesion": "cohesion", "purity": "purity", "balance": "balance",
        "p95_user": "groups of a user, 95 %",
    }  # fmt: skip
    return [
        Markup(plots.curve([(t["k"], t[m]) for t in swept["trials"]], name, swept["k"]))
        for m, name in names.items()
        if all(m in t for t in swept["trials"])
    ]


def _tower_plots(r: Mapping[str, Any]) -> list[Markup]:
    made = r.get("made_from", {})
    epochs = made.get("epochs", [])
    if len(epochs) < 2:
        return []
    curves = [("loss", [(e["epoch"], e["held_out_loss"]) for e in epochs])]
    curves += [(f"{k} found", [(e["epoch"], e["found"][k]) for e in epochs]) for k in epochs[0]["found"]]
    return [Markup(plots.curve(points, name, made["best_epoch"], log=False)) for name, points in curves]


def _drawn(groups: GroupMap, items: Items, vectors: View) -> dict[str, Any] | None:
    seen: Seen = means_of(groups, items, vectors)
    if not len(seen.numbers):
        return None
    some = np.random.default_rng(0).permutation(np.flatnonzero(seen.of >= 0))[:_DOTS]
    norm = np.maximum(np.linalg.norm(vectors.vectors[some], axis=1, keepdims=True), 1e-12)
    dots, bubbles = plane((vectors.vectors[some] / norm).astype(np.float32), seen.means)
    common = categories_of(seen, items, vectors)
    tops = [c for c, _ in Counter(c for c, _ in common if c is not None).most_common(plots.HUES)]
    samples = clusters(seen, items, vectors, some_of(seen))
    hue = [tops.index(c) if c in tops else None for c, _ in common]
    said = [
        f"group {g}: {n:,} items" + (f", {c} {s:.0%}" if c else "")
        for g, n, (c, s) in zip(seen.numbers, seen.sizes, common, strict=True)
    ]
    keys = [(f"c{i}", c) for i, c in enumerate(tops)]
    if any(h is None for h in hue):
        keys.append(("c-other", "others" if tops else "groups"))
    return {
        "map_plot": Markup(plots.scatter(dots, bubbles, seen.sizes, hue, said)), "keys": keys, "samples": samples,
        "width": vectors.vectors.shape[1],
    }  # fmt: skip
