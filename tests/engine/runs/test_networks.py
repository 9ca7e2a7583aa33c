"""Networks from settings and files, and what one of a plug-in must do."""

from __future__ import annotations

import copy
import itertools
import json
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights, resnet18

from tests.engine.conftest import SPEC, make_config, write_network
from tser_cli.base.errors import CheckpointError, ConfigError
from tser_cli.data.base import DataSpec
from tser_cli.engine.runs import folder, networks
from tser_cli.engine.runs.folder import Run
from tser_cli.engine.runs.networks import Loaded, check_contract, check_network, counting_of
from tser_cli.engine.runs.weights import load_model, save_model
from tser_cli.models.base import Build, Classifier, build_model
from tser_cli.models.neurons import activation_factory
from tser_cli.settings import registry
from tser_cli.settings.config import Config, NeuronConfig

LARGE = DataSpec("imagenet", 3, 224, 224, tuple(map(str, range(1000))), (0.5,) * 3, (0.3,) * 3)


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    """A sound model file of a teacher."""
    write_network(tmp_path / "model.safetensors", make_config())
    return tmp_path / "model.safetensors"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torchvision's, where the file of ResNet-18 would lie."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints" / Path(ResNet18_Weights.IMAGENET1K_V1.url).name


def redescribe(path: Path, **changes: Any) -> None:
    """Writes `path` again with another description."""
    state, metadata, _ = load_model(path)
    save_model(path, state, {"tser": json.dumps({**json.loads(metadata["tser"]), **changes})})


@pytest.mark.parametrize(("spiking", "stem"), [(True, "small"), (False, "large")])
def test_a_model_file_says_all_that_its_network_needs(
    tmp_path: Path, wake: Callable[[Classifier], Classifier], spiking: bool, stem: str
) -> None:
    config = make_config({"model.stem": stem, "neuron.threshold": 0.7, "neuron.reset": "soft"})
    model = wake(networks.build("resnet20", SPEC, config, spiking))
    path = tmp_path / "model.safetensors"
    digest = networks.write(path, model, "resnet20", SPEC, config)
    # what it is read for does not matter: the file describes itself
    loaded = networks.read(path, LARGE)
    assert (loaded.name, loaded.source, loaded.sha256) == ("resnet20", str(path), digest)
    assert loaded.model.spiking is spiking
    images = torch.randn(2, *SPEC.image_shape)
    with torch.no_grad():
        assert torch.equal(loaded.model.eval()(images, 3), model(images, 3))


@pytest.mark.parametrize("wrapping", ["plain", "model"])
def test_torchvision_s_state_dict_is_recognised(tmp_path: Path, wrapping: str) -> None:
    theirs: Any = resnet18(num_classes=3).eval()
    state: dict[str, Any] = theirs.state_dict()
    path = tmp_path / "theirs.pth"
    torch.save(state if wrapping == "plain" else {wrapping: state, "epoch": 3}, path)
    spec = DataSpec("imagenet", 3, 72, 72, ("a", "b", "c"), (0.5,) * 3, (0.3,) * 3)
    loaded = networks.read(path, spec)
    assert loaded.name == "resnet18"
    assert not loaded.model.spiking
    images = torch.randn(1, 3, 72, 72)
    with torch.no_grad():
        torch.testing.assert_close(loaded.model.eval()(images), theirs(images))


@pytest.mark.parametrize(
    "change",
    [
        lambda described: described.pop("channels"),
        lambda described: described.update(model="resnet21"),
        lambda described: described.update(stem="huge"),
        lambda described: described.update(height=2**40),
        lambda described: described.update(neuron={}, classes="abc"),
        lambda described: described.update(weight_bits=3),
        lambda described: described.update(neuron={"tau": 0.5}),
        lambda described: described.update(height=None),
        lambda described: described.update(channels=-1),
        lambda described: [],
        None,
    ],
)
def test_a_damaged_description(
    model_file: Path, change: Callable[[dict[str, Any]], Any] | None
) -> None:
    state, metadata, _ = load_model(model_file)
    text = "{"  # no JSON
    if change is not None:
        described = json.loads(metadata["tser"])
        result = change(described)
        text = json.dumps(result if isinstance(result, list | str) else described)
    save_model(model_file, state, {"tser": text})
    with pytest.raises(CheckpointError, match="has a damaged description"):
        networks.read(model_file, SPEC)


def test_a_description_s_shapes_are_compared_before_anything_is_made(
    model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[torch.device] = []
    build = networks.build_model

    def watched(*args: Any, **values: Any) -> Classifier:
        made.append(torch.empty(0).device)
        return build(*args, **values)

    monkeypatch.setattr(networks, "build_model", watched)
    redescribe(model_file, channels=1_000_000)
    with pytest.raises(CheckpointError, match="holds another network than the one asked for"):
        networks.read(model_file, SPEC)
    assert made == [torch.device("meta")]


@pytest.mark.parametrize(
    ("value", "suffix"), [(float("nan"), ".safetensors"), (float("inf"), ".pt")]
)
def test_weights_that_are_not_finite(model_file: Path, value: float, suffix: str) -> None:
    state, metadata, _ = load_model(model_file)
    next(tensor for tensor in state.values() if tensor.is_floating_point()).view(-1)[0] = value
    path = model_file.with_suffix(suffix)
    if suffix == ".pt":
        torch.save(state, path)
    else:
        save_model(path, state, metadata)
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        networks.read(path, SPEC)


@pytest.fixture
def student_run(tmp_path: Path) -> Run:
    """A run whose model file is as it wrote it."""
    run = folder.create(tmp_path / "runs", "student", make_config())
    run.update_status(sha256=write_network(run.model_file, make_config(), spiking=True))
    return run


def test_a_run_s_model_file_is_held_to_what_the_run_recorded(student_run: Run) -> None:
    assert networks.read_of_run(student_run, SPEC).model.spiking
    content = bytearray(student_run.model_file.read_bytes())
    content[-1] ^= 1
    student_run.model_file.write_bytes(content)
    with pytest.raises(CheckpointError, match="is not the file that its run wrote"):
        networks.read_of_run(student_run, SPEC)


def test_a_student_s_file_that_describes_no_student(student_run: Run) -> None:
    def refused() -> None:
        student_run.update_status(sha256=load_model(student_run.model_file)[2])
        with pytest.raises(CheckpointError, match="not what the student of"):
            networks.read_of_run(student_run, SPEC)

    redescribe(student_run.model_file, neuron=None)
    refused()
    save_model(student_run.model_file, load_model(student_run.model_file)[0], {})
    refused()


def test_torchvision_s_weights_are_taken_from_its_cache(hub: Path) -> None:
    state = resnet18().state_dict()
    torch.save(state, hub)
    loaded = networks.pretrained("resnet18", LARGE)
    assert loaded is not None
    assert loaded.name == "resnet18"
    assert "IMAGENET1K_V1" in loaded.source
    torch.testing.assert_close(loaded.model.state_dict(), state, rtol=0, atol=0)
    for name in ("resnet19", "resnet20"):  # of these it has none
        assert networks.pretrained(name, LARGE) is None


def test_without_a_network_the_message_names_file_and_folder(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(self: Any, *args: Any, **kwargs: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(ResNet18_Weights, "get_state_dict", offline)
    with pytest.raises(CheckpointError, match="no route to host") as error:
        networks.pretrained("resnet18", LARGE)
    assert hub.name in str(error.value)
    assert str(hub.parent) in str(error.value)
    assert "tser train-teacher resnet18 --dataset imagenet" in str(error.value)


class Bomb:
    """Unpickling this makes a file: proof that code was run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("content", ["", "hello\n", "bomb"])
def test_a_file_in_the_cache_that_is_no_model(hub: Path, tmp_path: Path, content: str) -> None:
    proof = tmp_path / "ran"
    if content == "bomb":
        torch.save({"w": Bomb(proof)}, hub)
    else:
        hub.write_text(content)
    with pytest.raises(CheckpointError, match="not here and can't be fetched"):
        networks.pretrained("resnet18", LARGE)
    assert not proof.exists()


def test_vgg_takes_torchvision_s_weights_with_batch_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models import VGG11_BN_Weights

    asked = []

    def offline(self: Any, *args: Any, **kwargs: Any) -> None:
        asked.append(self)
        raise OSError

    monkeypatch.setattr(networks, "build", lambda *args, **kwargs: None)
    monkeypatch.setattr(VGG11_BN_Weights, "get_state_dict", offline)
    with pytest.raises(CheckpointError, match=r"vgg11_bn-\w+\.pth"):
        networks.pretrained("vgg11", LARGE)
    assert asked == [VGG11_BN_Weights.IMAGENET1K_V1]


@pytest.mark.parametrize(
    "save", [lambda value, path: path.write_bytes(pickle.dumps(value)), torch.save]
)
def test_a_pickle_that_would_run_code_is_refused(
    tmp_path: Path, save: Callable[[Any, Path], object]
) -> None:
    proof, path = tmp_path / "ran", tmp_path / "teacher.pt"
    save({"w": Bomb(proof)}, path)
    with pytest.raises(CheckpointError, match="never run"):
        load_model(path)
    assert not proof.exists()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        *((content, "model") for content in (b"", b"hello\n", b"\x80\x04", b"\xff" * 100)),
        (None, "can't be read"),
        pytest.param(
            "pipe",  # which is not waited for
            "no regular file",
            marks=pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes"),
        ),
    ],
)
def test_files_that_are_no_model(
    tmp_path: Path, suffix: str, content: bytes | str | None, said: str
) -> None:
    path = tmp_path / f"model{suffix}"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        os.mkfifo(path)
    with pytest.raises(CheckpointError, match=said):
        load_model(path)


def test_a_model_file_round_trip_and_a_truncated_one(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    digest = save_model(path, {"w": torch.arange(4.0)}, {"tser": "x"})
    loaded, metadata, again = load_model(path)
    assert torch.equal(loaded["w"], torch.arange(4.0))
    assert (metadata, again) == ({"tser": "x"}, digest)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        load_model(path)


def network(spiking: bool, channels: int = 1, classes: int = 3) -> Loaded:
    """A network as it was read from the file net.pt."""
    neuron = NeuronConfig() if spiking else None
    shape = {"channels": channels, "height": 8, "width": 8, "num_classes": classes}
    return Loaded(build_model("resnet20", **shape, neuron=neuron), "resnet20", "net.pt", "0")


@pytest.mark.parametrize(
    ("role", "misfit", "said"),
    [
        (
            *("teacher", {"channels": 3}),
            r"takes 3 input channels, digits has 1\. Train a teacher on this data set "
            r"\(tser train-teacher\), or name another$",
        ),
        (
            *("student", {"classes": 10}),
            r"has 10 classes, digits has 3\. Measure it on the data set that it was "
            "trained on, or name another run$",
        ),
    ],
)
def test_a_network_that_does_not_fit_is_named_by_its_role(
    role: str, misfit: dict[str, int], said: str
) -> None:
    loaded = network(spiking=role == "student", **misfit)
    with pytest.raises(CheckpointError, match=rf"^the {role} net\.pt {said}"):
        check_network(loaded, role, SPEC)


@pytest.mark.parametrize(("role", "training"), [("teacher", True), ("student", False)])
def test_a_fitting_network_is_checked_without_a_trace(role: str, training: bool) -> None:
    loaded = network(spiking=role == "student")
    loaded.model.train(training)
    before = copy.deepcopy(loaded.model.state_dict())
    check_network(loaded, role, SPEC)
    assert loaded.model.training is training
    assert all(torch.equal(v, before[name]) for name, v in loaded.model.state_dict().items())


class Plain(nn.Module):
    """The least that a network can be: no base class, no stem, no input kinds."""

    change: Callable[[Tensor], Tensor] = staticmethod(lambda logits: logits)

    def __init__(self, build: Build) -> None:
        super().__init__()
        self.spiking = build.spiking
        self.first = nn.Conv2d(build.channels, 4, 3)
        self.act = build.make_activation()
        self.last = nn.Linear(4 * (build.height - 2) * (build.width - 2), build.num_classes)

    def forward(self, images: Tensor, timesteps: int = 1) -> Tensor:
        x = self.first(images).mul(4).repeat(timesteps, 1, 1, 1)
        logits = self.last(self.act(x, timesteps).flatten(1))
        return self.change(logits.unflatten(0, (timesteps, -1)) if self.spiking else logits)


def answering(name: str, change: Callable[[Tensor], Tensor]) -> type[Plain]:
    """The same network under a name in this module, with something done to its logits."""
    return type(name, (Plain,), {"change": staticmethod(change), "__module__": __name__})


calls = itertools.count()
OneStep = answering("OneStep", lambda logits: logits.mean(0))
Swapped = answering("Swapped", lambda logits: logits.transpose(0, 1))
Remembering = answering("Remembering", lambda logits: logits + next(calls))
Cut = answering("Cut", Tensor.detach)
Failing = answering("Failing", lambda logits: logits * (1 // 0))


class Pooling(Plain):
    """Averages before its last layer, in a way that its silent neurons do not show."""

    def __init__(self, build: Build) -> None:
        super().__init__(build)
        self.last = nn.Linear(4 * 9, build.num_classes)

    def forward(self, images: Tensor, timesteps: int = 1) -> Tensor:
        x = self.first(images).mul(0).repeat(timesteps, 1, 1, 1)
        pooled = nn.functional.avg_pool2d(self.act(x, timesteps), 2)
        logits = self.last(pooled.flatten(1))
        return logits.unflatten(0, (timesteps, -1)) if self.spiking else logits

    def input_kinds(self) -> dict[str, str]:
        return {"first": "real", "last": "spikes"}


class Honest(Pooling):
    def input_kinds(self) -> dict[str, str]:
        return {"first": "real", "last": "real"}


class Adding(Plain):
    """Declares sums of spikes as spikes."""

    def forward(self, images: Tensor, timesteps: int = 1) -> Tensor:
        x = self.first(images).repeat(timesteps, 1, 1, 1)
        logits = self.last((self.act(x, timesteps) + self.act(-x, timesteps)).flatten(1))
        return logits.unflatten(0, (timesteps, -1)) if self.spiking else logits

    def input_kinds(self) -> dict[str, str]:
        return {"first": "real", "last": "spikes"}


class Misdeclared(Plain):
    def input_kinds(self) -> dict[str, str]:
        return {"first": "real"}


class NormFirst(Classifier):
    """Names its norm behind its convolution, and computes it before."""

    def __init__(self, build: Build) -> None:
        super().__init__()
        self.spiking, self.norms_follow = build.spiking, True
        self.first, self.norm = nn.Conv2d(build.channels, build.channels, 3), nn.BatchNorm2d(1)
        self.act = build.make_activation()
        self.last = nn.Linear(36, build.num_classes)

    def forward(self, images_NCHW: Tensor, timesteps: int = 1) -> Tensor:
        x = self.first(self.norm(images_NCHW)).mul(4).repeat(timesteps, 1, 1, 1)
        logits: Tensor = self.last(self.act(x, timesteps).flatten(1))
        return logits.unflatten(0, (timesteps, -1)) if self.spiking else logits


class Below(Plain):
    """Keeps a potential that dark images leave below the threshold."""

    kept = torch.zeros(())

    def forward(self, images_NCHW: Tensor, timesteps: int = 1) -> Tensor:
        self.kept = self.kept + images_NCHW.mean().detach()
        return super().forward(images_NCHW, timesteps) + (self.kept > 12.0)


class Chained(Plain):
    """Keeps what has a gradient, and no value."""

    kept = torch.zeros(())

    def forward(self, images_NCHW: Tensor, timesteps: int = 1) -> Tensor:
        logits = super().forward(images_NCHW, timesteps) + self.kept
        self.kept = 0 * logits.square().sum()
        return logits


def not_a_network(build: Build) -> object:
    return 3


def broken(build: Build) -> nn.Module:
    raise ValueError("no weights")


@pytest.fixture
def add(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[object], str]]:
    """`add(Plain)` registers a network as a plug-in does, and returns its name."""
    before = dict(registry.MODELS)
    yield lambda network: registry.add_model("mynet")(network) and "mynet"  # type: ignore[type-var]
    registry.MODELS.clear()
    registry.MODELS.update(before)


def build(spec: DataSpec, config: Config, spiking: bool = True) -> Classifier:
    return networks.build("mynet", spec, config, spiking)


def test_a_plain_module_is_a_network(add: Callable[[object], str]) -> None:
    add(Plain)
    images = torch.rand(5, 1, 8, 8)
    student = build(SPEC, make_config({"model.timesteps": 4}))
    assert student(images, 4).shape == (4, 5, 3)
    assert build(SPEC, make_config(), spiking=False)(images).shape == (5, 3)
    # what feeds its layers is found from the data
    with torch.inference_mode(), counting_of(student.eval(), 4) as counter:
        student(images, 4)
    kinds = {layer.layer.name: layer.layer.input_kind for layer in counter.counts().layers}
    assert kinds == {"module.first": "real", "module.last": "spikes"}
    assert not student.steps_alone


@pytest.mark.parametrize("takes_build", [True, False])
def test_a_network_by_its_place_takes_a_build_or_nothing_or_is_one(
    monkeypatch: pytest.MonkeyPatch, takes_build: bool
) -> None:
    made = Plain(Build(1, 8, 8, 3, activation_factory(NeuronConfig()), True, "small"))
    entry = registry.ModelEntry("mynet:build", spiking_only=True, own=True)
    monkeypatch.setitem(registry.MODELS, "mynet", entry)
    for named in (Plain,) if takes_build else (made, lambda width=3: made):
        monkeypatch.setitem(registry.KEPT, entry.target, named)
        found = build(SPEC, make_config({"model.timesteps": 4}))
        assert found(torch.rand(5, 1, 8, 8), 4).shape == (4, 5, 3)
        # a module is trained as a copy: it may be asked for again
        assert (found.get_submodule("module.last") is made.last) is (
            named is not made
        ) or takes_build


def test_what_an_average_makes_may_be_declared_as_real(add: Callable[[object], str]) -> None:
    add(Honest)
    kinds = build(SPEC, make_config({"model.timesteps": 4})).input_kinds()
    assert kinds is not None and kinds["module.last"] == "real"


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (OneStep, r"2 images of 1 x 8 x 8 for 4 time steps.*gave \(2, 3\); it must return .*TN?"),
        (Swapped, r"logits of shape \(2, 4, 3\) for 4 time steps of 2 images"),
        (Remembering, "returns other logits the second time: reset its neurons"),
        (Below, "returns other logits the second time: reset its neurons"),
        (Chained, "computes on the graph of an earlier call, which is used up: reset its neurons"),
        (Cut, "has no gradient: nothing of it can be trained"),
        (Failing, r"fails: ZeroDivisionError: .* \(.*test_networks\.py, line"),
        (Misdeclared, "last"),
        (Pooling, "at random, layer module.last is declared to be fed with spikes, but meets"),
        (Adding, "layer module.last is declared to be fed with spikes, but meets values other"),
        (NormFirst, "gives other logits once its norms are folded: norms_follow = True does not"),
        (not_a_network, "network mynet is a int, not an nn.Module"),
        (broken, "network mynet can't be built: ValueError: no weights"),
    ],
)
def test_what_breaks_the_contract(
    add: Callable[[object], str], network: object, message: str
) -> None:
    add(network)
    with pytest.raises(ConfigError, match=message) as refused:
        build(SPEC, make_config({"model.timesteps": 4}))
    assert "\n" not in str(refused.value)


def test_other_classes_than_the_data_set_s() -> None:
    model = build_model("resnet20", channels=1, height=8, width=8, num_classes=5)
    with pytest.raises(ConfigError, match=r"returns logits \(2, 5\); they must be \[N, K\]"):
        check_contract("resnet20", model, SPEC, 1)


def test_ours_keep_it_and_stay_as_they_are() -> None:
    model = networks.build("resnet20", SPEC, make_config(), spiking=True)
    before, drawn = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    check_contract("resnet20", model, SPEC, 2)
    assert model.training
    assert model.steps_alone
    assert torch.equal(drawn, torch.random.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
