"""docs/features.md explains every input of the model."""

from __future__ import annotations

import re
from pathlib import Path

from stream_dmgin.features.inputs import ALL
from stream_dmgin.features.spec import (
    BEHAVIOUR_CLASSES,
    CANDIDATE_BLOCKS,
    COUNTER_FEATURES,
    COUNTER_KINDS,
    GROUP_STATS,
    HALF_LIVES,
    PAIR_FEATURES,
    USER_BLOCKS,
    USER_FEATURES,
)

PAGE = (Path(__file__).parents[2] / "docs" / "features.md").read_text()


def test_every_input_is_on_the_page() -> None:
    shown = PAGE.replace("`s_*`", " ".join(f"`{n}`" for n in ALL if n.startswith("s_")))
    missing = [n for n in ALL if f"`{n}`" not in shown and n not in ("e_mask", "c_dense", "u_dense")]
    assert not missing
    assert not [n for n in (*PAIR_FEATURES, *USER_FEATURES) if f"`{n}`" not in PAGE]
    optional = [(b, n) for blocks in (USER_BLOCKS, CANDIDATE_BLOCKS) for b, names in blocks.items() for n in names]
    every_direction = re.compile(r"(readers_(?:clicked|left))_\d+")  # a column each, in one row of the page
    shown_as = [(b, every_direction.sub(r"\1_<k>", n)) for b, n in optional]
    assert shown_as and not [n for b, n in shown_as if f"`{n}`" not in PAGE or f"`{b}` (" not in PAGE]
    by_class = {f"log1p_{c}" for c in BEHAVIOUR_CLASSES}
    assert not [n for n in GROUP_STATS if n not in by_class and f"`{n}`" not in PAGE]
    for n in COUNTER_FEATURES:
        kind = next(k for k in COUNTER_KINDS if n.startswith(k))
        base = n.removeprefix(kind + "_")
        horizon = next((h for h in HALF_LIVES if base.endswith("_" + h)), "")
        assert f"`{kind}_`" in PAGE and (f"`{base}`" in PAGE or f"`_{horizon}`" in PAGE), n
