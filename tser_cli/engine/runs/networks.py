"""Networks from settings, to and from model files that describe themselves, and what one of a
plug-in must do.
"""

from __future__ import annotations

import copy
import json
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from tser_cli.base.errors import CheckpointError, ConfigError, TserError
from tser_cli.data.base import DataSpec
from tser_cli.energy.counter import counting
from tser_cli.energy.counts import Counts
from tser_cli.energy.meter import EnergyMeter, Meter
from tser_cli.engine.runs.folder import Run
from tser_cli.engine.runs.weights import check_finite, load_model, recognise, save_model
from tser_cli.models.base import Classifier, build_model, check_fits, load_weights
from tser_cli.models.integers import quantise
from tser_cli.models.savings import folded
from tser_cli.settings import registry
from tser_cli.settings.config import FLOAT_BITS, Config, ModelConfig, NeuronConfig, OwnSizes
from tser_cli.settings.plugins import last_line

# A wing: without it only networks are counted that say what feeds their layers.
BY_TRIAL = "tser_cli.energy.any_network.network_counter:count_operations"


class Counting(Protocol):
    """What counts a network that is called inside a `with`."""

    def counts(self) -> Counts: ...


def counting_of(
    model: Classifier, timesteps: int, detailed: bool = False
) -> AbstractContextManager[Counting]:
    """Count what `model` does inside the `with`, called with `timesteps` (1 for an ANN).

    A network that does not declare its input kinds is tried on a few images at its first call.
    `detailed`: also count operations without those on weights of zero.
    """
    kinds = model.input_kinds()
    if kinds is not None:
        return counting(model, kinds, detailed)
    # looked up by its name: the package works without that folder
    try:
        count_operations = registry.load(BY_TRIAL)
    except ModuleNotFoundError as error:
        raise TserError(
            "the network does not say what feeds its layers; give it a method input_kinds()"
        ) from error
    found: AbstractContextManager[Counting] = count_operations(model, "inside", timesteps, detailed)
    return found


IMAGES = 2


def check_contract(name: str, model: Classifier, spec: DataSpec, timesteps: int) -> None:
    """Raise ConfigError unless `model` can be trained and counted on the images of `spec`.

    An SNN returns logits [T, N, K], an ANN [N, K]; the same again for the same images, so that
    nothing is left in its neurons; a gradient reaches its weights; its operations can be counted,
    and layers that it declares to be fed with spikes, or sums of them, are so by its structure.
    The model stays as it is, and no random numbers are drawn.
    """
    size = " x ".join(map(str, spec.sample_shape))
    shown = f"network {name}, shown {IMAGES} {'samples' if spec.frames else 'images'} of {size}"
    shown += f" for {timesteps} time steps" if model.spiking else ""
    with torch.random.fork_rng(devices=[]):
        # the same images each time: whether a network is accepted is no matter of chance
        torch.manual_seed(0)
        # a copy: what is tried leaves gradients and running statistics behind
        tried = copy.deepcopy(model).cpu().eval()
        images_NCHW = random_samples(spec.sample_shape)
        try:
            problem = _problem(tried, images_NCHW, timesteps, spec.num_classes)
            problem = problem or _norms_problem(tried, images_NCHW, timesteps)
            if not problem:
                _count(tried, images_NCHW, timesteps)
        except TserError as error:
            raise ConfigError(f"{shown}: {error}") from error
        except (Exception, SystemExit) as error:
            raise ConfigError(f"{shown}, fails: {last_line(error)}") from error
    if problem:
        raise ConfigError(f"{shown}, {problem}")


def _problem(model: Classifier, images_NCHW: Tensor, timesteps: int, classes: int) -> str:
    """Return in words what is wrong with the logits or their gradient; "" where nothing is."""
    logits, form = model(images_NCHW, timesteps), "[N, K]"
    expected: tuple[int, ...] = (len(images_NCHW), classes)
    if model.spiking:
        expected, form = (timesteps, *expected), "[T, N, K], time outermost"
    if not isinstance(logits, Tensor):
        return f"returns {type(logits).__name__}, not logits {form}"
    if tuple(logits.shape) != expected:
        return f"returns logits {tuple(logits.shape)}; they must be {form}, here {expected}"
    return state_problem(model, images_NCHW, timesteps, trained=True)


def state_problem(model: nn.Module, images: Tensor, timesteps: int, trained: bool) -> str:
    """Return in words what is wrong with calls one after the other; "" where nothing is.

    `trained`: a gradient must reach its weights, and stays behind. Chance in the network is the
    same in each call.
    """

    def call(shown: Tensor) -> Tensor:
        torch.manual_seed(0)
        return model(shown, timesteps)  # type: ignore[no-any-return]

    kept = "reset its neurons when forward begins"
    # bright ones too: what a silent neuron has kept does not show
    for shown in (images, 16 * images) if images.is_floating_point() else (images,):
        first, again = call(shown), call(shown)
        if not torch.allclose(first, again, equal_nan=True):
            return f"returns other logits the second time: {kept}"
    try:
        for _ in range(2 if trained and first.requires_grad else 0):
            call(images).square().sum().backward()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        if "second time" not in str(error):
            raise
        return f"computes on the graph of an earlier call, which is used up: {kept}"
    if trained and all(weight.grad is None for weight in model.parameters()):
        return "has no gradient: nothing of it can be trained"
    return ""


@torch.no_grad()
def _norms_problem(model: Classifier, images_NCHW: Tensor, timesteps: int) -> str:
    """Return what is wrong with a network that says `norms_follow`; "" where nothing is.

    Its norms get statistics that are not those of a beginning, which change nothing wherever a norm
    is. In float64, so that rounding makes no spike.
    """
    if not model.norms_follow:
        return ""
    # of their own: norms that have seen nothing yet are nearly the identity, wherever they are
    changed = copy.deepcopy(model).double()
    for norm in changed.modules():
        if isinstance(norm, nn.BatchNorm2d) and norm.running_var is not None:
            nn.init.uniform_(cast(Tensor, norm.running_mean), -0.2, 0.2)
            nn.init.uniform_(norm.running_var, 0.1, 2.0)
    images = images_NCHW.double()
    expected, found = (m(images, timesteps) for m in (changed, folded(changed)))
    if torch.allclose(expected, found, rtol=1e-6, atol=1e-6):
        return ""
    return "gives other logits once its norms are folded: norms_follow = True does not hold of it"


def _count(model: Classifier, images_NCHW: Tensor, timesteps: int) -> Counts:
    # Untrained neurons may be silent, and the mean of zeros is a spike's 0: random spikes, with
    # probability 1/2 at each step, show what is made of spikes on the way to a layer, such as by a
    # pool that averages. The hooks stay: this copy of the network is of no further use.
    for module in model.modules():
        if getattr(module, "is_spiking_neuron", False):
            module.register_forward_hook(
                lambda module, args, spikes: torch.bernoulli(torch.full_like(spikes, 0.5))
            )
    with torch.inference_mode(), counting_of(model, timesteps) as counter:
        model(images_NCHW, timesteps)
    try:
        return counter.counts()
    except TserError as error:
        raise TserError(f"with neurons that spike at random, {error}") from error


def counts_at_random(model: Classifier, sample_shape: tuple[int, ...], timesteps: int) -> Counts:
    """Return the counts of random images with random spikes: they show what drives each layer.

    The model stays as it is, and no random numbers are drawn.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tried = copy.deepcopy(model).cpu().eval()
        counts = _count(tried, random_samples(sample_shape), timesteps)
        return replace(counts, frames=len(sample_shape) == 4)


def random_samples(sample_shape: tuple[int, ...]) -> Tensor:
    """Return a few images from 0 to 1 [N, C, H, W], or samples of counts [N, T, C, H, W]."""
    drawn = torch.rand(IMAGES, *sample_shape)
    return (4 * drawn).floor() if len(sample_shape) == 4 else drawn


METER_BY_TRIAL = "tser_cli.energy.any_network.trial_meter:TrialMeter"


def meter_of(model: Classifier, counts: Counts) -> Meter:
    """Return what meters the energy of `model` in training; `counts`: its `counts_at_random`."""
    kinds = model.input_kinds()
    if kinds is not None:
        return EnergyMeter(model, kinds)
    found: Meter = registry.load(METER_BY_TRIAL)(model, counts)
    return found


# What to do about a network that does not fit the data, by its role.
ANOTHER = {
    "teacher": "Train a teacher on this data set (tser train-teacher), or name another",
    "student": "Measure it on the data set that it was trained on, or name another run",
}
LARGEST = 2**20  # of an image's channels, height and width
# What parsing a damaged description, or building a network of absurd sizes from it, can raise.
NO_DESCRIPTION = (ValueError, KeyError, TypeError, ArithmeticError, RuntimeError)


@dataclass(frozen=True)
class Loaded:
    """A network read from a file: its architecture, where it came from, the file's SHA-256.

    `classes`: the names of what it tells apart, () where the file does not say.
    """

    model: Classifier
    name: str
    source: str
    sha256: str
    classes: tuple[str, ...] = ()


def build(name: str, spec: DataSpec, config: Config, spiking: bool) -> Classifier:
    """Return the network `name` for the images of `spec`; `spiking`: an SNN with the recipe's
    neurons.
    """
    model = build_model(
        name,
        channels=spec.channels,
        height=spec.height,
        width=spec.width,
        num_classes=spec.num_classes,
        neuron=config.neuron if spiking else None,
        stem=config.model.stem,
        settings=config.model if spiking else None,
    )
    # afterwards, as attributes: they change how it is computed, not what it is
    model.stem_once = config.performance.stem_once
    model.save_memory = config.performance.save_memory
    model.frames, model.fed_counts = 0 if spiking else spec.frames, spec.frames > 0
    model = quantise(model, config.model.weight_bits) if spiking else model
    if not registry.is_built_in(registry.MODELS[name].target):
        check_contract(name, model, spec, config.model.timesteps if spiking else 1)
    return model


UNTRAINED = "untrained"  # as the source of weights


def untrained(name: str, spec: DataSpec, config: Config) -> Loaded:
    """Return the ANN `name` with random weights: what it costs does not depend on them."""
    return Loaded(build(name, spec, config, spiking=False), name, UNTRAINED, "")


def write(path: Path, model: Classifier, name: str, spec: DataSpec, config: Config) -> str:
    """Save the weights, with enough to build the network again; return the file's SHA-256.

    Raises RunError.
    """
    spiking = model.spiking
    description = {
        "model": name,
        "dataset": spec.name,
        "channels": spec.channels,
        "height": spec.height,
        "width": spec.width,
        "classes": list(spec.classes),
        "stem": config.model.stem,
        "neuron": config.model_dump(mode="json")["neuron"] if spiking else None,
        "timesteps": config.model.timesteps if spiking else 1,
    }
    if model.frames:
        description["frames"] = model.frames
    if spiking and config.model.weight_bits != FLOAT_BITS:
        description["weight_bits"] = config.model.weight_bits
    if config.training.ema_decay:
        description["ema_decay"] = config.training.ema_decay  # these weights are an average
    if spiking and isinstance(config.model, OwnSizes):
        description["sizes"] = config.model.sizes()
    return save_model(path, model.state_dict(), {"tser": json.dumps(description)})


def read(path: Path, spec: DataSpec, stem: str = "auto", expected: str | None = None) -> Loaded:
    """Return the network of a model file; `spec` is what it is to be used on.

    A file without a description (a plain state dict) is tried as each ANN of the registry, with
    `stem` first. Raises CheckpointError, also where its SHA-256 is not the `expected` one, and for
    weights that are NaN or infinite.
    """
    state, metadata, digest = load_model(path)
    # before anything else is said of the content: a damaged file would be blamed on its network
    if expected not in (None, digest):
        raise CheckpointError(
            f"{path} is not the file that its run wrote: its SHA-256 is not the one in "
            "status.json. Restore it from a copy, or train again"
        )
    check_finite(state, path)
    classes: tuple[str, ...] = ()
    if "tser" in metadata:
        name, model = _from_description(metadata["tser"], state, path)
        classes = tuple(str(label) for label in json.loads(metadata["tser"])["classes"])
    else:
        name, model, state = recognise(state, spec, stem, path)
    load_weights(model, state, str(path))
    model.fed_counts = spec.frames > 0
    return Loaded(model, name, str(path.resolve()), digest, classes)


def read_of_run(run: Run, spec: DataSpec) -> Loaded:
    """Return the network of a finished run, held to the SHA-256 and the kind that the run recorded.

    Raises CheckpointError, RunError.
    """
    loaded = read(run.model_file, spec, expected=run.status().get("sha256"))
    if loaded.model.spiking != (run.kind == "student"):
        described = "an SNN" if loaded.model.spiking else "an ANN, or nothing"
        raise CheckpointError(
            f"{run.model_file} describes {described}, which is not what the {run.kind} of "
            f"{run.folder} is. Restore it from a copy, or train again"
        )
    return loaded


def _from_description(text: str, state: dict[str, Tensor], path: Path) -> tuple[str, Classifier]:
    try:
        described: dict[str, Any] = json.loads(text)
        for extent in ("channels", "height", "width"):
            if not 1 <= int(described[extent]) <= LARGEST:
                raise ValueError(f"{extent} must be 1 to {LARGEST}")
        if not isinstance(described["classes"], list):
            raise TypeError("classes must be a list")
        # A network without memory tells what the weights must look like, before one is made.
        with torch.device("meta"):
            check_fits(_described_network(described), state, str(path))
        model = _described_network(described)
    except (ConfigError, *NO_DESCRIPTION) as error:
        raise CheckpointError(f"model file {path} has a damaged description: {error}") from error
    return str(described["model"]), model


def _described_network(described: dict[str, Any]) -> Classifier:
    neuron, name = described["neuron"], str(described["model"])
    sized = {"student": name, "stem": described["stem"], **described.get("sizes", {})}
    settings = registry.lookup("model", registry.MODELS, name).settings.model_validate(sized)
    model = build_model(
        name,
        channels=int(described["channels"]),
        height=int(described["height"]),
        width=int(described["width"]),
        num_classes=len(described["classes"]),
        neuron=None if neuron is None else NeuronConfig.model_validate(neuron),
        stem=settings.stem,
        settings=settings,
    )
    model.frames = int(described.get("frames", 0))
    # only a student with integer weights says so
    bits = {"weight_bits": described.get("weight_bits", FLOAT_BITS)}
    return quantise(model, ModelConfig.model_validate(bits).weight_bits)


def pretrained(name: str, spec: DataSpec) -> Loaded | None:
    """torchvision's ImageNet weights (IMAGENET1K_V1), or None where it has none of `name`.

    Raises CheckpointError without a network.
    """
    from torchvision.models import get_model_weights, list_models  # torchvision is slow to import

    theirs = f"{name}_bn" if name.startswith("vgg") else name
    if theirs not in list_models():
        return None
    weights = get_model_weights(theirs)["IMAGENET1K_V1"]
    model = build(name, spec, Config.model_validate({"model": {"stem": "large"}}), spiking=False)
    try:
        state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:  # no network, or a file in the cache that is damaged in any way
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise CheckpointError(
            f"torchvision's weights of {name} are not here and can't be fetched ({error}). Put "
            f"{Path(weights.url).name} from torchvision's model page into {folder}, or train a "
            f"teacher: tser train-teacher {name} --dataset imagenet"
        ) from error
    load_weights(model, state, weights.url)
    return Loaded(model, name, f"torchvision {weights}", "")


def freeze(model: Classifier) -> Classifier:
    """Put `model` into eval mode and take its gradients away; return it."""
    return model.eval().requires_grad_(False)


@torch.no_grad()
def check_network(loaded: Loaded, role: str, spec: DataSpec) -> None:
    """Raise CheckpointError unless `loaded` takes the images of `spec` and tells its classes apart.

    `role` is "teacher" or "student", for the message.
    """
    weight = next((p for p in loaded.model.parameters() if p.ndim == 4), None)
    if weight is not None and weight.shape[1] != spec.channels:
        raise CheckpointError(
            f"the {role} {loaded.source} takes {weight.shape[1]} input channels, "
            f"{spec.name} has {spec.channels}. {ANOTHER[role]}"
        )
    was_training = loaded.model.training
    device = next((value.device for value in loaded.model.parameters()), torch.device("cpu"))
    try:
        shown = torch.zeros(1, *spec.sample_shape, device=device)
        logits = loaded.model.eval()(shown, spec.frames or 1)
    except TserError:
        raise
    # its maps become too small, or a network of the user's fails
    except (Exception, SystemExit) as error:
        raise CheckpointError(
            f"the {role} {loaded.source} can't take the {spec.height} x {spec.width} images of "
            f"{spec.name} ({last_line(error)}). {ANOTHER[role]}"
        ) from error
    loaded.model.train(was_training)
    if logits.shape[-1] != spec.num_classes:
        raise CheckpointError(
            f"the {role} {loaded.source} has {logits.shape[-1]} classes, {spec.name} "
            f"has {spec.num_classes}. {ANOTHER[role]}"
        )
