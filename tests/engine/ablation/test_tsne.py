"""t-SNE: the coordinates, and which networks are embedded."""

from __future__ import annotations

import torch

from tser_cli.engine.ablation import tsne


def test_t_sne_keeps_groups_apart_and_is_the_same_again() -> None:
    centres = torch.tensor([[0.0] * 8, [9.0] * 8]).repeat_interleave(20, 0)
    features = centres + torch.randn(40, 8)
    points = torch.tensor(tsne.coordinates(features))
    assert points.shape == (40, 2)
    assert torch.equal(points, torch.tensor(tsne.coordinates(features)))
    distances = torch.cdist(points, points)
    distances.fill_diagonal_(torch.inf)
    nearest = distances.argmin(1)
    assert ((nearest < 20) == (torch.arange(40) < 20)).all()


def test_t_sne_of_a_silent_network_is_no_error() -> None:
    points = torch.tensor(tsne.coordinates(torch.zeros(11, 4)))
    assert points.shape == (11, 2)
    assert torch.isfinite(points).all()
