"""A picture as SVG that needs nothing beside it: no script, no fonts, no style sheet."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape


def words(x: float, y: float, text: str, anchor: str, colour: str = "#333") -> str:
    """A line of text; `anchor`: start, middle or end of it is at x."""
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} font-size="11" font-family="sans-serif" fill="{colour}">{escape(text)}</text>'


def picture(width: float, height: float, parts: Sequence[str], title: str) -> str:
    """The whole, `width` wide or as wide as there is room; `title` is what a screen reader says."""
    size = f'viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} style="max-width:100%;height:auto" role="img">'
    paper = '<rect width="100%" height="100%" fill="#fff"/>'  # dark viewers would leave dark words on dark
    return f"{head}<title>{escape(title)}</title>{paper}{''.join(parts)}</svg>"
