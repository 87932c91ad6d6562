"""How each log is trained: sizes of the inputs, of the model, and of the training, chosen on valid days.

A recipe is a TOML file with the tables `inputs`, `model`, `training`, `trees`, `stack`, `calibration`, `refit` and `evaluate`; what it
doesn't name keeps its default. Those that come with the product lie in `models/recipes/`, by the name of the dataset.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from stream_dmgin.datasets.form import Meta
from stream_dmgin.errors import InputError, UsageError
from stream_dmgin.features.spec import BLOCKS, InputSpec
from stream_dmgin.models.members import reach
from stream_dmgin.models.registry import search_path
from stream_dmgin.models.trunk import DMGINConfig
from stream_dmgin.training.online import OnlineOptions
from stream_dmgin.training.options import Options, RefitOptions
from stream_dmgin.training.stack import StackOptions
from stream_dmgin.training.trees import TreeOptions

GENERAL = "general"
TABLES = ("inputs", "model", "training", "trees", "stack", "calibration", "refit", "evaluate")
OF_THE_LOG = (
    "spec",
    "heads",
    "item_numbers",
    "seed",
    "flat",
)  # said by the log, for each run, or by the stack's members

T = TypeVar("T")


@dataclass(frozen=True)
class Recipe:
    """Config of the model and options of the training; options of the trees on the same inputs; members of the stack; how calibration
    follows the stream; how networks go on learning from it."""

    config: DMGINConfig
    options: Options
    trees: TreeOptions = field(default_factory=TreeOptions)
    stack: StackOptions = field(default_factory=StackOptions)
    online: OnlineOptions = field(default_factory=OnlineOptions)
    refit: RefitOptions = field(default_factory=RefitOptions)

    @property
    def spec(self) -> InputSpec:
        """Sizes of the inputs."""
        return self.config.spec


@dataclass(frozen=True)
class Choice:
    """What `evaluate` measures where it isn't told: the model that was best on the valid days, by its name in `zoo.py`. `embed`: the
    how to make the items' embeddings (`datasets/content.py`), where a block reads them; empty: not at all."""

    model: str = "dmgin"
    embed: str = ""


def best(meta: Meta) -> Choice:
    """What the recipe of a log holds for the best."""
    path = _file(meta)
    return _made(path, "evaluate", Choice(), _given(path))


def block_names(text: str) -> tuple[str, ...]:
    """`session,surface` (or `none`) as optional blocks of inputs (`features/spec.py`). Raises UsageError."""
    wanted = set() if text == "none" else {x.strip() for x in text.split(",")}
    if not wanted <= set(BLOCKS):
        raise UsageError(f"--blocks {text!r} can't be used: name some of {', '.join(BLOCKS)}, or none")
    return tuple(b for b in BLOCKS if b in wanted)


def with_blocks(recipe: Recipe, blocks: tuple[str, ...]) -> Recipe:
    """The recipe with these optional blocks of inputs in place of its own."""
    spec = replace(recipe.spec, blocks=blocks)
    return replace(recipe, config=replace(recipe.config, spec=spec))


def with_stack(recipe: Recipe, members: tuple[str, ...]) -> Recipe:
    """The recipe for a stack of these; none: for a network or trees alone. The inputs have the flat sequence that they read."""
    spec = replace(recipe.spec, flat=max(map(reach, members), default=0))
    stack = replace(recipe.stack, members=members or recipe.stack.members)
    return replace(recipe, config=replace(recipe.config, spec=spec), stack=stack)


def of(meta: Meta) -> Recipe:
    """The recipe of a log, by the name of its dataset; the general one for logs without their own."""
    return read(_file(meta), meta)


def _file(meta: Meta) -> Path:
    known = shipped()
    return known[meta.dataset if meta.dataset in known else GENERAL]


def shipped() -> dict[str, Path]:
    """Recipes on the search path of models, by name; a file of an earlier place hides those of later ones."""
    found: dict[str, Path] = {}
    for root in search_path():
        for path in sorted((root / "recipes").glob("*.toml")):
            found.setdefault(path.stem, path)
    return found


def find(name_or_file: str) -> Path:
    """The file of a recipe, by its name or path. Raises UsageError."""
    if Path(name_or_file).is_file():
        return Path(name_or_file)
    known = shipped()
    if name_or_file not in known:
        raise UsageError(
            f"recipe {name_or_file!r} is not known: give a TOML file, or one of {', '.join(sorted(known))}"
        )
    return known[name_or_file]


def read(path: Path, meta: Meta) -> Recipe:
    """A recipe for this log. InputError where the file can't be used: it names the key and the fix."""
    given = _given(path)
    stack = _made(path, "stack", StackOptions(), given)
    spec = replace(_made(path, "inputs", InputSpec(), given), item_numbers=tuple(meta.item_numbers))
    spec = replace(spec, flat=max(map(reach, stack.members), default=0))
    config = replace(_made(path, "model", DMGINConfig(), given), spec=spec, heads=tuple(meta.heads))
    _made(path, "evaluate", Choice(), given)  # what can't be used there is said as well
    return Recipe(
        config, _made(path, "training", Options(), given), _made(path, "trees", TreeOptions(), given),
        stack, _made(path, "calibration", OnlineOptions(), given), _made(path, "refit", RefitOptions(), given),
    )  # fmt: skip


def _given(path: Path) -> dict[str, Any]:
    """The tables of the file."""
    try:
        given = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        raise InputError(f"{path} is no recipe: {e}") from e
    if not set(given) <= set(TABLES):
        raise InputError(
            f"{path}: {_all(set(given) - set(TABLES))} not known: a recipe has the tables {', '.join(TABLES)}"
        )
    return given


def _made(path: Path, table: str, default: T, given: Mapping[str, Any]) -> T:
    """The defaults of a table with the given values in their places."""
    values = given.get(table, {})
    may = {f.name: getattr(default, f.name) for f in dataclasses.fields(default) if f.name not in OF_THE_LOG}  # type: ignore[arg-type]
    if not isinstance(values, dict) or not set(values) <= set(may):
        wrong = set(values) - set(may) if isinstance(values, dict) else {table}
        raise InputError(f"{path}: {_all({f'{table}.{k}' for k in wrong})} not known: name some of {', '.join(may)}")
    fitting: dict[str, Any] = {}
    for key, value in values.items():
        kind = (
            float if may[key] is None else type(may[key])
        )  # what is None by default is a number that is chosen otherwise
        fits = isinstance(value, list) if kind is tuple else type(value) in ((int, float) if kind is float else (kind,))
        if not fits:
            raise InputError(f"{path}: {table}.{key} = {value!r} can't be used: give one like {_shown(may[key])}")
        fitting[key] = tuple(value) if kind is tuple else kind(value)
    try:
        return replace(default, **fitting)  # type: ignore[type-var]
    except ValueError as e:
        raise InputError(f"{path}: {table}: {e}") from e


def _shown(value: Any) -> str:
    return repr(list(value)) if isinstance(value, tuple) else json.dumps(value)


def _all(names: set[str]) -> str:
    return ", ".join(sorted(names)) + (" is" if len(names) == 1 else " are")
