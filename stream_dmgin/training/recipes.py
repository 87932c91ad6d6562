"""How each log is trained: sizes of the inputs, of the model, and of the training, chosen on valid days."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from stream_dmgin.datasets.form import Meta
from stream_dmgin.errors import UsageError
from stream_dmgin.features.spec import BLOCKS, InputSpec
from stream_dmgin.models.trunk import DMGINConfig
from stream_dmgin.training.loop import Options
from stream_dmgin.training.trees import TreeOptions


@dataclass(frozen=True)
class Recipe:
    """Config of the model and options of the training; options of the trees on the same inputs."""

    config: DMGINConfig
    options: Options
    trees: TreeOptions = field(default_factory=TreeOptions)

    @property
    def spec(self) -> InputSpec:
        """Sizes of the inputs."""
        return self.config.spec


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


def of(meta: Meta) -> Recipe:
    """The recipe of a log, by the name of its dataset; a general one for logs without their own."""
    numbers, heads = tuple(meta.item_numbers), tuple(meta.heads)
    if meta.dataset == "kuairand":
        spec = InputSpec(groups=32, events=16, short=32, item_buckets=16384, item_numbers=numbers, blocks=BLOCKS)
        return Recipe(DMGINConfig(spec, heads), Options(epochs=3))
    spec = InputSpec(groups=48, events=16, short=32, item_buckets=16384, item_numbers=numbers)
    return Recipe(DMGINConfig(spec, heads), Options())
