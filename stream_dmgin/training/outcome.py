"""What a fitted model says of the rows that it is judged by: all that metrics, differences and a stack need of it, without the model.

As bytes it has a digest, so that damage is seen.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.errors import InputError
from stream_dmgin.models.calibration import Calibration

MAGIC = b"stream-dmgin outcome 1\n"
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Outcome:
    """`logits` [V+T]: raw, of the valid rows and then of the test rows. `held` [T]: of the test rows with the user-only inputs as at the
    user's first test row; nan where nobody asks for that. `platt`: slope and offset of `ctr`, fitted on the valid rows. `heads`: of a
    network, a fit each, metrics of every head. `seconds` of CPU for fitting and scoring.
    """

    logits: Floats
    held: Floats
    platt: tuple[float, float]
    heads: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def calibration(self) -> Calibration:
        """Of `ctr`."""
        return Calibration({"ctr": self.platt})

    def straight(self, logits: Floats) -> Floats:
        """Raw logits of this model, calibrated."""
        slope, offset = self.platt
        found: Floats = slope * logits + offset
        return found

    def packed(self) -> bytes:
        """As bytes for a file."""
        text = json.dumps({"platt": self.platt, "heads": self.heads, "seconds": self.seconds})
        body = io.BytesIO()
        np.savez_compressed(body, logits=self.logits, held=self.held, about=np.frombuffer(text.encode(), np.uint8))
        return MAGIC + hashlib.sha256(body.getvalue()).digest() + body.getvalue()

    @classmethod
    def unpacked(cls, raw: bytes) -> Outcome:
        """What `packed` gave. InputError where it is damaged."""
        start = len(MAGIC)
        body = raw[start + 32 :]
        if raw[:start] != MAGIC or hashlib.sha256(body).digest() != raw[start : start + 32]:
            raise InputError("damaged, or not of this version")
        with np.load(io.BytesIO(body)) as found:
            about = json.loads(found["about"].tobytes())
            return cls(found["logits"], found["held"], tuple(about["platt"]), about["heads"], about["seconds"])
