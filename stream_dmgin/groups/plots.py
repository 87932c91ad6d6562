"""Pictures of a map as inline SVG; colours are classes of the page, so that it can be light or dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.groups.items import Matrix

HUES = 8  # classes c0 to c7; c-other is grey


def sizes(found: NDArray[np.int64], cap: int | None, width: int = 560, height: int = 240) -> str:
    """Items of each group, the largest first; the cap as a dashed line."""
    ranked = np.sort(found)[::-1]
    left, right, top, bottom = 52, 12, 14, 34
    high = float(max(ranked.max(), cap or 0)) * 1.05
    w, h = width - left - right, height - top - bottom
    at = np.unique(np.linspace(0, len(ranked) - 1, min(len(ranked), 280)).round().astype(np.int64))
    step = w / len(at)
    parts = _grid(left, top, w, h, _ticks(high), high)
    for n, i in enumerate(at.tolist()):
        bar = ranked[i] / high * h
        parts.append(
            f'<rect class="c0" x="{left + n * step:.2f}" y="{top + h - bar:.2f}" width="{max(step - 0.6, 0.6):.2f}"'
            f' height="{bar:.2f}"><title>group {i + 1:,} of {len(ranked):,} by size: {int(ranked[i]):,} items</title></rect>'
        )
    if cap is not None:
        y = top + h - cap / high * h
        parts.append(f'<line class="mark" x1="{left}" x2="{left + w}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(left + w, y - 5, f"cap {cap:,}", "end"))
    parts.append(_text(left, height - 14, "largest"))
    parts.append(_text(left + w, height - 14, "smallest", "end"))
    parts.append(_text(left + w / 2, height - 14, f"{len(ranked):,} groups", "middle"))
    return _svg(width, height, parts, "Items of each group, the largest group first")


def scatter(
    dots: Matrix,
    bubbles: Matrix,
    weight: NDArray[np.int64],
    hue: Sequence[int | None],
    said: Sequence[str],
    size: int = 560,
) -> str:
    """Items as dots, groups as bubbles whose area grows with their items. `hue`: which colour each bubble has, None: grey.
    `said`: what a bubble says when pointed at."""
    both = np.concatenate([dots, bubbles]) if len(dots) else bubbles
    low, high = np.quantile(both, 0.001, axis=0), np.quantile(both, 0.999, axis=0)
    low, high = np.minimum(low, bubbles.min(0)), np.maximum(high, bubbles.max(0))
    room = float(max((high - low).max(), 1e-9))
    pad = 22

    def at(p: Matrix) -> tuple[float, float]:
        x, y = (p - (low + high) / 2) / room * (size - 2 * pad)
        return size / 2 + float(x), size / 2 - float(y)

    parts = []
    for p in dots:
        x, y = at(p)
        if 0 <= x <= size and 0 <= y <= size:
            parts.append(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="1.1"/>')
    largest = float(weight.max(initial=1))
    scale = min(17.0, 0.32 * size / math.sqrt(max(len(bubbles), 1)))
    for g in np.argsort(-weight, kind="stable").tolist():
        x, y = at(bubbles[g])
        c = "c-other" if hue[g] is None else f"c{hue[g]}"
        r = max(scale * math.sqrt(weight[g] / largest), 1.6)
        parts.append(
            f'<circle class="bubble {c}" cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}"><title>{escape(said[g])}</title></circle>'
        )
    return _svg(size, size, parts, "Groups on the two directions in which they differ most")


def curve(
    points: Sequence[tuple[float, float]],
    name: str,
    mark: float | None = None,
    log: bool = True,
    width: int = 270,
    height: int = 190,
) -> str:
    """One measure over K (log scale) or over epochs; `mark`: the x that was chosen."""
    left, right, top, bottom = 58, 12, 26, 30
    w, h = width - left - right, height - top - bottom
    xs = [math.log(max(x, 1e-9)) if log else x for x, _ in points]
    ys = [y for _, y in points]
    low, high = min(ys), max(ys)
    margin = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    low, high = low - margin, high + margin
    span = (max(xs) - min(xs)) or 1.0

    def at(x: float, y: float) -> tuple[float, float]:
        return left + (x - min(xs)) / span * w, top + h - (y - low) / (high - low) * h

    parts = [_text(left, 14, name, strong=True)]
    for tick in np.linspace(low + margin, high - margin, 3):
        y = at(0, float(tick))[1]
        parts.append(f'<line class="grid" x1="{left}" x2="{left + w}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(left - 6, y + 4, f"{tick:.3g}", "end"))
    if mark is not None:
        x = at(math.log(mark) if log else mark, low)[0]
        parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{top + h}"/>')
    line = [at(x, y) for x, y in zip(xs, ys, strict=True)]
    parts.append(f'<polyline class="line" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in line)}"/>')
    for (x, y), (k, v) in zip(line, points, strict=True):
        parts.append(f'<circle class="c0" cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{k:,g}: {v:.4g}</title></circle>')
    for k, (x, _) in ((points[0][0], line[0]), (points[-1][0], line[-1])):
        parts.append(_text(x, height - 12, f"{k:,g}", "start" if x == line[0][0] else "end"))
    parts.append(_text(left + w / 2, height - 12, "groups" if log else "epoch", "middle"))
    return _svg(width, height, parts, name)


def _ticks(high: float) -> list[float]:
    step = 10 ** math.floor(math.log10(max(high / 2, 1)))
    step *= next((m for m in (1, 2, 5) if high / (step * m) <= 5), 10)
    return [step * i for i in range(int(high / step) + 1)]


def _grid(left: float, top: float, w: float, h: float, ticks: Sequence[float], high: float) -> list[str]:
    parts = []
    for t in ticks:
        y = top + h - t / high * h
        parts.append(f'<line class="grid" x1="{left}" x2="{left + w}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(left - 6, y + 4, f"{t:,g}", "end"))
    return parts


def _text(x: float, y: float, text: str, anchor: str = "start", strong: bool = False) -> str:
    weight = ' font-weight="600"' if strong else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{weight}>{escape(text)}</text>'


def _svg(width: float, height: float, parts: Sequence[str], title: str) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" role="img">'
    return f"{head}<title>{escape(title)}</title>{''.join(parts)}</svg>"
