"""`tser energy --network` and `tser audit`, through the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.command import Invoke

MODULE = """
from torch import nn
from spikingjelly.activation_based import layer, neuron

class Net(nn.Module):
    def __init__(self, pool):
        super().__init__()
        self.conv1 = layer.Conv2d(1, 4, 3, step_mode="m")
        self.act1 = neuron.IFNode(0.1, step_mode="m")
        self.pool = layer.AvgPool2d(2, step_mode="m") if pool else nn.Identity()
        self.conv2 = layer.Conv2d(4, 4, 3, step_mode="m")
        self.act2 = neuron.IFNode(0.01, step_mode="m")
        self.fc = layer.Linear(4 if pool else 64, 3, step_mode="m")

    def forward(self, x):
        return self.fc(self.act2(self.conv2(self.pool(self.act1(self.conv1(x))))).flatten(2))

def build(pool=False):
    import torch
    torch.manual_seed(0)
    return Net(pool)
"""


@pytest.fixture
def tser(tser: Invoke, tmp_path: Path, nothing_added: None) -> Invoke:
    """Call the command line in a folder with a module: (exit code, output, messages)."""
    (tmp_path / "theirs.py").write_text(MODULE)
    return tser


NETWORK = ("--network", "theirs:build", "--input", "1,8,8", "-T", "3")


def test_energy_tells_what_feeds_what_and_what_is_not_counted(tser: Invoke, tmp_path: Path) -> None:
    arguments = ("--conventions", "--fair-rival", "--arg", "pool=True", "--match", "1mJ")
    code, out, _ = tser("energy", "r.csv", *NETWORK, *arguments)
    assert code == 0
    assert "layout: time-first, T = 3; fed with random numbers of 1,8,8" in out
    assert "fed with real: conv1, conv2" in out
    assert "fed with spikes: fc" in out
    assert "not counted, of the dense FLOP: avg_pool2d" in out
    assert "spikingjelly" in out
    assert "1mJ: no convention comes within 5 % of it" in out
    assert "arithmetic alone: " in out and "with memory (Lemaire et al. 2022): " in out
    assert "activations of 2 bits" in out
    assert {path.name for path in tmp_path.glob("r*")} == {"r.csv", "r.json", "r_conventions.csv"}


def test_audit_ends_with_4_where_something_is_wrong(tser: Invoke) -> None:
    code, out, _ = tser("audit", *NETWORK, "--arg", "pool=True")
    assert code == 4
    assert "finding: spike-driven inputs: conv2: 1 of its calls met real values" in out
    code, out, _ = tser("audit", *NETWORK)
    assert code == 0
    assert "theirs:build: clean" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("energy", "r.csv", "--layout", "folded"), "--layout: only with --network"),
        (("audit", "-T", "4"), "-T: only with --network"),
        (("energy", "r.csv", "--network", "theirs:build"), "say what it is fed with"),
        (("energy", "r.csv", *NETWORK, "--data", "x.npy"), "with one of them"),
        (("energy", "r.csv", *NETWORK, "--per-image", "i.csv"), "--per-image: not with --network"),
        (("energy", "r.txt", *NETWORK), "call it r.csv"),
        (("energy", "r.csv", *NETWORK, "--match", "many"), "is no energy"),
        (("energy", "r.csv", *NETWORK, "--profile", "horowitz-45nm-int8"), "--assume-int8"),
    ],
)
def test_what_does_not_fit_is_one_message(
    tser: Invoke, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    code, out, err = tser(*arguments)
    assert code == 2
    assert message in err
    assert out == ""
    assert "Traceback" not in err
    assert not list(tmp_path.glob("r.*"))
