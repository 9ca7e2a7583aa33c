"""t-SNE: the coordinates, and which networks are embedded."""

from __future__ import annotations

from pathlib import Path

import pytest
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
    silent = torch.tensor(tsne.coordinates(torch.zeros(11, 4)))  # a network that never spikes
    assert silent.shape == (11, 2) and torch.isfinite(silent).all()


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"\xff\xfe", b"network\na\n", b"network,image,label,x,y\na,1,1,left,2\n"),
        *(b"network,image,label,x,y\na,0,0,nan,2\n", b"network,image,label,x,y\na,9\n"),
        b"network,image,label,x,y\na," + b"9" * 30 + b",1,1,2\n",
    ],
)
def test_a_damaged_table_is_made_again(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tsne.csv"
    path.write_bytes(content)
    assert tsne.known_networks(path) == set()


def test_the_networks_of_a_sound_table(tmp_path: Path) -> None:
    path = tmp_path / "tsne.csv"
    path.write_text("network,image,label,x,y\nteacher,0,1,0.5,-1\n")
    assert tsne.known_networks(path) == {"teacher"}
    assert tsne.known_networks(tmp_path / "none.csv") == set()
