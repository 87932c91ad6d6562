"""Recipes: files with the sizes and rates of a training, and what is said of wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from stream_dmgin.datasets.form import Meta
from stream_dmgin.errors import InputError, UsageError
from stream_dmgin.training import recipes
from stream_dmgin.training.options import Options
from stream_dmgin.training.zoo import named


def test_the_recipes_that_come_with_the_product() -> None:
    assert {"general", "demo", "kuairand", "ebnerd"} <= set(recipes.shipped())
    for name, path in recipes.shipped().items():
        found = recipes.read(path, Meta(name, 0, heads=["order"], item_numbers=["price"]))
        assert found.config.heads == ("order",) and found.spec.item_numbers == ("price",)
    assert recipes.of(Meta("kuairand", 0)).spec.blocks and recipes.of(Meta("kuairand", 0)) != recipes.of(
        Meta("other", 0)
    )
    assert recipes.find("demo") == recipes.shipped()["demo"]
    with pytest.raises(UsageError, match=r"not known: give a TOML file, or one of .*kuairand"):
        recipes.find("nothing")


def test_the_best_model_of_each_log_is_one_that_can_be_measured() -> None:
    for name in recipes.shipped():
        assert named(recipes.best(Meta(name, 0)).model) == (recipes.best(Meta(name, 0)).model,)
    assert recipes.best(Meta("kuairand", 0)).model == "stack" and recipes.best(Meta("other", 0)) == recipes.Choice(
        "dmgin"
    )


def test_values_take_the_place_of_defaults(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        '[inputs]\ngroups = 8\nblocks = ["session"]\n[model]\nhidden = [32, 16]\n[training]\nlr = 1\nlists = 0.5\n'
    )
    found = recipes.read(recipes.find(str(file)), Meta("x", 0))
    assert found.spec.groups == 8 and found.spec.blocks == ("session",) and found.config.hidden == (32, 16)
    assert found.options == Options(lr=1.0, lists=0.5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[training]\nepoch = 3", r"training\.epoch is not known: name some of epochs"),
        ("[training]\nseed = 3", r"training\.seed is not known"),
        ("[training]\nepochs = 2.5", r"training\.epochs = 2\.5 can't be used: give one like 4"),
        ('[trees]\norder = "yes"', r"trees\.order = 'yes' can't be used: give one like true"),
        ("[inputs]\nblocks = 1", r"inputs\.blocks = 1 can't be used"),
        ('[inputs]\nblocks = ["sessions"]', "name some of .*session"),
        ('[model]\noff = ["everything"]', "can't be switched off"),
        ('[calibration]\nkinds = ["weather"]', "kinds of segments are surface"),
        ("[forest]\n", "forest is not known: a recipe has the tables"),
        ("training = 1\n", "training is not known: name some of"),
        ("[training]\nitem_start = -1.0", "item_start is 0 or more"),
        ("[training]\nattention_start = -1.0", "attention_start is 0 or more"),
        ("no toml", "is no recipe"),
    ],
)
def test_wrong_recipes(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "r.toml"
    file.write_text(text)
    with pytest.raises(InputError, match=said):
        recipes.read(file, Meta("x", 0))
