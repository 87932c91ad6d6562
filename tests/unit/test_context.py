"""What models read of a request's context, the caller's own map."""

from __future__ import annotations

from typing import Any

import pytest

from stream_dmgin.scoring.context import Context, read_context

NOTHING = Context(None, None, None, None)


def test_what_is_there_is_read() -> None:
    c = read_context({"lat": 1, "lon": -2.5, "surface": "map", "page": "shop 7", "mood": "hungry"})
    assert c == Context(1.0, -2.5, "map", "shop 7") and isinstance(c.lat, float)


@pytest.mark.parametrize(
    "context",
    [
        None,
        {},
        {"lat": None, "lon": None, "surface": None, "page": None},
        {"lat": float("nan"), "lon": float("inf"), "surface": 7, "page": 7},
        {"lat": True, "lon": "52.5", "surface": b"map", "page": ["shop 7"]},
        {"lat": 1e300, "lon": 10**400, "surface": {"a": 1}, "page": 1.5},
    ],
)
def test_what_makes_no_sense_is_as_good_as_absent(context: dict[str, Any] | None) -> None:
    assert read_context(context) == NOTHING
