"""Run an exported file in another library and keep every spike; a program that stands alone.

    python consumers.py LIBRARY FILE IMAGES.npz OUTPUT.npz

IMAGES holds `images_NCHW`, or frames [N, T, C, H, W] under that name, and `timesteps`; OUTPUT gets
`logits_TNK` and, under the name of each spiking layer, its spikes [T, N, ...]. Nothing of tser is
imported: all is known from the file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

Result = dict[str, Any]
# seconds a time step, as these readers of NIR fix it in their code
DT = 1e-4


def nir_in_snntorch(path: str, images_NCHW: Any, timesteps: int) -> Result:
    """NIR -> nirtorch -> snnTorch's Leaky, in float64."""
    import nir
    import nirtorch
    import snntorch
    import torch

    def neuron(node: Any) -> Any:
        # u = (v - v_reset) / gain: a Leaky resets to 0 and takes its input as it is
        integrates = isinstance(node, nir.IF)
        decay = 0.0 if integrates else _only(DT / node.tau)
        gain = _only(node.r * DT) if integrates else _only(node.r * DT / node.tau)
        threshold = (_only(node.v_threshold) - _only(node.v_reset)) / gain
        if not integrates and _only(node.v_leak) != _only(node.v_reset):
            raise ValueError("v_leak differs from v_reset")
        return snntorch.Leaky(
            beta=torch.tensor(1.0 - decay, dtype=torch.float64),
            threshold=torch.tensor(threshold, dtype=torch.float64),
            spike_grad=lambda above: (above > 0).to(above.dtype),  # the stock ones give float32
            reset_mechanism="zero",
            # by default the reset of snnTorch comes a step late
            reset_delay=False,
            init_hidden=True,
        )

    def affine(node: Any) -> Any:
        module = torch.nn.Linear(node.weight.shape[1], node.weight.shape[0])
        module.weight.data = torch.from_numpy(node.weight)
        module.bias.data = torch.from_numpy(node.bias)
        return module

    def pool(node: Any) -> Any:
        kernel, stride, padding = map(_pair, (node.kernel_size, node.stride, node.padding))
        return torch.nn.AvgPool2d(kernel, stride, padding)

    mapping = {
        nir.LIF: neuron,
        nir.IF: neuron,
        nir.Affine: affine,
        nir.AvgPool2d: pool,
        # NIR counts axes without the batch
        nir.Flatten: lambda node: torch.nn.Flatten(int(node.start_dim) + 1, -1),
    }
    graph = nir.read(path)
    network = nirtorch.nir_to_torch(graph, mapping, dtype=torch.float64)
    return _run_module(network, graph, images_NCHW, timesteps)


def nir_in_spikingjelly(path: str, images_NCHW: Any, timesteps: int) -> Result:
    """NIR -> spikingjelly's own import, in float64."""
    import nir
    import torch
    from spikingjelly.activation_based import nir_exchange

    graph = nir.read(path)
    network = nir_exchange.import_from_nir(graph, dt=DT, dtype=torch.float64)
    return _run_module(network, graph, images_NCHW, timesteps)


def _run_module(network: Any, graph: Any, images_NCHW: Any, timesteps: int) -> Result:
    """Step a network of nirtorch through time, with a hook on every spiking layer."""
    import nir
    import torch

    spikes: dict[str, list[Any]] = {}

    def keep(name: str, module: Any, inputs: Any, output: Any) -> None:
        # some neurons return their state beside the spikes
        fired = output[0] if isinstance(output, tuple) else output
        spikes.setdefault(name, []).append(fired.numpy() != 0)

    for name, node in graph.nodes.items():
        if isinstance(node, nir.LIF | nir.IF):
            # in the name of a submodule a dot would be a level
            network.get_submodule(name.replace(".", "_")).register_forward_hook(partial(keep, name))
    state = None
    logits = []
    with torch.no_grad():
        for step in range(timesteps):
            images = torch.from_numpy(_shown(images_NCHW, step)).double()
            output, state = network(images, state)
            logits.append(output.numpy())
    return {"logits_TNK": np.stack(logits), **{name: np.stack(s) for name, s in spikes.items()}}


def onnx_in_onnxruntime(path: str, images_NCHW: Any, timesteps: int) -> Result:
    """ONNX -> onnxruntime on a CPU, float32; the spikes are made outputs of the graph."""
    import onnx
    import onnxruntime

    model = onnx.load(path)
    facts = {entry.key: entry.value for entry in model.metadata_props}
    made = [name for node in model.graph.node for name in node.output if name.endswith("/spikes")]
    # in this copy alone: the file itself gives logits
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
    # on a CPU: what holds there holds without a GPU, too
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    images_NCHW = images_NCHW.astype(np.float32)
    if facts["stateful"] == "true":
        first = json.loads(facts["first_potentials"])
        return _run_stateful(session, made, images_NCHW, timesteps, first)
    # one input, or one a step
    names = [entry.name for entry in session.get_inputs()]
    values = _run(session, {name: _shown(images_NCHW, t) for t, name in enumerate(names)})
    layers = [name.split("/")[0] for name in made if name.endswith("/0/spikes")]
    spikes = {
        layer: np.stack([values[f"{layer}/{t}/spikes"] != 0 for t in range(timesteps)])
        for layer in layers
    }
    return {"logits_TNK": values["logits"], **spikes}


def _run_stateful(
    session: Any, made: list[str], images_NCHW: Any, timesteps: int, first: dict[str, float]
) -> Result:
    """Return the logits and spikes of one step after the other, the potentials handed on.

    `first`: the potential of each layer before the first step.
    """
    types = {"tensor(float)": np.float32, "tensor(int32)": np.int32}
    state = {}
    for entry in session.get_inputs():
        if entry.name != "input":
            shape, rest = entry.shape[1:], first[entry.name.removeprefix("v/")]
            # a potential begins at rest, which is not 0 for every neuron
            state[entry.name] = np.full([len(images_NCHW), *shape], rest, types[entry.type])
    logits = []
    spikes: dict[str, list[Any]] = {name: [] for name in made}
    for step in range(timesteps):
        values = _run(session, {"input": _shown(images_NCHW, step), **state})
        state = {name: values[f"v_next/{name.removeprefix('v/')}"] for name in state}
        logits.append(values["logits"])
        for name in made:
            spikes[name].append(values[name] != 0)
    named = {name.split("/")[0]: np.stack(kept) for name, kept in spikes.items()}
    return {"logits_TNK": np.stack(logits), **named}


def _shown(images_NCHW: Any, step: int) -> Any:
    """Return what a step is shown: its frame of [N, T, C, H, W], or the images."""
    return images_NCHW[:, step] if images_NCHW.ndim == 5 else images_NCHW


def _run(session: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    names = [entry.name for entry in session.get_outputs()]
    return dict(zip(names, session.run(None, inputs), strict=True))


def safetensors_in_torch(path: str, images_NCHW: Any, timesteps: int) -> Result:
    """safetensors -> torch's functions, node by node as the header says, in float64."""
    import torch
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        nodes = json.loads(file.metadata()["graph"])
        constants = {name: file.get_tensor(name).double() for name in file.keys()}  # noqa: SIM118 (it is no dict)
    for name in [name for name in constants if name.endswith(".scale")]:
        weight = constants[name.removesuffix("scale") + "weight"]
        # exact: an int8 times a float32 has 32 bits at most, float64 holds 53
        weight.mul_(constants[name].view(-1, *(1 for _ in weight.shape[1:])))
    potentials: dict[str, Any] = {}
    spikes: dict[str, list[Any]] = {}
    logits = []
    for step in range(timesteps):
        values = {"input": torch.from_numpy(_shown(images_NCHW, step)).double()}
        for node in nodes:
            # several inputs: their sum, there is no node for an addition
            x, *other = (
                sum(values[source] for source in read)
                for read in node.get("operands", [node["inputs"]])
            )
            if node["type"] == "Operation":
                values[node["name"]] = _operation(node, x, *other)
                continue
            values[node["name"]] = _compute(node, x, constants, potentials)
            if node["type"] == "Neuron":
                spikes.setdefault(node["name"], []).append(values[node["name"]].numpy() != 0)
        logits.append(values[nodes[-1]["name"]].numpy())
    return {"logits_TNK": np.stack(logits), **{name: np.stack(s) for name, s in spikes.items()}}


def _compute(node: Any, x: Any, constants: dict[str, Any], potentials: dict[str, Any]) -> Any:
    """Return one node at one time step; a neuron by the header's `neuron_equations`."""
    from torch.nn import functional

    name, kind = node["name"], node["type"]
    if kind == "Neuron":
        rest = 0.0 if node["reset"] is None else node["reset"]
        before = potentials.get(name, rest)
        charged = rest + node["leak"] * (before - rest) + node["gain"] * x
        spikes = (charged >= node["threshold"]).to(x.dtype)
        if node["reset"] is None:
            potentials[name] = charged - node["threshold"] * spikes
        else:
            potentials[name] = charged * (1 - spikes) + rest * spikes
        return spikes
    if kind == "Flatten":
        return x.flatten(1)
    if kind == "Pool":
        pool = functional.max_pool2d if node["largest"] else functional.avg_pool2d
        return pool(x, node["kernel"], node["stride"], node["padding"])
    weight, bias = constants[f"{name}.weight"], constants[f"{name}.bias"]
    if kind == "Linear":
        return functional.linear(x, weight, bias)
    convolve = functional.conv1d if weight.ndim == 3 else functional.conv2d
    sizes = (node["stride"], node["padding"], node["dilation"], node["groups"])
    return convolve(x, weight, bias, *sizes)


def _operation(node: Any, x: Any, other: Any = None) -> Any:
    """Return what a node of attention gives; see the file's `graph`."""
    kind, sizes = node["kind"], node["sizes"]
    whole = [int(size) for size in sizes]
    if kind in ("matmul", "mul"):
        return x @ other if kind == "matmul" else x * other
    if kind == "scale":
        return x * sizes[0]
    if kind == "transpose":
        return x.permute(*whole)
    if kind == "slice":
        return x.narrow(whole[0], whole[1], whole[2] - whole[1])
    if kind in ("sum", "mean"):
        x = x.sum(whole) if kind == "sum" else x.mean(whole)
    return x.reshape(len(x), *node["shape"])


def _only(values: Any) -> float:
    """Return the one value of an array whose elements are all the same."""
    different = np.unique(values)
    if different.size != 1:
        raise ValueError("the neurons of a layer differ")
    return float(different[0])


def _pair(values: Any) -> tuple[int, int]:
    first, second = np.broadcast_to(np.asarray(values), 2)
    return int(first), int(second)


LIBRARIES: dict[str, Callable[[str, Any, int], Result]] = {
    "snntorch": nir_in_snntorch,
    "spikingjelly": nir_in_spikingjelly,
    "onnxruntime": onnx_in_onnxruntime,
    "safetensors": safetensors_in_torch,
}


def main(library: str, path: str, images: str, output: str) -> None:
    """Read IMAGES, run FILE in LIBRARY, write OUTPUT."""
    with np.load(images) as given:
        result = LIBRARIES[library](path, given["images_NCHW"], int(given["timesteps"]))
    np.savez(output, **result)


if __name__ == "__main__":
    main(*sys.argv[1:5])
