"""Where standby copies are kept: simulated groups that lose and get members."""

from __future__ import annotations

import itertools

import pytest

from stream_dmgin.errors import ConfigError
from stream_dmgin.settings import load
from stream_dmgin.worker.copies import keepers, owner

SIZES = [(members, partitions) for members in range(2, 9) for partitions in (8, 16, 24, 64)]


def given(partitions: int, members: list[str]) -> dict[int, str]:
    """As Kafka's `range` says it: contiguous, the first ones get one more."""
    each, more = divmod(partitions, len(members))
    out: list[str] = []
    for i, m in enumerate(sorted(members)):
        out += [m] * (each + (i < more))
    return dict(enumerate(out))


def warm(partitions: int, before: list[str], after: list[str], copies: int) -> tuple[int, int]:
    """(partitions that move to a member that was there before, those of them of which it had a copy)"""
    old, new = given(partitions, before), given(partitions, after)
    moved = [p for p in range(partitions) if new[p] != old[p] and new[p] in before]
    return len(moved), sum(new[p] in keepers(p, partitions, before, copies) for p in moved)


def test_the_owner_is_that_of_range() -> None:
    for n, partitions in SIZES:
        members = [f"m{i}" for i in range(n)]
        assert given(partitions, members) == {p: owner(p, partitions, members) for p in range(partitions)}


@pytest.mark.parametrize("copies", [1, 2])
def test_as_many_members_may_go_as_there_are_copies(copies: int) -> None:
    for n, partitions in SIZES:
        members = [f"m{i}" for i in range(n)]
        for gone in itertools.combinations(members, min(copies, n - 1)):
            moved, found = warm(partitions, members, [m for m in members if m not in gone], copies)
            assert moved == found > 0


def test_a_join_finds_most_and_a_second_copy_nearly_all() -> None:
    shares = []
    for copies in (1, 2):
        all_, good = 0, 0
        for n, partitions in SIZES:
            members = [f"m{2 * i + 1:02}" for i in range(n)]
            for new in range(0, 2 * n + 1, 2):
                moved, found = warm(partitions, members, [*members, f"m{new:02}"], copies)
                all_, good = all_ + moved, good + found
        shares.append(good / all_)
    assert 0.7 < shares[0] < 0.9 < shares[1] < 1


def test_few_members() -> None:
    assert keepers(3, 8, ["only"], 2) == []
    assert keepers(3, 8, ["b", "a"], 5) == ["b"]


def test_the_setting() -> None:
    for value in (True, "all", 2, "0", False):
        load({"worker.standby": value}, environ={})
    for value in ("some", -1, 101, 1.5):
        with pytest.raises(ConfigError, match=r"worker\.standby"):
            load({"worker.standby": value}, environ={})
