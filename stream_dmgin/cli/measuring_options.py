"""Options that the long measurements (`evaluate`, `groups effect`, `lifelong`) share, and `train` with them."""

from __future__ import annotations

from pathlib import Path

import click

from stream_dmgin.cli.common import F

jobs_option = click.option(
    "--jobs", type=click.IntRange(1), default=1, show_default=True,
    help="models fitted side by side, each in a process of one thread; the same figures to the last bit",
)  # fmt: skip
embed_option = click.option(
    "--embed", type=click.Choice(["none", "lsa", "minilm", "clicks"]),
    help="embeddings for the blocks `content`, `passed`, `audience` ...: of words by lsa or minilm (extra `text`), of clicks before the "
    "first train day [default: the log's recipe]",
)  # fmt: skip
_OPTIONS = (
    click.option("--seeds", type=click.IntRange(1), default=1, show_default=True, help="how many models to train"),
    click.option(
        "--first-seed", type=click.IntRange(1), default=1, show_default=True,
        help="the first of them: runs of one seed each, with the same --keep, are put together by a last one",
    ),
    click.option(
        "--keep", "keep_dir", type=click.Path(file_okay=False, path_type=Path),
        help="folder that keeps what is made on the way (a simulated city, replayed rows) and what each model and seed said;"
        " only what is missing is made",
    ),
    jobs_option,
)  # fmt: skip


def measuring_options(f: F) -> F:
    """--seeds, --first-seed, --keep, --jobs: `seeds`, `first_seed`, `keep_dir`, `jobs`."""
    for option in reversed(_OPTIONS):
        f = option(f)
    return f
