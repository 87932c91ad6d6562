"""Training by several processes, as `torchrun` starts them: each takes its share of every batch's requests, and the gradients are
added up before each step. Every process therefore takes the same steps, and the same ones as one process alone on whole batches.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

PATIENCE = timedelta(hours=6)  # others wait so long for one that replays a log

T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this is."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0

    def share(self, requests: NDArray[T]) -> NDArray[T]:
        """This process's requests of a batch. Neighbours, which are of like sizes, go to different processes."""
        return requests[self.rank :: self.world]

    def add(self, x: Tensor) -> None:
        """Replace x by the sum over all processes; the same bits everywhere."""
        if self.world > 1:
            dist.all_reduce(x)

    def agree(self, network: nn.Module) -> None:
        """Take the first process's weights."""
        if self.world > 1:
            for x in network.state_dict().values():
                dist.broadcast(x, 0)

    def wait(self) -> None:
        """Until all are here."""
        if self.world > 1:
            dist.barrier()


ALONE = Ranks()


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """The processes that `torchrun` started, by its environment; one alone without it."""
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1 or "RANK" not in os.environ:
        yield ALONE
        return
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
