"""EB-NeRD through the log: a slice of its users is imported, trees are trained on its first days by its recipe, the worker scores a day, and the
scores are those that `evaluate` gives, but for what depends on how events were put together, and reproducible: with lists, audiences and all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from stream_dmgin.counters.increments import decode
from stream_dmgin.datasets import form, load
from stream_dmgin.datasets.content import Embedding
from stream_dmgin.datasets.grouping import group_map
from stream_dmgin.log.base import open_log
from stream_dmgin.replay.logsource import read_all
from stream_dmgin.training import recipes
from stream_dmgin.training.content import embedded
from stream_dmgin.training.evaluate import Plan, days, evaluate_all
from tests.commands import js

DATA = Path("../shared/data/ebnerd_demo")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not here: bring the files of EB-NeRD's demo to run this"),
]


def some(part: int) -> form.Dataset:
    """Days 0 to 9 of one user in so many, a power of two."""
    whole = load("ebnerd", DATA)
    last = whole.meta.day0_ms + 10 * whole.meta.day_ms
    tables = []
    for t in (whole.events, whole.rows):
        mine = pc.equal(pc.bit_wise_and(t["user_id"].cast("int64"), part - 1), 5)
        tables.append(t.filter(pc.and_(mine, pc.less(t["ts"], last))))
    # histories that only their users may know have no place on a log, where every event counts for all
    events = tables[0].filter(tables[0]["shared"])
    return form.Dataset(events, tables[1], whole.items, whole.meta)


# what is learnt depends a little on how events were put together, by partition and between requests; gradient steps more than sums
@pytest.mark.parametrize(("online", "most", "mean"), [(True, 0.03, 1.5e-3), (False, 0.02, 3e-4)])
def test_days_0_to_9_through_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, online: bool, most: float, mean: float
) -> None:
    short = tmp_path / "short.toml"
    text = recipes.shipped()["ebnerd"].read_text()
    short.write_text(text.replace("bags = 3", "bags = 1\nrounds = 100"))
    data = some(8)
    recipe = recipes.read(short, data.meta)
    assert recipe.trees.bags == 1 and {"audience", "online"} <= {*recipe.spec.blocks}
    monkeypatch.setattr(recipes, "of", lambda meta: recipe)
    blocks = tuple(b for b in recipe.spec.blocks if online or b != "online")
    data = embedded(data, Embedding("clicks", recipe.spec.embedding, data.meta.day0_ms), None, print)
    form.write(data, tmp_path / "slice")
    mapped = group_map(data)
    assert 2 <= len(mapped.sizes()) <= 64 and len(mapped) > 500  # the log has neither groups nor categories
    mapped.save(tmp_path / "groups.parquet")
    spans = "--train-days", "0-6", "--valid-days", "7-8"
    js(
        "train",
        "--data",
        tmp_path / "slice",
        *spans,
        "--recipe",
        short,
        "--model",
        "lightgbm",
        "--blocks",
        ",".join(blocks),
        "--out",
        tmp_path / "models" / "slice",
    )

    args = ["--log", f"file:{tmp_path / 'log'}", "--data-dir", tmp_path]
    js("topics", "apply", *args, "--partitions", "2")
    js("topics", "import", tmp_path / "slice", "--request-days", "9-9", *args)
    how = ["--groups", tmp_path / "groups.parquet", "--model", tmp_path / "models" / "slice"]
    done = js("worker", *args, *how, "--until-end", "--ordered", "--http", "off")
    rows = data.rows.filter(data.day(data.rows["ts"].to_numpy()) == 9)
    requests = len(pc.unique(rows["request_id"]))
    assert done["scores"] == requests > 100 and done["dead_letters"] == 0

    # who saw what is on the counters topic, once
    shown = clicked = 0
    with open_log(f"file:{tmp_path / 'log'}") as log:
        for value in read_all(log, ["dmgin.counters"]).values:
            found = decode(value).increments.audience
            assert found is not None
            shown += int(found.count[found.metric == 0].sum())
            clicked += int(found.count[found.metric == 1].sum())
    topics = data.events["topic"].value_counts().to_pylist()
    there = {c["values"]: c["counts"] for c in topics}
    assert (
        0.9 * there["impressions"] < shown <= there["impressions"]
        and 0.9 * there["clicks"] < clicked <= there["clicks"]
    )

    js("topics", "export", "scores", *args, "--out", tmp_path / "scores.parquet")
    served = {
        (r["request_id"], i): p
        for r in pq.read_table(tmp_path / "scores.parquet").to_pylist()
        for i, p in zip(r["candidates"], r["ctr"], strict=True)
    }
    plan = Plan(*(days(data.meta, span, "--days") for span in ("0-6", "7-8", "9-9")))
    source, models = evaluate_all(data, plan, ("lightgbm",), blocks=blocks)
    scored = models["lightgbm"]
    request = np.array(source.requests.id, object)[source.requests.request_of_rows()[scored.row]]
    item = rows["item_id"].to_pylist()
    live = np.array([served[r, i] for r, i in zip(request, item, strict=True)])
    far = np.abs(live - scored.calibrated[1])
    assert far.max() < most and far.mean() < mean, (far.max(), far.mean())
    checked = js("replay", "--verify", "60", "--groups", tmp_path / "groups.parquet", *args)
    assert checked["checked"] == checked["reproduced"] == checked["state_identical"] == 60
