"""Plots as inline SVG: no script, no fonts, no files beside the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from stream_dmgin.ab.compare import Bin
from stream_dmgin.training.metrics import Interval

COLOURS = ("#1b6ca8", "#c8553d", "#3a7d44", "#7a4d9f", "#8a6d1b", "#444444")
DASHES = ("none", "6 3", "2 2", "8 2 2 2")
GREY, FRAME = "#999", "#ccc"


def reliability(models: Mapping[str, Sequence[Bin]], size: int = 320) -> str:
    """Predicted against observed click rate; the area of a point grows with its rows."""
    pad = 44
    span = size - 2 * pad
    most = max((b.rows for bins in models.values() for b in bins), default=1)

    def at(x: float, y: float) -> tuple[float, float]:
        return pad + x * span, size - pad - y * span

    parts = [f'<rect x="{pad}" y="{pad}" width="{span}" height="{span}" fill="none" stroke="{FRAME}"/>']
    x0, y0 = at(0, 0)
    x1, y1 = at(1, 1)
    parts.append(f'<line x1="{x0}" y1="{y0}" x2="{x1}" y2="{y1}" stroke="{GREY}" stroke-dasharray="4 3"/>')
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = at(tick, 0)
        parts.append(_text(x, y + 16, f"{tick:g}", "middle"))
        x, y = at(0, tick)
        parts.append(_text(x - 6, y + 4, f"{tick:g}", "end"))
    parts.append(_text(size / 2, size - 8, "predicted click rate", "middle"))
    parts.append(f'<g transform="rotate(-90 12 {size / 2})">{_text(12, size / 2, "observed", "middle")}</g>')
    for colour, (name, bins) in zip(_colours(len(models)), models.items(), strict=True):
        points = [at(b.predicted, b.clicked) for b in bins]
        parts.append(
            f'<polyline fill="none" stroke="{colour}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'
        )
        for b, (x, y) in zip(bins, points, strict=True):
            said = escape(f"{name}: {b.rows} rows, predicted {b.predicted:.3f}, observed {b.clicked:.3f}")
            radius = 2 + 5 * (b.rows / most) ** 0.5
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{colour}" fill-opacity=".6">'
                f"<title>{said}</title></circle>"
            )
    return _svg(size, size, parts, "Reliability: predicted against observed click rate")


def intervals(rows: Mapping[str, Interval], width: int = 560) -> str:
    """One line per name: the difference and its 95 % interval, zero marked."""
    left, right, step, top = 190, 90, 26, 10
    low = min([0.0, *(i.low for i in rows.values())])
    high = max([0.0, *(i.high for i in rows.values())])
    room = (high - low) or 1.0
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
        colour = COLOURS[0] if sure else GREY
        parts.append(_text(left - 8, y + 4, name, "end"))
        parts.append(
            f'<line x1="{x(i.low):.1f}" y1="{y}" x2="{x(i.high):.1f}" y2="{y}" stroke="{colour}" stroke-width="2"/>'
        )
        parts.append(f'<circle cx="{x(i.diff):.1f}" cy="{y}" r="4" fill="{colour}"/>')
        parts.append(_text(width - right + 8, y + 4, f"{i.diff:+.4f}", "start"))
    parts.append(_text(x(0), height - 6, "0", "middle"))
    return _svg(width, height, parts, "Differences to the champion with 95 % intervals")


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
        parts.append(_text(at(x, 0)[0], height - bottom + 16, f"{x:g}", "middle"))
    for k in range(5):
        parts.append(_text(left - 6, at(xs[0], most * k / 4)[1] + 4, f"{most * k / 4:.3f}", "end"))
    parts.append(_text((left + width - right) / 2, height - 8, x_title, "middle"))
    parts.append(f'<g transform="rotate(-90 12 {height / 2})">{_text(12, height / 2, y_title, "middle")}</g>')
    ranked = sorted(curves.items(), key=lambda c: c[1][-1][1])  # the lowest end first
    room = (height - top - bottom) / max(1, len(ranked) - 1)
    names = _apart([at(*curve[-1])[1] for _, curve in ranked], min(13.0, room), top)
    for k, ((name, curve), beside) in enumerate(zip(ranked, names, strict=True)):
        style = f'stroke="{COLOURS[k % len(COLOURS)]}" stroke-dasharray="{DASHES[k // len(COLOURS) % len(DASHES)]}"'
        placed = [at(*p) for p in curve]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(f'<polyline fill="none" stroke-width="1.5" {style} points="{path}"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{COLOURS[k % len(COLOURS)]}"/>' for x, y in placed]
        x, y = placed[-1]
        parts.append(f'<path d="M{x + 4:.1f} {y:.1f}L{x + 20:.1f} {beside:.1f}h10" fill="none" {style}/>')
        parts.append(_text(x + 33, beside + 4, f"{name} {curve[-1][1]:.4f}", "start"))
    return _svg(width, height, parts, f"{y_title} by {x_title}")


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


def _colours(n: int) -> list[str]:
    return [COLOURS[k % len(COLOURS)] for k in range(n)]


def colours(names: Sequence[str]) -> dict[str, str]:
    """The colour of each model in the reliability plot."""
    return dict(zip(names, _colours(len(names)), strict=True))


def _text(x: float, y: float, text: str, anchor: str) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} font-size="11" font-family="sans-serif" fill="#333">{escape(text)}</text>'


def _svg(width: float, height: float, parts: Sequence[str], title: str) -> str:
    size = f'viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">'
    return f"{head}<title>{escape(title)}</title>{''.join(parts)}</svg>"
