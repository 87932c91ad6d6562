"""Networks that are compared with DMGIN: each a module of interest of its own over the flat sequence of a user's life, on the same
trunk (`models/trunk.py`), inputs and training loop. Written anew from the ideas of the papers that each file names.

`PEERS`: name -> class, as `evaluate --model` knows them.
"""

from stream_dmgin.models.peers.base import Peer
from stream_dmgin.models.peers.din import DIN
from stream_dmgin.models.peers.eta import ETA
from stream_dmgin.models.peers.hstu import FlatHSTU
from stream_dmgin.models.peers.mirrn import MIRRN
from stream_dmgin.models.peers.sdim import SDIM
from stream_dmgin.models.peers.sim import SIM
from stream_dmgin.models.peers.twin import TWIN, TWINV2

PEERS: dict[str, type[Peer]] = {
    "din": DIN, "sim": SIM, "eta": ETA, "sdim": SDIM, "twin": TWIN, "twin-v2": TWINV2, "mirrn": MIRRN, "hstu": FlatHSTU,
}  # fmt: skip
