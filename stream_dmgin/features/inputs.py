"""The model's inputs as preallocated numpy arrays, named and shaped by `features/spec.py`.

An `Inputs` is a plain mapping from names to arrays over one flat store per name, so that a batch of another size is a view,
not an allocation, and so that numba code gets all arrays by one array of addresses.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_dmgin.features.spec import N_STAT, InputSpec

_B, _I, _F = np.bool_, np.int32, np.float32
# name -> (dtype, dimensions after the first as keys of _sizes()); the order is that of the addresses
USER_SIDE: dict[str, tuple[Any, tuple[str, ...]]] = {
    "g_mask": (_B, ("G",)), "g_stat": (_F, ("G", "STAT")), "g_time": (_F, ("G",)),
    "e_item": (_I, ("G", "L", "3")), "e_id": (_I, ("G", "L")), "e_cls": (_I, ("G", "L")), "e_time": (_I, ("G", "L")),
    "e_dwell": (_I, ("G", "L")), "e_hour": (_I, ("G", "L")), "e_mask": (_B, ("G", "L")),
    "s_item": (_I, ("S", "3")), "s_cls": (_I, ("S",)), "s_time": (_I, ("S",)), "s_dwell": (_I, ("S",)), "s_mask": (_B, ("S",)),
}  # fmt: skip
REQUEST_SIDE: dict[str, tuple[Any, tuple[str, ...]]] = {
    "c_item": (_I, ("C", "3")), "c_id": (_I, ("C",)), "c_group": (_I, ("C",)), "c_dense": (_F, ("C", "D")),
    "c_mask": (_B, ("C",)), "g_age": (_F, ("G",)), "g_size": (_F, ("G",)), "u_dense": (_F, ("U",)), "x_cat": (_I, ()),
    "h_item": (_I, ("N", "3")), "h_cls": (_I, ("N",)), "h_dwell": (_I, ("N",)), "h_hour": (_I, ("N",)), "h_time": (_I, ("N",)),
    "h_age": (_F, ("N",)), "h_size": (_F, ("N",)), "h_mask": (_B, ("N",)),
}  # fmt: skip
ALL = {**USER_SIDE, **REQUEST_SIDE}
_VIEWS = 512  # sizes remembered by `fit`


def _sizes(spec: InputSpec, candidates: int) -> dict[str, int]:
    return {
        "G": spec.groups, "L": spec.events, "S": spec.short, "C": candidates, "3": 3, "N": spec.flat,
        "STAT": N_STAT, "D": len(spec.candidate_features), "U": len(spec.user_features),
    }  # fmt: skip


class Inputs(dict[str, NDArray[Any]]):
    """Arrays by name for `users` users with `candidates` candidates each. Make them with `allocate`."""

    spec: InputSpec
    users: int
    candidates: int
    addresses: NDArray[np.int64]  # of the arrays, in the order of ALL

    @classmethod
    def allocate(cls, spec: InputSpec, users: int, candidates: int) -> Inputs:
        """Zeroed arrays. ValueError unless both sizes are 1 or more."""
        if users < 1 or candidates < 1:
            raise ValueError(f"inputs need 1 or more users and candidates, not {users} x {candidates}")
        sizes = _sizes(spec, candidates)
        store = {}
        for name, (dtype, dims) in ALL.items():
            n = users
            for d in dims:
                n *= sizes[d]
            store[name] = np.zeros(n, dtype)
        return cls._over(store, spec, users, candidates)

    @classmethod
    def _over(cls, store: dict[str, NDArray[Any]], spec: InputSpec, users: int, candidates: int) -> Inputs:
        out = cls()
        sizes = _sizes(spec, candidates)
        for name, (_, dims) in ALL.items():
            shape = (users, *(sizes[d] for d in dims))
            out[name] = store[name][: int(np.prod(shape))].reshape(shape)
        out.spec, out.users, out.candidates = spec, users, candidates
        out.addresses = np.array([out[name].ctypes.data for name in ALL], np.int64)
        out._store, out._fits = store, {(users, candidates): out}
        return out

    _store: dict[str, NDArray[Any]]
    _fits: dict[tuple[int, int], Inputs]

    def fit(self, users: int, candidates: int) -> Inputs:
        """The same memory seen as a batch of another size; what one view holds is lost when another is filled.

        ValueError where the memory is too small: users and users x candidates must not exceed what was allocated.
        """
        known = self._fits.get((users, candidates))
        if known is None:
            if not (1 <= users <= len(self._store["x_cat"]) and 1 <= users * candidates <= len(self._store["c_id"])):
                raise ValueError(
                    f"{users} users x {candidates} candidates don't fit in these inputs: allocate larger ones"
                )
            if len(self._fits) >= _VIEWS:
                self._fits.clear()
            known = Inputs._over(self._store, self.spec, users, candidates)
            known._fits = self._fits
            self._fits[users, candidates] = known
        return known
