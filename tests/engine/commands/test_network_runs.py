"""How a network of the user's own is run: T, states, resets, types, wrappers, chance, sizes.

The right values are worked out by hand: images are constant, and weights are such that every spike
is known.
"""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tser_cli.base.errors import TserError, out_of_memory
from tser_cli.energy.any_network.network_counter import count_operations
from tser_cli.energy.neurons import different
from tser_cli.engine.commands.audit import run_audit
from tser_cli.engine.commands.network_energy import NetworkEnergyResult, measure_network
from tser_cli.report.words import leaves_out
from tser_cli.settings.options import EnergyRequest
from tser_cli.settings.wing_options import AuditRequest

MODULE = '''
import functools, random
import numpy as np
import torch
from torch import nn
from spikingjelly.activation_based import functional, layer, neuron

def eye(outputs=3):
    """4 inputs of 1 fire 4 neurons at every step: 4 x 3 accumulates a step at "2"."""
    net = nn.Sequential(nn.Linear(4, 4), neuron.IFNode(v_threshold=0.5), nn.Linear(4, outputs))
    nn.init.eye_(net[0].weight), nn.init.zeros_(net[0].bias)
    return net

class Loop(nn.Module):
    """Makes its own steps: as many as it is told under the name `by`."""
    def __init__(self, steps=4):
        super().__init__()
        self.net, self.steps = eye(), steps
    def forward(self, x):
        return sum(self.net(x) for _ in range(self.steps))

class LoopAhead(Loop):
    """The same, with images that look at each other where they have time in front."""
    def forward(self, x):
        return super().forward(x - x.mean((0, 1), keepdim=True) if x.dim() == 3 else x)

class Inline(nn.Module):
    """The same with spikes that no module makes."""
    def __init__(self, steps=4):
        super().__init__()
        self.a, _, self.b = eye()
        self.steps = steps
    def forward(self, x):
        v, y = torch.zeros_like(x), 0
        for _ in range(self.steps):
            v = v + self.a(x)
            s = (v >= 0.5).float()
            v = v * (1 - s)
            y = y + self.b(s)
        return y

class SharedNeuron(nn.Module):
    """One layer of neurons at two places of each step, with states of its own for each."""
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        for one in (self.a, self.b):
            nn.init.eye_(one.weight), nn.init.zeros_(one.bias)
        import snntorch
        self.lif = snntorch.Leaky(beta=0.5, threshold=0.5, reset_mechanism="zero")
    def forward(self, x):
        one, two, y = *[self.lif.init_leaky()] * 2, 0
        for _ in range(4):
            s, one = self.lif(self.a(x), one)
            s, two = self.lif(self.b(s), two)
            y = y + self.c(s)
        return y

class Twice(nn.Module):
    """A loop, and its last layer twice more after it."""
    def __init__(self):
        super().__init__()
        self.net = Loop()
        self.head = nn.Linear(3, 3)
    def forward(self, x):
        return self.head(self.head(self.net(x)))

class TwoLoops(nn.Module):
    """4 steps, and then 2 of what follows."""
    def __init__(self):
        super().__init__()
        self.a, self.b = eye(4), eye()
    def forward(self, x):
        y = sum(self.a(x) for _ in range(4)) / 4 + x
        return sum(self.b(y) for _ in range(2))

class Told(Loop):
    def forward(self, x, T): return sum(self.net(x) for _ in range(T))
class ToldSteps(Loop):
    def forward(self, x, num_steps=2): return sum(self.net(x) for _ in range(num_steps))
class ToldStep(Loop):
    def forward(self, x, time_step=1): return sum(self.net(x) for _ in range(time_step))
class ToldNb(Loop):
    def forward(self, x, nb_steps=2): return sum(self.net(x) for _ in range(nb_steps))
class ToldFolded(Loop):
    """Steps folded into the batch, with two tokens an image, which look like steps."""
    def forward(self, x, timesteps=2):
        functional.reset_net(self)
        a, act, b = self.net
        x = torch.stack([x, x], 1).expand(timesteps, -1, -1, -1)
        rows = a(x.flatten(0, 2))
        return b((rows >= 0.5).float()).unflatten(0, (timesteps, -1, 2)).mean((0, 2))
class InlineFolded(nn.Module):
    """4 steps folded into the batch, with spikes that no module makes."""
    def __init__(self):
        super().__init__()
        self.a, _, self.b = eye()
    def forward(self, x):
        x = self.a(x.repeat(4, 1, 1).flatten(0, 1))
        return self.b((x >= 0.5).float()).unflatten(0, (4, -1)).mean(0)
class Temperature(Loop):
    def forward(self, x, T=1.0): return super().forward(x) / T
class Deaf(Loop):
    def forward(self, x, T=4): return super().forward(x)

class Handed(nn.Module):
    """A current of 0.3 a step, decay 0.9: v = 0.3, 0.57, 0.813: a spike at step 3."""
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 12, bias=False), nn.Linear(12, 3)
        nn.init.constant_(self.a.weight, 0.25)
    def step(self, x, v):
        v = self.a(x) + (0 if v is None else 0.9 * v)
        s = (v > 0.7).float()
        return self.b(s), v * (1 - s)
class HandedMem(Handed):
    def forward(self, x, mem=None): return self.step(x, mem)
class HandedTuple(Handed):
    def forward(self, x, state=None):
        y, v = self.step(x, None if state is None else state[0])
        return y, (v, None)
class HandedTwo(Handed):
    def forward(self, x, mem1=None, mem2=None):
        y, v = self.step(x, mem1)
        return y, v, torch.zeros(len(x), 3)
class HandedMask(Handed):
    def forward(self, x, mask=None): return self.step(x, mask)
class HandedDict(Handed):
    def forward(self, x, state=None): return dict(zip(("out", "state"), self.step(x, state)))
class HandedTwoNames(Handed):
    def forward(self, x, mask=None, mem=None): return self.step(x, mem)
class HandedHook(Handed):
    """What it gives beside its output is no tensor."""
    def __init__(self):
        super().__init__()
        self.net = eye()
    def forward(self, x, hook=None): return self.net(x), hook

def norse_cells():
    import norse.torch as norse
    p = norse.LIFBoxParameters(tau_mem_inv=torch.as_tensor(500.0), v_th=torch.as_tensor(0.7))
    net = norse.SequentialState(nn.Linear(4, 4), norse.LIFBoxCell(p), nn.Linear(4, 3))
    nn.init.constant_(net[0].weight, 0.25), nn.init.zeros_(net[0].bias)
    return net

def with_reset(kind):
    net = eye()
    if kind == "layer": net.reset = nn.Linear(4, 3); net[2] = nn.Identity()
    if kind == "list": net[0].reset_state = nn.ModuleList([nn.Linear(2, 2)])
    return net
class Raises(Loop):
    def reset(self): raise RuntimeError("not now")
class Property(Loop):
    @property
    def reset(self): raise RuntimeError("not now")
class Initialises(Loop):
    def reset(self): nn.init.zeros_(self.net[0].weight)
class Norms(Loop):
    def __init__(self):
        super().__init__()
        self.net.insert(1, nn.BatchNorm1d(4)), nn.init.constant_(self.net[1].running_mean, -2.0)
    def reset(self): self.net[1].reset_running_stats()
class Partial(Loop):
    def __init__(self):
        super().__init__()
        self.reset = functools.partial(nn.init.zeros_, self.net[0].weight)
class Centred(nn.Module):
    """Statistics under other names than torch's: without them less than the threshold is left."""
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.full((4,), -2.0))
        self.scale = 1.0
    def reset(self): self.mean.zero_()
    def forward(self, x): return (x - self.mean) * self.scale
class Rescaled(Centred):
    def reset(self): self.scale = 0.1
class Twin(nn.Module):
    """The reset of a class that looks harmless at its first layer, whose weights are zeros."""
    def __init__(self, start):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        start(self.fc.weight), nn.init.zeros_(self.fc.bias)
    def reset(self): nn.init.zeros_(self.fc.weight)
    def forward(self, x): return x + self.fc(x)
class Plain(nn.Module):
    """Weights that are no parameter."""
    def __init__(self):
        super().__init__()
        self.w = torch.eye(4)
    def reset(self): self.w = torch.zeros(4, 4)
    def forward(self, x): return nn.functional.linear(x, self.w)
def resets(kind):
    if kind == "twins": return nn.Sequential(Twin(nn.init.zeros_), Twin(nn.init.eye_), eye())
    part = {"mean": Centred, "scale": Rescaled, "w": Plain}[kind]()
    return nn.Sequential(part, eye())
class Asks(Loop):
    def reset(self, network): raise AssertionError("called")
class Buffer(nn.Module):
    """Its potential is a buffer, which its reset sets to zero: 4 of 2 steps fire, once."""
    def __init__(self):
        super().__init__()
        self.a, _, self.b = eye()
        self.register_buffer("v", torch.ones(4))
    def reset(self): self.v.zero_()
    def forward(self, x):
        self.v = self.v + 0.3 * self.a(x)
        s = (self.v >= 0.5).float()
        self.v = self.v * (1 - s)
        return self.b(s)

class Sticky(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, _, self.b = eye()
        self.v = None
    def forward(self, x):
        self.v = 0.3 * self.a(x) + (0 if self.v is None else self.v[:1])
        return self.b((self.v >= 0.5).float())
class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = Sticky()
    def forward(self, x): return sum(self.body(x) for _ in range(3))
class Counts(nn.Module):
    """A number that grows with every call."""
    def __init__(self):
        super().__init__()
        self.net, self.seen = eye(), 0
    def forward(self, x):
        self.seen += 1
        return self.net(x * (self.seen < 4))
class OwnGenerator(Loop):
    def __init__(self):
        super().__init__()
        self.draw = np.random.default_rng(0)
    def forward(self, x):
        return self.net(x * torch.from_numpy(self.draw.integers(0, 2, x.shape)).float())

def lazy(): return nn.Sequential(nn.LazyConv2d(4, 3, padding=1), nn.LazyBatchNorm2d(),
    neuron.IFNode(), nn.Flatten(), nn.LazyLinear(3))
def lazy_time_first():
    net = nn.Sequential(nn.LazyLinear(4), neuron.IFNode(step_mode="m"), nn.LazyLinear(3))
    return net

def typed(dtype): return eye().to(getattr(torch, dtype))
def mixed(): return nn.Sequential(eye().bfloat16())

def wrapped(how):
    net = eye()
    if how == "compile": return torch.compile(net)
    if how == "in place": net.compile(); return net
    if how == "part": return nn.Sequential(torch.compile(net[0], backend="eager"), *net[1:])
    if how == "parallel": return nn.DataParallel(net)
    if how == "both": return torch.compile(nn.DataParallel(net))
    return torch.optim.swa_utils.AveragedModel(net)

class Draws(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.net, self.how = eye(), how
    def forward(self, x):
        if self.how == "dropout": return self.net(nn.functional.dropout(x, 0.5, training=True))
        if self.how == "poisson": return self.net((torch.rand_like(x) < 0.5 * x).float())
        if self.how == "bernoulli": return self.net(torch.bernoulli(0.5 * x))
        if self.how == "numpy": x = x * torch.from_numpy(np.random.randint(0, 2, x.shape))
        if self.how == "numpy": return self.net(x.float())
        return self.net(x * random.randrange(2))

def random_weights(): return nn.Sequential(nn.Linear(4, 4), neuron.IFNode(0.2), nn.Linear(4, 3))
def given_weights(of):
    net, other = random_weights(), random_weights()
    {"net": net, "part": net[0], "other": other}[of].load_state_dict(
        (net[0] if of == "part" else other).state_dict())
    return net
def part_of_given():
    whole = nn.ModuleDict({"net": random_weights()})
    whole.load_state_dict(whole.state_dict())
    return whole["net"]
def images():
    return nn.Sequential(nn.Conv2d(3, 2, 1), neuron.IFNode(), nn.Flatten(), nn.Linear(32, 2))
def ann(): return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
class Recursive(nn.Module):
    """An ANN that uses its layers three times."""
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
    def forward(self, x):
        for _ in range(3): x = self.b(self.a(x).relu() + 0.1).relu() + 0.1
        return x
class NanLater(nn.Module):
    """NaN from the third step on."""
    def __init__(self):
        super().__init__()
        self.net, self.t = eye(), 0
    def reset(self): self.t = 0
    def forward(self, x):
        self.t += 1
        return self.net(x * (float("nan") if self.t > 2 else 1))
def infinite():
    net = eye()
    nn.init.constant_(net[0].weight, float("nan"))
    return net
def both():
    """Takes [T, N, 4], and repeats [N, 4] by itself."""
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = eye()
            functional.set_step_mode(self.net, "m")
        def forward(self, x):
            return self.net(x if x.dim() == 3 else x.repeat(4, 1, 1) * self.scale).mean(0)
    net = Both()
    net.scale = 1
    return net
def both_unequal():
    net = both()
    net.scale = 0
    return net

class Odd(nn.Module):
    """Does as `forward` says, or is made oddly, by `how`."""
    def __init__(self, how):
        super().__init__()
        self.net, self.how = eye(), how
        if how == "meta":
            self.net.to("meta")
        if how == "sparse":
            self.net[0].weight = nn.Parameter(torch.eye(4).to_sparse())
        if how == "circle":
            self.net.append(self)
    def forward(self, x):
        if self.how == "exit":
            raise SystemExit(0)
        if self.how == "mute":
            raise Mute
        if self.how == "memory":
            torch.empty(2**60)
        return self.forward(x) if self.how == "recursion" else self.net(x)
    def named_parameters(self, *args, **named):
        if self.how == "parameters":
            raise SystemExit("stop")
        return super().named_parameters(*args, **named)
    def __deepcopy__(self, memo):
        if self.how == "copy":
            raise Mute
        return Odd(self.how)

class Mute(Exception):
    def __str__(self):
        raise ValueError
'''


@pytest.fixture(autouse=True)
def here(own_module: Callable[[str, str], Path]) -> Path:
    """The current folder, with the networks and two images of ones."""
    folder = own_module("nets", MODULE)
    np.save("x.npy", np.ones((2, 4), "float32"))
    return folder


def measured(name: str, *arguments: str, **changes: Any) -> NetworkEnergyResult:
    fed = {} if "input_shape" in changes else {"data": Path("x.npy")}
    given: dict[str, Any] = {"output": Path("r.csv"), "timesteps": 4, **fed, **changes}
    return measure_network(EnergyRequest(network=f"nets:{name}", arguments=arguments, **given))


def audited(name: str, *arguments: str, **changes: Any) -> set[str]:
    """The checks that found something."""
    given: dict[str, Any] = {"data": Path("x.npy"), "timesteps": 4, **changes}
    found = run_audit(AuditRequest(network=f"nets:{name}", arguments=arguments, **given)).found
    return {finding.check for finding in found.findings}


def accumulates(result: NetworkEnergyResult, layer: str) -> float:
    rows = [row for row in result.rows if row["layer"] == layer and row["t"] == "all"]
    return float(rows[0]["sop_events"])


def ann_macs(result: NetworkEnergyResult) -> float:
    return float(next(row["ann_macs"] for row in result.rows if row["layer"] == "TOTAL"))


ANN = 16 + 12


@pytest.mark.parametrize("network", ["Loop", "Inline", "LoopAhead"])
@pytest.mark.parametrize(
    ("layout", "said"),
    [("auto", 1), ("auto", 8), ("inside", 2), ("inside", 3), ("stepwise", 2), ("stepwise", 8)],
)
def test_another_t_than_the_network_makes_is_refused(network: str, layout: str, said: int) -> None:
    with pytest.raises(TserError, match=r"4 times|4 time steps by itself") as raised:
        measured(network, timesteps=said, layout=layout)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("network", ["Loop", "Inline", "SharedNeuron", "Twice"])
@pytest.mark.parametrize("said", [0, 4])
def test_the_t_that_a_network_makes_is_counted(network: str, said: int) -> None:
    result = measured(network, timesteps=said, layout="inside")
    assert result.layout == "inside, T = 4"
    name = {"Loop": "net.2", "Inline": "b", "SharedNeuron": "c", "Twice": "net.net.2"}[network]
    assert accumulates(result, name) == 4 * 4 * 3
    assert ann_macs(result) == {"SharedNeuron": ANN + 16, "Twice": ANN + 2 * 9}.get(network, ANN)


@pytest.mark.parametrize("layout", ["auto", "stepwise", "inside"])
def test_loops_of_unequal_length_are_no_steps_of_the_caller(layout: str) -> None:
    with pytest.raises(TserError, match="time steps by itself"):
        measured("TwoLoops", layout=layout)


@pytest.mark.parametrize("network", ["SharedNeuron", "Twice"])
def test_shared_neurons_and_layers_hide_no_wrong_t(network: str) -> None:
    with pytest.raises(TserError, match="by itself"):
        measured(network, timesteps=2, layout="inside")


@pytest.mark.parametrize(
    ("network", "argument"),
    [("Told", "T"), ("ToldSteps", "num_steps"), ("ToldStep", "time_step"), ("ToldNb", "nb_steps")],
)
def test_an_argument_that_means_t_is_passed(network: str, argument: str) -> None:
    result = measured(network, timesteps=3)
    assert result.layout == "inside, T = 3"
    assert result.notes[0] == f"note: T = 3 was passed to the network as {argument}"
    assert accumulates(result, "net.2") == 3 * 4 * 3


def test_tokens_beside_steps_are_told_apart_by_a_network_that_is_told_t() -> None:
    result = measured("ToldFolded", timesteps=3, layout="inside")
    assert accumulates(result, "net.2") == 3 * 2 * 4 * 3
    assert ann_macs(result) == 2 * ANN


def test_steps_in_the_batch_are_counted_without_neurons_too() -> None:
    result = measured("InlineFolded", layout="inside")
    assert (accumulates(result, "b"), ann_macs(result)) == (4 * 4 * 3, ANN)
    for said in (0, 1, 2):
        with pytest.raises(TserError, match="4 time steps by itself"):
            measured("InlineFolded", timesteps=said, layout="inside")


def test_arguments_that_mean_something_else_are_left_alone() -> None:
    assert not measured("Temperature").notes
    with pytest.raises(TserError, match="4 time steps by itself, not 2"):
        measured("Deaf", timesteps=2, layout="inside")


def test_t_is_required_where_spiking_neurons_get_none() -> None:
    for network in ("eye", "HandedMem"):
        with pytest.raises(TserError, match="how many an image has, with timesteps or -T"):
            measured(network, timesteps=0)
        with pytest.raises(TserError, match="with timesteps or -T"):
            audited(network, images=2, timesteps=0)
    for network, macs in (("ann", ANN), ("Recursive", 3 * 32)):
        assert ann_macs(measured(network, timesteps=0)) == macs


@pytest.mark.parametrize(
    ("network", "layout"),
    [
        *(("HandedMem", "auto"), ("HandedMem", "stepwise"), ("HandedTuple", "auto")),
        *(("HandedTwo", "stepwise"), ("HandedTwoNames", "auto")),
    ],
)
def test_a_state_that_comes_out_goes_in_again(network: str, layout: str) -> None:
    np.save("x.npy", np.full((2, 4), 0.3, "float32"))
    result = measured(network, timesteps=3, layout=layout)
    assert result.layout == "stepwise, T = 3"
    assert accumulates(result, "b") == 12 * 3
    goes_in = {"HandedTuple": "state", "HandedTwo": "mem1, mem2"}.get(network, "mem")
    assert any(note.endswith(f"goes in again as {goes_in}") for note in result.notes)


def test_norse_hands_its_states_on() -> None:
    pytest.importorskip("norse")
    # A current of 1, half of it kept: v = 0.5, 0.75, a spike, and the same again.
    assert accumulates(measured("norse_cells", layout="stepwise"), "2") == 2 * 4 * 3


def test_what_may_be_a_state_or_not_is_refused() -> None:
    for network, name in (("HandedMask", "mask"), ("HandedDict", "state")):
        with pytest.raises(TserError, match=f"takes {name} beside its input"):
            measured(network, layout="stepwise")
    assert accumulates(measured("HandedHook", layout="stepwise"), "net.2") == 48


@pytest.mark.parametrize("kind", ["layer", "list"])
def test_modules_called_like_resets_are_no_resets(kind: str) -> None:
    result = measured("with_reset", f"kind={kind}", layout="stepwise")
    assert accumulates(result, "reset" if kind == "layer" else "2") == 48


@pytest.mark.parametrize(
    "network", ["Raises", "Initialises", "Partial", "Asks", "Norms", "Property"]
)
def test_a_reset_that_changes_weights_or_raises_is_not_called(network: str) -> None:
    last = "net.3" if network == "Norms" else "net.2"
    assert accumulates(measured(network, layout="inside"), last) == 48


@pytest.mark.parametrize(
    ("kind", "changed"),
    [("mean", "0 .* mean"), ("scale", "0 .* scale"), ("w", "0 .* w"), ("twins", "1.fc .* weight")],
)
def test_a_reset_that_changes_what_running_does_not_is_refused(kind: str, changed: str) -> None:
    with pytest.raises(TserError, match=f"^{changed.replace('.*', '.*its reset changes')},"):
        measured("resets", f"kind={kind}", layout="stepwise")
    with pytest.raises(TserError, match="can't be reset"):
        audited("resets", f"kind={kind}", layout="stepwise")
    sys.path.insert(0, ".")
    net = importlib.import_module("nets").resets(kind)
    before = copy.deepcopy(net)
    counting = count_operations(net, "stepwise", timesteps=1)
    with pytest.raises(TserError, match="can't be reset"), torch.no_grad(), counting:
        net(torch.ones(2, 4))
    assert not different(before, net)  # the user's own network is as it was


def test_a_reset_of_a_state_in_a_buffer_is_called() -> None:
    # 0.3, 0.6: a spike at every second step, from v = 0.
    assert accumulates(measured("Buffer", layout="stepwise"), "b") == 2 * 4 * 3


@pytest.mark.parametrize(
    ("network", "layout", "module"),
    [
        ("Sticky", "stepwise", "Sticky"),
        ("Inner", "inside", "body"),
        ("Counts", "stepwise", "seen"),
        ("OwnGenerator", "stepwise", "random generator"),
    ],
)
def test_a_state_that_nothing_resets_is_named(network: str, layout: str, module: str) -> None:
    with pytest.raises(TserError, match=f"{module}.*called reset"):
        measured(network, timesteps=3, layout=layout)


def test_a_state_that_nothing_resets_is_audited() -> None:
    assert "reset" in audited("Inner", timesteps=3, images=2)


def test_lazy_layers_learn_their_sizes() -> None:
    result = measured("lazy", input_shape="1,4,4", layout="stepwise", timesteps=2)
    assert ann_macs(result) == 400 + 64 * 3
    assert ann_macs(measured("lazy_time_first", layout="time-first")) == ANN
    assert measured("lazy", input_shape="1,4,4", timesteps=2).layout == "stepwise, T = 2"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_networks_run_in_their_own_type(dtype: str) -> None:
    result = measured("typed", f"dtype={dtype}", layout="stepwise")
    assert accumulates(result, "2") == 48
    assert result.document["dtype"] == {"b": "bf16"}.get(dtype[0], f"fp{dtype[-2:]}")
    if dtype == "bfloat16":
        audited("typed", "dtype=bfloat16")


@pytest.mark.parametrize("how", ["compile", "in place", "part", "parallel", "both", "averaged"])
def test_what_is_wrapped_is_counted(how: str) -> None:
    result = measured("wrapped", f"how={how}", layout="stepwise")
    assert accumulates(result, "2") == 48
    if how in ("part", "both"):
        audited("wrapped", f"how={how}")


@pytest.mark.parametrize("how", ["dropout", "poisson", "bernoulli", "numpy", "python"])
def test_chance_is_seeded_and_told(how: str) -> None:
    np.save("x.npy", np.ones((64, 4), "float32"))
    given = {"layout": "stepwise"}
    first, again, other = (
        measured("Draws", f"how={how}", **given, seed=seed) for seed in (3, 3, 4)
    )
    assert accumulates(first, "net.2") == accumulates(again, "net.2")
    assert accumulates(first, "net.2") != accumulates(other, "net.2") or how == "python"
    assert any("another --seed gives another count" in note for note in first.notes)


def test_weights_that_nobody_gave_are_seeded_and_told() -> None:
    state = torch.random.get_rng_state()
    results = [measured("random_weights", layout="stepwise", seed=seed) for seed in (0, 0, 1)]
    first, again, other = (result.document["model_hash"] for result in results)
    assert first == again != other
    assert results[0].weights == "weights as the function made them: untrained"
    assert torch.equal(torch.random.get_rng_state(), state)
    made = nn.Sequential(nn.Linear(4, 4), nn.Identity(), nn.Linear(4, 3))
    torch.save(made.state_dict(), "w.pt")
    assert not measured("random_weights", layout="stepwise", weights=Path("w.pt")).weights


@pytest.mark.parametrize(
    ("function", "given"),
    [
        (("given_weights", "of=net"), True),
        (("given_weights", "of=part"), True),
        (("given_weights", "of=other"), False),
        (("part_of_given",), True),
    ],
)
def test_weights_that_the_function_loads_are_given(function: tuple[str, ...], given: bool) -> None:
    assert (measured(*function, layout="stepwise").weights == "") is given
    assert nn.Module.load_state_dict.__name__ == "load_state_dict"  # nothing stays watched


def test_of_two_layouts_with_equal_counts_one_is_taken() -> None:
    result = measured("both")
    assert result.layout == "time-first, T = 4"
    assert result.notes == [
        "note: it can be called inside too, with equal counts on the trial images"
    ]
    assert accumulates(result, "net.2") == 48
    with pytest.raises(TserError, match="say which layout"):
        measured("both_unequal")
    with pytest.raises(TserError, match="4 time steps by itself, not 2"):
        measured("both", timesteps=2, layout="inside")
    with pytest.raises(TserError, match="several time steps at each call"):
        measured("both", layout="stepwise")
    assert measured("both", timesteps=0).layout == "inside, T = 4"


@pytest.mark.parametrize(
    ("network", "layout", "shape", "message"),
    [
        ("images", "auto", (2, 1, 4, 4), "^the network takes 3 channels, the images have 1$"),
        ("images", "stepwise", (2, 4, 4, 3), r"images have 4; .* look like \[N, H, W, C\]"),
        ("images", "auto", (2, 3, 5, 5), "^layer 3 takes 32 features, and is .*another size"),
        ("eye", "auto", (2, 7), r"^layer 0 takes 4 features, and is fed with"),
        ("eye", "stepwise", (2, 7), r"^layer 0 takes 4 features, and is fed with"),
        ("NanLater", "auto", (2, 4), "^layer net.0 is fed with NaN or infinite values"),
        ("infinite", "auto", (2, 4), "^the network's weights hold NaN"),
    ],
)
def test_images_that_do_not_fit_are_said_in_one_line(
    network: str, layout: str, shape: tuple[int, ...], message: str
) -> None:
    np.save("x.npy", np.ones(shape, "float32"))
    with pytest.raises(TserError, match=message) as raised:
        measured(network, layout=layout)
    assert "\n" not in str(raised.value)


def test_images_with_nan_are_said_first() -> None:
    np.save("x.npy", np.array([[1, 2, 3, np.nan]], "float32"))
    with pytest.raises(TserError, match=r"--data x\.npy holds NaN or infinite values"):
        measured("eye")


def test_the_energy_is_a_lower_bound_where_much_is_not_counted() -> None:
    # Additions are never counted; comparisons and products by element may be.
    for network, said in (("Loop", False), ("Inline", True)):
        document = measured(network, layout="inside").document
        assert leaves_out(document) == said


def test_a_caller_in_python_hands_states_on_by_itself() -> None:
    sys.path.insert(0, ".")
    net: Any = importlib.import_module("nets").HandedMem()
    for first in (None, torch.zeros(1)):
        with torch.no_grad(), count_operations(net, "stepwise", timesteps=3) as counter:
            state = first
            for _ in range(3):
                _, state = net(torch.full((2, 4), 0.3), state)
        counted = {one.layer.name: one for one in counter.counts().layers}["b"]
        assert counted.events_TI.sum(0).tolist() == [36, 36]


@pytest.mark.parametrize("command", [measured, audited])
@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("meta", "it fails: NotImplementedError: Cannot copy out of meta tensor"),
        ("sparse", "Sparse"),
        ("circle", "it fails: RecursionError"),
        ("recursion", "fails.*RecursionError"),
        ("exit", "it fails: SystemExit: 0"),
        ("mute", "fails.*Mute: "),
        ("copy", "can't be copied.*Mute: "),
        ("parameters", "it fails: SystemExit: stop"),
    ],
)
def test_a_network_that_breaks_in_an_odd_way_is_one_message(
    command: Callable[..., Any], how: str, said: str
) -> None:
    with pytest.raises(TserError, match=said):
        command("Odd", f"how={how}")


@pytest.mark.parametrize("command", [measured, audited])
def test_memory_that_runs_out_in_a_network_is_not_its_fault(command: Callable[..., Any]) -> None:
    with pytest.raises(RuntimeError, match="can't allocate memory") as failed:
        command("Odd", "how=memory")
    assert out_of_memory(failed.value)
