"""Attention that begins with what is alike, where a recipe asks for it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stream_dmgin.models.dmgin import DMGIN
from stream_dmgin.models.peers.eta import ETA
from stream_dmgin.models.peers.mirrn import MIRRN
from stream_dmgin.models.peers.sim import SIM
from stream_dmgin.models.peers.twin import TWIN
from stream_dmgin.models.trunk import DMGINConfig, Trunk
from stream_dmgin.training.alike import begin_alike
from stream_dmgin.training.loop import Run
from stream_dmgin.training.options import Options
from tests.unit.test_training import SPEC, make

N = 40


def similarities(network: Trunk) -> list[torch.Tensor]:
    """[N,N] of each comparison: what N items get from N events on the same items, as the attention scales them."""
    items = torch.arange(1, N + 1).unsqueeze(-1) * torch.tensor([1, 0, 0]) + torch.tensor(
        [0, 1, 1]
    )  # of one category and advertiser
    network.eval()
    with torch.no_grad():
        asks = network.candidate(network.embed_items(items))
        found = []
        for ask, key in network.comparisons():
            raw = network.embed_items(items)
            side = network.event(raw)
            if key is not None:
                side = key(raw if key.in_features != network.config.width else side)
            found.append(ask(asks) @ side.T * network.config.width**-0.5)
        return found


def own_above_others(found: torch.Tensor) -> float:
    """How much more an event on the very item gets than one on another."""
    others = found[~torch.eye(N, dtype=torch.bool)]
    return float(found.diagonal().mean() - others.mean())


@pytest.mark.parametrize(("build", "attentions"), [(DMGIN, 2), (SIM, 2), (ETA, 2), (MIRRN, 2), (TWIN, 2)])
def test_what_is_alike_is_found_before_anything_is_learnt(build: type[Trunk], attentions: int) -> None:
    torch.manual_seed(1)
    config = DMGINConfig(SPEC)
    network = build(config)
    before = similarities(network)
    assert len(before) == attentions and all(abs(own_above_others(x)) < 0.05 for x in before)
    for strength in (1.0, 12.0):
        begin_alike(network, strength)
        for x in similarities(network):
            # a third of the length of an item's vector is its own, the rest its category's and advertiser's
            assert own_above_others(x) == pytest.approx(strength / 3, rel=0.5)
            assert (x.argmax(-1) == torch.arange(N)).float().mean() > 0.5


def test_modules_that_are_off_are_not_begun() -> None:
    off = DMGIN(DMGINConfig(SPEC, off=("short", "own-group", "same-item")))
    assert off.comparisons() == []
    begin_alike(off, 12.0)
    assert torch.equal(off.candidate.weight, off.event.weight)


@pytest.mark.parametrize("begun", [False, True])
def test_a_run_begins_so_unless_with_another_network(begun: bool) -> None:
    rows, _ = make(blocks=2)
    config = DMGINConfig(SPEC)
    start = DMGIN(config) if begun else None
    run = Run(config, rows, np.arange(rows.requests), Options(attention_start=12.0), DMGIN, start=start)
    assert torch.equal(run.network.candidate.weight, run.network.event.weight) != begun
    plain = Run(config, rows, np.arange(rows.requests), Options(), DMGIN)
    assert not torch.equal(plain.network.candidate.weight, plain.network.event.weight)
    run.step(np.arange(rows.requests))
    assert np.isfinite(run.network.candidate.weight.detach().numpy()).all()
