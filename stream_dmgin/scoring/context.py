"""What a request's `context`, the caller's own map, says to models. What has another type or is no finite number is as good as absent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Context(NamedTuple):
    """Latitude and longitude in degrees, the surface, and the id of the item on whose page the candidates would stand."""

    lat: float | None
    lon: float | None
    surface: str | None
    page: str | None


def read_context(context: Mapping[str, Any] | None) -> Context:
    """The fields that models know."""
    c = context or {}
    return Context(_number(c.get("lat")), _number(c.get("lon")), _text(c.get("surface")), _text(c.get("page")))


def _text(x: Any) -> str | None:
    return x if isinstance(x, str) else None


def _number(x: Any) -> float | None:
    return float(x) if isinstance(x, (int, float)) and not isinstance(x, bool) and abs(x) < 1e12 else None
