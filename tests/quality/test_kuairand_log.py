"""KuaiRand through the log: a slice of its users is imported, a model is trained on its first days, the worker scores the last
day, and the scores are those that `evaluate` gives, and reproducible: of the recipe's stack, and of inputs that learn from the stream."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from stream_dmgin.datasets import form, load
from stream_dmgin.datasets.content import Embedding
from stream_dmgin.datasets.grouping import group_map
from stream_dmgin.training import recipes
from stream_dmgin.training.content import embedded
from stream_dmgin.training.evaluate import Plan, days, evaluate_all
from tests.commands import js

DATA = Path("../shared/data/kuairand_pure")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not here: bring the files of KuaiRand-Pure to run this"),
]


@pytest.fixture(scope="module")
def whole() -> form.Dataset:
    return load("kuairand", DATA)


def some(whole: form.Dataset, part: int) -> form.Dataset:
    """Days 0 to 11 of one user in so many, a power of two."""
    last = whole.meta.day0_ms + 12 * whole.meta.day_ms
    tables = []
    for t in (whole.events, whole.rows):
        mine = pc.equal(pc.bit_wise_and(t["user_id"].cast("int64"), part - 1), 5)
        tables.append(t.filter(pc.and_(mine, pc.less(t["ts"], last))))
    return form.Dataset(*tables, whole.items, whole.meta)


EXACT = "session,surface,engagement,taste,content,passed"  # the recipe's blocks but `online`


@pytest.mark.parametrize("online", [False, True])
def test_days_0_to_11_through_the_log(
    whole: form.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, online: bool
) -> None:
    # the log's recipe, whose members are four, with less work for each
    short = tmp_path / "short.toml"
    text = recipes.shipped()["kuairand"].read_text()
    short.write_text(text.replace("epochs = 3", "epochs = 1").replace("bags = 5", "bags = 1\nlr = 0.1\nrounds = 150"))
    recipe = recipes.read(short, whole.meta)
    assert recipe.options.epochs == recipe.trees.bags == 1 and len(recipe.stack.members) == 4
    monkeypatch.setattr(recipes, "of", lambda meta: recipe)
    blocks = recipe.spec.blocks if online else recipes.block_names(EXACT)
    assert {*recipe.spec.blocks} == {*EXACT.split(","), "online"}
    data = some(whole, 16)
    how = Embedding("clicks", recipe.spec.embedding, data.meta.day0_ms + data.meta.day_ms)
    data = embedded(data, how, None, print)
    form.write(data, tmp_path / "slice")
    group_map(data).save(tmp_path / "groups.parquet")
    train = ("--train-days", "1-9", "--valid-days", "10-10", "--recipe", str(short))
    train += ("--model", "stack", "--blocks", ",".join(blocks))
    made = js("train", "--data", tmp_path / "slice", *train, "--out", tmp_path / "models" / "slice")
    assert made["architecture"] == "ensemble"

    args = ["--log", f"file:{tmp_path / 'log'}", "--data-dir", tmp_path]
    js("topics", "apply", *args, "--partitions", "2")
    js("topics", "import", tmp_path / "slice", "--request-days", "11-11", *args)
    groups = ["--groups", tmp_path / "groups.parquet"]
    model = ["--model", tmp_path / "models" / "slice"]
    done = js("worker", *args, *groups, *model, "--until-end", "--ordered", "--http", "off")
    rows = data.rows.filter(data.day(data.rows["ts"].to_numpy()) == 11)
    assert done["scores"] == rows.num_rows and done["dead_letters"] == 0

    if not online:
        found = js("replay", "--scored", *args)
        (live,) = found["metrics"].values()
        assert found["status"] == {"ok": rows.num_rows} and live["rows"] == rows.num_rows
        assert live["clicks"] == sum(rows["label"].to_pylist()) and live["auc"] > 0.6
    # the scores served live are those that `evaluate` gives for the day, from a training and a replay of its own
    js("topics", "export", "scores", *args, "--out", tmp_path / "scores.parquet")
    served = {r["request_id"]: r["ctr"][0] for r in pq.read_table(tmp_path / "scores.parquet").to_pylist()}
    spans = (days(data.meta, text, "--days") for text in ("1-9", "10-10", "11-11"))
    source, found = evaluate_all(data, Plan(*spans), ("stack",), blocks=blocks)
    scored = found["stack"]
    of = source.requests.request_of_rows()[scored.row]
    assert len(served) == len(of) == rows.num_rows
    live_ctr = np.array([served[source.requests.id[i]] for i in of])
    if online:  # what is learnt by gradient steps depends a little on how events were put together: by partition, between requests
        far = np.abs(live_ctr - scored.calibrated[1])
        assert far.max() < 0.02 and far.mean() < 1e-3
        return
    np.testing.assert_allclose(live_ctr, scored.calibrated[1], rtol=0, atol=1e-4)
    again = js("replay", tmp_path / "slice", *groups, *model, *args, "--out", tmp_path / "replay")
    assert again["labelled"] == data.rows.num_rows
    checked = js("replay", "--verify", "100", *groups, *args)
    assert checked["checked"] == checked["reproduced"] == checked["state_identical"] == 100
