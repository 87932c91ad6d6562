"""How a network is trained, and what one validation found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """How to train. Weights of the terms of the loss (`training/objective.py`): `order`, `lists`, `heads`; `table_decay`: weight
    decay of the hash tables; `item_start`: how long the vectors of items are that their table begins with, made of the items' embeddings
    where the inputs read these (`training/items.py`); 0: short ones by lot; `attention_start`: how strongly attention begins with what is
    alike (`training/alike.py`); 0: by lot; `teacher`: share of the click's label that trees give (`training/teacher.py`); 0: no
    teacher. ValueError for one below 0, or a share above 1.
    """

    epochs: int = 4
    batch: int = 1024
    lr: float = 1e-3
    decay: float = 1e-2
    table_decay: float = 1.0
    item_start: float = 0.0
    attention_start: float = 0.0
    teacher: float = 0.0
    order: float = 0.1
    lists: float = 0.0  # of the second output that learns the order inside a list and is blended in; 0: none
    heads: float = 0.2
    average: float = 0.998  # decay of the running mean of the weights, which is what is evaluated and kept
    checks: int = 2  # validations an epoch
    patience: int = 4  # validations without a gain before stopping
    seed: int = 1
    reported: tuple[str, ...] = ()  # heads that only advertisers can report (`training/heads.py`)
    delay_days: float = 0.0  # how old a click is before all that follows has come; 0: nothing comes late
    stretch: int = 1  # requests read from the folder in one piece; more for a set larger than memory (`rows.parts`)

    def __post_init__(self) -> None:
        if self.item_start < 0:
            raise ValueError("item_start is 0 or more")
        if self.attention_start < 0:
            raise ValueError("attention_start is 0 or more")
        if not 0.0 <= self.teacher <= 1.0:
            raise ValueError("teacher is a share, 0 to 1")


@dataclass(frozen=True)
class RefitOptions:
    """How a network goes on learning from what became visible since (`training/further.py`), beside the other options of its training.

    `old`: requests it learned from before that are shown again, drawn by lot, for each new one, so that it doesn't forget them.
    ValueError for sizes below the least.
    """

    epochs: int = 1
    lr: float = 3e-4
    old: float = 1.0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.lr <= 0 or self.old < 0:
            raise ValueError("epochs are 1 or more, lr is above 0, old is 0 or more")


@dataclass
class Point:
    """One validation."""

    step: int
    epoch: float
    train_loss: float
    valid_logloss: float
    valid_auc: float
    seconds: float
