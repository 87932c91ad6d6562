"""A training run on disk, so that it goes on where it was stopped: one file, replaced as a whole, with a digest of its content.

A stop while writing leaves the file before it; a damaged one is refused, never gone on from.
"""

from __future__ import annotations

import hashlib
import io
import os
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stream_dmgin.errors import InputError
from stream_dmgin.training.options import Options, Point

MAGIC = b"stream-dmgin checkpoint 2\n"


@dataclass
class Progress:
    """How far a run is. `done`: batches of `epoch` that are trained on; `window`: sum and number of the losses since the last
    validation."""

    step: int = 0
    epoch: int = 0
    done: int = 0
    since: int = 0
    stopped: bool = False
    seconds: float = 0.0
    window: tuple[float, int] = (0.0, 0)
    best: Point | None = None
    weights: Mapping[str, Tensor] | None = None
    curve: list[Point] = field(default_factory=list)


def identity(options: Options, config: Any, *requests: NDArray[np.int64]) -> dict[str, Any]:
    """What a run must share with the one that it goes on from."""
    return {
        "options": asdict(options),
        "config": repr(asdict(config)),
        "requests": [[len(r), zlib.crc32(np.ascontiguousarray(r).tobytes())] for r in requests],
    }


def usable(path: Path) -> None:
    """InputError, before anything is computed, where no checkpoint can be kept at this path."""
    if path.is_dir():
        raise InputError(f"{path} is a directory: --checkpoint names a file in one")
    above = next(p for p in path.absolute().parents if p.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise InputError(f"{path} can't be written: {above} is no directory that this account may write to")


def save(
    path: Path, who: Mapping[str, Any], parts: Mapping[str, nn.Module | torch.optim.Optimizer], at: Progress
) -> None:
    """Write everything a run needs; `path` is the old file or the new one, whenever the machine stops."""
    state = {**vars(at), "best": asdict(at.best) if at.best else None, "curve": [asdict(p) for p in at.curve]}
    made = io.BytesIO()
    torch.save({"who": dict(who), "state": state, **{k: v.state_dict() for k, v in parts.items()}}, made)
    body = made.getvalue()
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(path.name + ".part")
    with half.open("wb") as f:
        f.write(MAGIC + hashlib.sha256(body).digest() + body)
        f.flush()
        os.fsync(f.fileno())
    half.replace(path)


def load(path: Path, who: Mapping[str, Any], parts: Mapping[str, nn.Module | torch.optim.Optimizer]) -> Progress:
    """Put the parts where the run was. InputError where the file is damaged, or of another run."""
    raw = path.read_bytes()
    start = len(MAGIC)
    body = raw[start + 32 :]
    if raw[:start] != MAGIC or hashlib.sha256(body).digest() != raw[start : start + 32]:
        raise InputError(f"{path} is damaged, or no checkpoint of this version: delete it to start anew")
    saved = torch.load(io.BytesIO(body), weights_only=True)
    if saved["who"] != dict(who):
        other = [k for k in who if saved["who"].get(k) != who[k]]
        raise InputError(
            f"{path} was written with other {' and '.join(other)}: give the same to go on from it, or delete it to start anew"
        )
    for name, part in parts.items():
        part.load_state_dict(saved[name])
    at = Progress(**saved["state"])
    at.best = Point(**saved["state"]["best"]) if saved["state"]["best"] else None
    at.curve = [Point(**p) for p in saved["state"]["curve"]]
    return at
