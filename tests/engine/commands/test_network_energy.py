"""Networks of the user's own: how they are built, fed, counted and audited, and what is refused."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from tser_cli.base.errors import TserError
from tser_cli.engine.commands.audit import run_audit
from tser_cli.engine.commands.network_energy import build_network, measure_network, open_network
from tser_cli.report.words import network_sentences
from tser_cli.settings.options import EnergyRequest, NetworkRequest
from tser_cli.settings.wing_options import AuditRequest

MODULE = """
import torch
from torch import nn
from spikingjelly.activation_based import functional, layer, neuron

def build(width=4, mode="m"):
    torch.manual_seed(0)
    net = nn.Sequential(
        layer.Conv2d(1, width, 3, padding=1), neuron.IFNode(v_threshold=0.2), layer.Flatten(),
        layer.Linear(width * 64, 10), neuron.IFNode(v_threshold=0.1), layer.Linear(10, 3),
    )
    functional.set_step_mode(net, mode)
    return net

class OverBatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = build()

    def forward(self, x):
        y = self.net[1](self.net[0](x).flatten(0, 1)).unflatten(0, x.shape[:2])
        return self.net[2:](y)

def over_batch():
    return OverBatch()

class Unfolds(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = build()

    def forward(self, x_NTCHW):
        return self.net(x_NTCHW.transpose(0, 1))

def needs(depth):
    return build()

def number():
    return 3

def breaks():
    raise ValueError("no such size")

class Summing(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = (neuron.IFNode(v_threshold=v) for v in (0.1, 0.2))
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        return self.fc(self.a(x) + self.b(x))

class Scaled(nn.Module):
    def __init__(self, *sizes):
        super().__init__()
        self.n, self.sizes = neuron.IFNode(v_threshold=0.5), sizes
        self.fcs = nn.ModuleList(nn.Linear(6, 3) for _ in sizes)

    def forward(self, x):
        spikes = self.n(x)
        return sum(fc(spikes * c) for fc, c in zip(self.fcs, self.sizes))

def scaled(a=1.5, b=1.5):
    return Scaled(a, b)

class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.place = nn.Parameter(torch.ones(6, 4))
        self.words, self.n, self.fc = nn.Embedding(7, 4), neuron.IFNode(), nn.Linear(4, 3)
        torch.nn.init.ones_(self.words.weight)

    def forward(self, x):
        return self.fc(self.n(self.words(x) + self.place)).sum(1)

class Text(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        self.fc(x)
        return "no logits"

name = "not a function"
"""


@pytest.fixture(autouse=True)
def here(own_module: Callable[[str, str], Path]) -> Path:
    """The current folder, with a module of networks in it."""
    return own_module("mine", MODULE)


def measured(here: Path, **changes: Any) -> Any:
    given = {"network": "mine:build", "timesteps": 4, "images": 5, "batch_size": 2}
    fed = {} if "data" in changes else {"input_shape": "1,8,8"}
    return measure_network(EnergyRequest(output=here / "r.csv", **{**given, **fed, **changes}))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as stream:
        return list(csv.DictReader(stream))


def test_a_network_is_counted_priced_and_written(here: Path) -> None:
    result = measured(here)
    assert result.layout == "time-first, T = 4"
    assert result.kinds == {"0": "real", "3": "spikes", "5": "spikes"}
    assert not result.differing
    rows = rows_of(here / "r.csv")
    assert [row["layer"] for row in rows if row["t"] == "all"] == ["0", "3", "5", "TOTAL"]
    assert {row["timesteps"] for row in rows} == {"4"}
    assert {row["images"] for row in rows} == {"5"}
    document = json.loads((here / "r.json").read_text())
    assert document["network"]["layout"] == "time-first"
    assert document["totals"]["energy_pj"] == pytest.approx(float(rows[-1]["energy_pj"]))


@pytest.mark.parametrize(
    ("network", "arguments", "axis", "layout"),
    [
        ("build", (), 1, "time-first"),
        ("build", ("mode=s",), 0, "stepwise"),
        ("Unfolds", (), 2, "inside"),
    ],
)
def test_each_step_is_fed_with_its_own_input(
    here: Path, network: str, arguments: tuple[str, ...], axis: int, layout: str
) -> None:
    frames_NTCHW = np.random.default_rng(0).integers(0, 4, (5, 3, 1, 8, 8), dtype=np.uint8)
    np.save(here / "frames.npy", np.moveaxis(frames_NTCHW, 1, axis))
    given = {"network": f"mine:{network}", "arguments": arguments, "timesteps": 0}
    result = measured(here, data=here / "frames.npy", time_axis=axis, **given)
    assert result.layout == f"{layout}, T = 3"
    # brute force: every event, at every output that reads it
    frames = torch.from_numpy(frames_NTCHW).double()
    net = build_network("mine:build", ())
    ones = torch.ones(4, 1, 3, 3, dtype=torch.float64)
    rows = [row for row in rows_of(here / "r.csv") if row["layer"].endswith("0")]
    for column, x in (("sop_value", frames), ("sop_events", frames.sign())):
        sums_T = [float(F.conv2d(x[:, t], ones, padding=1).sum()) / 5 for t in range(3)]
        assert [float(row[column]) for row in rows] == pytest.approx([*sums_T, sum(sums_T)])
    spikes_TN = net[:3](frames.float().transpose(0, 1))
    hidden = [row for row in rows_of(here / "r.csv") if row["layer"].endswith("3")]
    each_T = 10 * spikes_TN.sum((1, 2)) / 5
    assert [float(row["sop_value"]) for row in hidden][:3] == pytest.approx(each_T.tolist())
    assert each_T[0] != each_T[1]
    assert "frames" in result.document["against_ann"]["assumptions"]
    assert result.notes[0] == "note: each time step has an input of its own"
    asked = AuditRequest(
        network=given["network"], arguments=arguments, data=here / "frames.npy", time_axis=axis
    )
    assert [
        one.severity for one in run_audit(asked).found.findings if one.check == "causality"
    ] == []


@pytest.mark.parametrize(
    ("shape", "changes", "said"),
    [
        ((5, 3, 1, 8, 8), {"timesteps": 4}, "-T 4: .*frames.npy has 3 time steps; leave -T out"),
        ((5, 3), {}, r"--time-axis 1: --data .* array \(5, 3\); with an axis of time it must be"),
        ((5, 1, 8, 8), {"time_axis": 4}, r"--time-axis 4: --data .* holds an array \(5, 1, 8, 8\)"),
        ((5, 0, 1, 8, 8), {}, r"--time-axis 1: --data .* holds an array \(5, 0, 1, 8, 8\)"),
        ((5, 3, 2, 8, 8), {}, "the network takes 1 channel, the images have 2"),
    ],
)
def test_an_axis_of_time_that_does_not_fit_is_refused(
    here: Path, shape: tuple[int, ...], changes: dict[str, Any], said: str
) -> None:
    np.save(here / "frames.npy", np.ones(shape, np.uint8))
    with pytest.raises(TserError, match=said):
        measured(here, data=here / "frames.npy", **{"time_axis": 1, "timesteps": 0, **changes})
    assert not (here / "r.csv").exists()


def test_an_axis_of_time_is_one_of_an_array() -> None:
    with pytest.raises(TserError, match="--time-axis: only with --data, whose array has an axis"):
        EnergyRequest(network="mine:build", input_shape="1,8,8", time_axis=1)
    with pytest.raises(TserError, match="--time-axis: only with --network"):
        EnergyRequest(time_axis=1)


def test_both_layouts_of_one_network_cost_the_same(here: Path) -> None:
    one = measured(here).document["totals"]
    other = measured(here, arguments=("mode=s", "width=4")).document["totals"]
    assert one == other


def test_conventions_a_match_memory_and_the_rival(here: Path) -> None:
    plain = measured(here).document["totals"]["energy_formula_pj"]
    match = f"{plain / 1e3}nJ"
    result = measured(here, conventions=True, match=match, fair_rival=True)
    table = rows_of(here / "r_conventions.csv")
    assert [row["convention"] for row in table] == [
        *("exact", "formula", "spikingjelly", "neurobench", "syops")
    ]
    assert result.beyond.matched is not None
    assert result.beyond.matched[0].convention == "formula"
    document = json.loads((here / "r.json").read_text())
    assert document["fair_rival"]["bits"] == 3
    assert document["lemaire"]["snn"]["total_pj"] > document["lemaire"]["snn"]["arithmetic_pj"]


def test_arrays_are_fed_as_they_are(here: Path) -> None:
    np.save(here / "x.npy", np.eye(8, dtype=np.uint8)[None, None].repeat(3, 0))
    result = measured(here, input_shape="", data=here / "x.npy", images=0)
    assert result.kinds["0"] == "spikes"
    assert result.document["images"] == 3
    # no more of a large file is read than is wanted
    np.save(here / "x.npy", np.eye(8, dtype=np.float32)[None, None] / [[[[1]]], [[[np.nan]]]])
    assert measured(here, input_shape="", data=here / "x.npy", images=1).document["images"] == 1


def test_a_network_is_found_in_a_file_as_a_function_or_a_module(here: Path) -> None:
    (here / "nets").mkdir()
    net = "class Net(nn.Linear):\n    def __init__(self): super().__init__(4, 2)\n"
    text = f"from torch import nn\n{net}"
    (here / "nets" / "apart.py").write_text(text + "made = Net()\n")
    assert build_network("nets/apart.py:Net").state_dict().keys() == {"weight", "bias"}
    made = build_network("nets/apart.py:made")
    assert build_network(f"{here}/nets/apart.py:made") is made


def test_weights_come_from_safetensors_or_a_state_dict(here: Path) -> None:
    built = build_network("mine:build")
    doubled = {name: 2 * value for name, value in built.state_dict().items()}
    save_file(doubled, here / "w.safetensors")
    torch.save({"epoch": 3, "model": doubled}, here / "w.pt")
    for name in ("w.safetensors", "w.pt"):
        request = NetworkRequest(network="mine:build", weights=here / name, input_shape="1,8,8")
        network, *_ = open_network(request)
        assert torch.equal(network.state_dict()["0.weight"], doubled["0.weight"])


class Evil:
    """A pickle that would run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("ran",)


def test_pickles_with_code_are_not_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": Evil()}, here / "evil.pt")
    with pytest.raises(
        TserError, match=r"a pickled object, made of print\. Code in a file is never"
    ):
        open_network(
            NetworkRequest(network="mine:build", weights=here / "evil.pt", input_shape="1,8,8")
        )
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("spec", "arguments", "message"),
    [
        ("mine", (), "write MODULE:NAME"),
        ("nosuch.py:build", (), "there is no such file"),
        ("other:build", (), "can't be imported from"),
        ("mine:bild", (), "has no function bild"),
        ("mine:name", (), "has no function name"),
        ("mine:needs", (), "missing a required argument: 'depth'; give --arg"),
        ("mine:build", ("colour=red",), "unexpected keyword argument 'colour'"),
        ("mine:build", ("width",), "write key=value"),
        ("mine:number", (), "returns int, not an nn.Module"),
        ("mine:breaks", (), "fails: ValueError: no such size"),
    ],
)
def test_what_is_no_network_is_refused(spec: str, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(TserError, match=message):
        build_network(spec, arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_shape": ""}, "say what feeds it"),
        ({"input_shape": "1,x"}, "write 3,32,32"),
        ({"input_shape": "1,0"}, "at least 1"),
        ({"input_shape": "3,8,8"}, "^the network takes 1 channel, the images have 3$"),
        ({"input_shape": "9999999,9999"}, "at most 268,435,456 random numbers"),
        ({"images": 10**12}, "1,000,000,000,000 images"),
        ({"data": Path("none.npy")}, "no regular file"),
        ({"data": Path("pipe.npy")}, "no regular file"),
        ({"data": Path("empty.npy")}, "EOFError"),
        ({"data": Path("several.npz")}, "holds several arrays"),
        ({"data": Path("terabytes.npy")}, "greater than file size"),
        ({"timesteps": 0, "layout": "time-first"}, "with -T"),
        ({"layout": "time-fist"}, "did you mean"),
        ({"layout": "folded"}, "fails on an input"),
        ({"weights": Path("none.safetensors")}, "can't be read"),
        ({"weights": Path("w.safetensors")}, "does not fit the network"),
        ({"network": "mine:Text", "input_shape": "4"}, "gives no tensor of logits, but str"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    here: Path, changes: dict[str, Any], message: str
) -> None:
    save_file(nn.Linear(2, 2).state_dict(), here / "w.safetensors")
    os.mkfifo(here / "pipe.npy")
    (here / "empty.npy").touch()
    np.savez(here / "several.npz", a=np.ones(1))
    with (here / "terabytes.npy").open("wb") as stream:
        header = {"descr": "<f4", "fortran_order": False, "shape": (10**6, 10**6)}
        np.lib.format.write_array_header_1_0(stream, header)
    with pytest.raises(TserError, match=message):
        measured(here, **changes)
    assert not (here / "r.csv").exists()


def test_whole_numbers_are_taken_for_sums_and_this_is_told(here: Path) -> None:
    np.save(here / "x.npy", np.arange(128, dtype=np.uint8).reshape(2, 1, 8, 8))
    result = measured(here, input_shape="", data=here / "x.npy", images=0)
    lines = network_sentences(result.layout, result.inputs, result.kinds, {}, [], result.notes)
    assert result.kinds["0"] == "sums"
    assert any("if they are pixels, scale them" in line for line in lines)


def test_sums_that_neurons_make_of_real_input_are_not_told_of_the_input(here: Path) -> None:
    result = measured(here, network="mine:Summing", input_shape="6", layout="stepwise")
    assert result.kinds == {"fc": "sums"}
    assert result.notes == []


@pytest.mark.parametrize("dtype", ["int64", "uint8"])
def test_indices_of_an_embedding_are_given_as_whole_numbers(here: Path, dtype: str) -> None:
    np.save(here / "x.npy", np.arange(18, dtype=dtype).reshape(3, 6) % 7)
    given = {"network": "mine:Tokens", "input_shape": "", "data": here / "x.npy", "images": 0}
    result = measured(here, **given, layout="stepwise")
    assert result.notes == []
    # Every neuron fires: 6 words x 4 spikes x 3 outputs, at each of 4 steps.
    total = next(
        row for row in rows_of(here / "r.csv") if row["layer"] == "fc" and row["t"] == "all"
    )
    assert float(total["sop_value"]) == 4 * 6 * 4 * 3
    with pytest.raises(TserError, match="fails"):
        measured(here, network="mine:Tokens", input_shape="6", layout="stepwise")
    shown = AuditRequest(network="mine:Tokens", timesteps=4, data=here / "x.npy", layout="stepwise")
    assert {finding.check for finding in run_audit(shown).found.findings} == {"firing"}


@pytest.mark.parametrize(
    ("arguments", "note"),
    [
        ((), "note: layers fcs.0, fcs.1 are fed with spikes of 1.5: 1.5 folds into their weights"),
        (("a=1",), "note: layer fcs.1 is fed with spikes of 1.5: 1.5 folds into its weights"),
        (
            ("a=2",),
            "spikes of a size of their own, which folds into the weights: fcs.0 2, fcs.1 1.5",
        ),
    ],
)
def test_the_size_of_spikes_folds_into_the_weights_and_is_noted(
    here: Path, arguments: tuple[str, ...], note: str
) -> None:
    found = {"network": "mine:scaled", "input_shape": "6", "layout": "stepwise"}
    result = measured(here, **found, arguments=arguments)
    assert any(note in line for line in result.notes)
    sizes = {"a": 1.5, **dict(part.split("=") for part in arguments)}
    scales = {"fcs.0": float(sizes["a"]), "fcs.1": 1.5}
    assert result.document["network"]["scales"] == {n: c for n, c in scales.items() if c != 1}
    first, second = (
        r for r in rows_of(here / "r.csv") if r["t"] == "all" and r["layer"] != "TOTAL"
    )
    assert first["input_kind"] == second["input_kind"] == "spikes"
    assert first["op"] == "AC"
    assert first["sop_value"] == first["sop_events"] == second["sop_value"] != "0"


@pytest.mark.parametrize("network", ["build", "over_batch"])
def test_a_network_is_audited_even_where_its_fault_hides_its_layout(network: str) -> None:
    given = {"input_shape": "1,8,8", "timesteps": 4, "images": 6}
    result = run_audit(AuditRequest(network=f"mine:{network}", **given))
    assert result.name == f"mine:{network}"
    assert result.found.clean == (network == "build")
    faults = {f.check for f in result.found.findings}
    assert ("batch independence" in faults) == (network == "over_batch")
    assert ("order of axes", "there are no labels") in result.found.skipped
