"""Plots as inline SVG: no script, no fonts, no files beside the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from stream_dmgin.ab.compare import Bin
from stream_dmgin.svg import picture, words
from stream_dmgin.training.metrics import Interval

COLOURS = ("#1b6ca8", "#c8553d", "#3a7d44", "#7a4d9f", "#8a6d1b", "#444444")
DASHES = ("none", "6 3", "2 2", "8 2 2 2")
GREY, FRAME = "#999", "#ccc"
FEW = 30  # rows below which a share of clicks is mostly luck


def reliability(models: Mapping[str, Sequence[Bin]], size: int = 320) -> str:
    """Predicted against observed click rate; the area of a point grows with its rows, and a point of fewer than FEW rows is hollow and on
    no line. The axes end above the points of more rows; the names stand on the right."""
    pad, right = 44, 16 + 7 * max((len(n) for n in models), default=0) + 24
    span = size - 2 * pad
    every = [b for bins in models.values() for b in bins]
    most = max((b.rows for b in every), default=1)
    top = _end(max((max(b.predicted, b.clicked) for b in every if b.rows >= FEW), default=1.0))

    def at(x: float, y: float) -> tuple[float, float]:
        return pad + x / top * span, size - pad - y / top * span

    parts = [f'<rect x="{pad}" y="{pad}" width="{span}" height="{span}" fill="none" stroke="{FRAME}"/>']
    parts.append(words(pad, 18, "Predicted against observed click rate", "start"))
    x0, y0 = at(0, 0)
    x1, y1 = at(top, top)
    parts.append(f'<line x1="{x0}" y1="{y0}" x2="{x1}" y2="{y1}" stroke="{GREY}" stroke-dasharray="4 3"/>')
    for k in range(5):
        tick = top * k / 4
        x, y = at(tick, 0)
        parts.append(words(x, y + 16, f"{tick:g}", "middle"))
        x, y = at(0, tick)
        parts.append(words(x - 6, y + 4, f"{tick:g}", "end"))
    parts.append(words(size / 2, size - 8, "predicted click rate", "middle"))
    parts.append(f'<g transform="rotate(-90 12 {size / 2})">{words(12, size / 2, "observed click rate", "middle")}</g>')
    outside = 0
    for k, (name, bins) in enumerate(models.items()):
        colour, style = COLOURS[k % len(COLOURS)], _style(k)
        sure = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(b.predicted, b.clicked) for b in bins if b.rows >= FEW))
        parts.append(f'<polyline fill="none" {style} points="{sure}"/>')
        for b in bins:
            if max(b.predicted, b.clicked) > top:
                outside += 1
                continue
            x, y = at(b.predicted, b.clicked)
            said = escape(f"{name}: {b.rows} rows, predicted {b.predicted:.3f}, observed {b.clicked:.3f}")
            radius = 2 + 5 * (b.rows / most) ** 0.5
            filled = f'fill="{colour}" fill-opacity=".6"' if b.rows >= FEW else f'fill="none" stroke="{colour}"'
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" {filled}><title>{said}</title></circle>')
        y = pad + 8 + 15 * k
        parts.append(f'<path d="M{size - pad + 16} {y}h16" fill="none" stroke-width="2" {style}/>')
        parts.append(words(size - pad + 38, y + 4, name, "start"))
    if any(b.rows < FEW for b in every):
        said = f"hollow: fewer than {FEW} rows" + (f"; {outside} of them outside" if outside else "")
        parts.append(words(pad, 34, said, "start"))
    height = max(size, pad + 15 * len(models) + 20)
    return picture(size + right, height, parts, "Reliability: predicted against observed click rate")


def _end(most: float) -> float:
    return next((e for e in (0.04, 0.1, 0.2, 0.4, 0.6, 0.8) if most <= e), 1.0)


def intervals(rows: Mapping[str, Interval], colours: Mapping[str, str], width: int = 560) -> str:
    """One line per name: the difference and its 95 % interval, zero marked; `colours` of those whose interval excludes zero."""
    left, right, step, top = 16 + 7 * max((len(n) for n in rows), default=0), 70, 26, 10
    low = min([0.0, *(i.low for i in rows.values())])
    high = max([0.0, *(i.high for i in rows.values())])
    room = (high - low) or 1.0
    ends = (low, high)
    low, high = low - room * 0.05, high + room * 0.05
    height = top + step * len(rows) + 24

    def x(value: float) -> float:
        return left + (value - low) / (high - low) * (width - left - right)

    parts = [
        f'<line x1="{x(0):.1f}" y1="{top}" x2="{x(0):.1f}" y2="{height - 20}" stroke="{GREY}" stroke-dasharray="4 3"/>'
    ]
    for k, (name, i) in enumerate(rows.items()):
        y = top + step * k + step / 2
        sure = i.low > 0 or i.high < 0
        colour = colours[name] if sure else GREY
        parts.append(words(left - 8, y + 4, name, "end"))
        parts.append(
            f'<line x1="{x(i.low):.1f}" y1="{y}" x2="{x(i.high):.1f}" y2="{y}" stroke="{colour}" stroke-width="2"/>'
        )
        parts.append(f'<circle cx="{x(i.diff):.1f}" cy="{y}" r="4" fill="{colour}"/>')
        parts.append(words(width - right + 8, y + 4, f"{i.diff:+.4f}", "start"))
    parts.append(words(x(0), height - 6, "0", "middle"))
    parts += [words(x(v), height - 6, f"{v:+.3f}", "middle") for v in ends if abs(x(v) - x(0)) > 45]
    return picture(width, height, parts, "Differences to the champion with 95 % intervals")


def lines(
    curves: Mapping[str, Sequence[tuple[float, float]]], x_title: str, y_title: str, width: int = 780, log: bool = True
) -> str:
    """One line a name over points (x, y), x on a logarithmic scale or (`log` false) an even one, y from 0; names stand beside the ends of
    their lines."""
    left, right, top, bottom, height = 64, 230, 12, 44, 420
    points = [p for curve in curves.values() for p in curve]
    xs = sorted({x for x, _ in points})
    most = max((y for _, y in points), default=0.0) or 1.0
    scale = math.log if log else float
    span = scale(xs[-1]) - scale(xs[0]) if len(xs) > 1 else 1.0

    def at(x: float, y: float) -> tuple[float, float]:
        along = (scale(x) - scale(xs[0])) / span
        return left + along * (width - left - right), height - bottom - y / most * (height - top - bottom)

    parts = [f'<path d="M{left} {top}V{height - bottom}H{width - right}" fill="none" stroke="{FRAME}"/>']
    for x in xs:
        parts.append(words(at(x, 0)[0], height - bottom + 16, f"{x:g}", "middle"))
    for k in range(5):
        parts.append(words(left - 6, at(xs[0], most * k / 4)[1] + 4, f"{most * k / 4:.3f}", "end"))
    parts.append(words((left + width - right) / 2, height - 8, x_title, "middle"))
    parts.append(f'<g transform="rotate(-90 12 {height / 2})">{words(12, height / 2, y_title, "middle")}</g>')
    ranked = sorted(curves.items(), key=lambda c: c[1][-1][1])  # the lowest end first
    room = (height - top - bottom) / max(1, len(ranked) - 1)
    names = _apart([at(*curve[-1])[1] for _, curve in ranked], min(13.0, room), top)
    for k, ((name, curve), beside) in enumerate(zip(ranked, names, strict=True)):
        style = _style(k)
        placed = [at(*p) for p in curve]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(f'<polyline fill="none" stroke-width="1.5" {style} points="{path}"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{COLOURS[k % len(COLOURS)]}"/>' for x, y in placed]
        x, y = placed[-1]
        parts.append(f'<path d="M{x + 4:.1f} {y:.1f}L{x + 20:.1f} {beside:.1f}h10" fill="none" {style}/>')
        parts.append(words(x + 33, beside + 4, f"{name} {curve[-1][1]:.4f}", "start"))
    return picture(width, height, parts, f"{y_title} by {x_title}")


def _apart(places: Sequence[float], least: float, top: float) -> list[float]:
    """Heights of names for ends at these heights (descending): moved up where they are nearer than `least`, down again at the top."""
    found: list[float] = []
    for y in places:
        found.append(min([y, *(f - least for f in found[-1:])]))
    low = top
    for k in range(len(found) - 1, -1, -1):
        found[k] = max(found[k], low)
        low = found[k] + least
    return found


def _style(k: int) -> str:
    """Colour and dashes of line number `k`: no two of 24 are alike."""
    return f'stroke="{COLOURS[k % len(COLOURS)]}" stroke-dasharray="{DASHES[k // len(COLOURS) % len(DASHES)]}"'
