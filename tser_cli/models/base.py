"""What every network has in common, and how one is built by name.

A network is an ANN or an SNN by its activations alone. Time is folded into the batch: every layer
but the neurons sees [T * N, ...], time outermost, as if it were a larger batch of images.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tser_cli.base.errors import CheckpointError, ConfigError, TserError
from tser_cli.base.system import call_fault
from tser_cli.models.neurons import activation_factory
from tser_cli.models.savings import as_of_copies, computed_again
from tser_cli.settings import registry
from tser_cli.settings.config import ModelConfig, NeuronConfig
from tser_cli.settings.plugins import last_line


class Classifier(nn.Module):
    """A network that maps images to logits, in one call for all time steps.

    ANN: `model(images_NCHW)` -> logits [N, K]. SNN: `model(images_NCHW, timesteps=T)` ->
    logits [T, N, K], for any T: a model is not bound to a number of steps. Ours implement `stem`
    (what is computed once an image, up to the first activation) and `body`; a network that has a
    `forward` of its own needs neither, and can then do without what rests on them.

    Samples with a time axis are [N, T, C, H, W]: an SNN is shown one frame at each step, an ANN the
    mean over time. `frames`: in how many an ANN's samples were when it was trained. Shown others,
    it sees the sum over as many: of counts that is the same however a sample is divided.

    `fed_counts`: its input is counts of events, whole numbers, so that the layer that reads them
    adds. `stem_once` False computes the stem T times, as a plain SNN does. `save_memory` computes
    residual blocks (ResNet) or layers between pools (VGG) again for the backward pass.
    `norms_follow`: each norm is named right after the convolution whose output it reads.
    `any_maps`: its stages are compared with maps of other sizes too, as tokens have them.
    """

    spiking: bool
    frames = 0
    fed_counts = False
    norms_follow = False
    any_maps = False
    stem_once = True
    save_memory = False

    def forward(self, images_NCHW: Tensor, timesteps: int = 1) -> Tensor:
        if not self.spiking:
            return self.body(self.stem(self.mean_frame(images_NCHW)), 1)
        # Frames differ from step to step: what is folded into the batch is then the samples' own.
        if images_NCHW.dim() == 5:
            folded = self.stem(time_first(images_NCHW, timesteps).flatten(0, 1))
        # Direct encoding shows the same image at every step, so that the stem gives the same too:
        # it is computed once, and its norm is told to count the images T times.
        elif self.stem_once:
            with as_of_copies(self.stem_norm(), timesteps if self.training else 1):
                folded = repeated(self.stem(images_NCHW), timesteps)
        else:
            folded = self.stem(repeated(images_NCHW, timesteps))
        # time is unfolded at the very end: what lies between is written for images alone
        logits = self.body(folded, timesteps)
        return logits.reshape(timesteps, -1, logits.shape[-1])

    def mean_frame(self, images: Tensor) -> Tensor:
        """Return what an ANN is shown: [N, C, H, W] as it is, of [N, T, C, H, W] the mean."""
        # the sum first: of counts it is exact, and so the same for any T
        return images.sum(1) / (self.frames or images.shape[1]) if images.dim() == 5 else images

    def stem(self, images_NCHW: Tensor) -> Tensor:
        """Membrane input of the first activation, [N, C, H, W]."""
        raise NotImplementedError

    def body(self, x: Tensor, timesteps: int) -> Tensor:
        """From the first activation on, time folded into the batch -> logits [T * N, K]."""
        raise NotImplementedError

    def stem_norm(self) -> nn.Module:
        """Return the norm inside `stem`."""
        raise NotImplementedError

    def begun(self, images_NCHW: Tensor) -> Tensor:
        """Return what `body` starts from at each single time step: what is computed once."""
        return self.stem(images_NCHW)

    def input_kinds(self) -> dict[str, str] | None:
        """Return what feeds each Conv2d and Linear: "real", "spikes" or "sums" (sums of spikes).

        None where the network does not say; it is then found from the data.
        """
        return None

    def stage_names(self) -> tuple[str, ...]:
        """Return the submodules whose outputs feature methods compare; () where there are none."""
        return ()

    @property
    def steps_alone(self) -> bool:
        """Return whether single time steps can be computed, by `begun` and `body`."""
        return type(self).stem is not Classifier.stem and type(self).body is not Classifier.body

    def notes(self) -> tuple[str, ...]:
        """Return what to say of the network before it is trained, a line each."""
        return ()

    def remembered(self, block: nn.Module, x: Tensor, *timesteps: int) -> Tensor:
        """`block(x, timesteps)`; with `save_memory`, in training, its insides are not kept."""
        if self.save_memory and self.training and torch.is_grad_enabled():
            return computed_again(block, x, *timesteps)
        result: Tensor = block(x, *timesteps)
        return result


def repeated(x: Tensor, timesteps: int) -> Tensor:
    """[N, ...] -> [T * N, ...], the same at every time step."""
    return x.repeat(timesteps, *(1 for _ in x.shape[1:]))


def time_first(frames_NTCHW: Tensor, timesteps: int) -> Tensor:
    """[N, T, C, H, W] -> [T, N, C, H, W]. Raises ConfigError for another T than `timesteps`."""
    if frames_NTCHW.shape[1] != timesteps:
        raise ConfigError(
            f"samples of {frames_NTCHW.shape[1]} frames were shown for {timesteps} time steps; "
            "there must be as many: model(frames, timesteps=T)"
        )
    return frames_NTCHW.transpose(0, 1)


@dataclass(frozen=True)
class Build:
    """What a definition needs: `make_activation` decides between ANN and SNN.

    `stem` is "small", "medium" or "large", see `tser_cli.settings.config.ModelConfig`. `settings`
    and `neuron` are for networks with sizes and neurons of their own (`OwnSizes`).
    """

    channels: int
    height: int
    width: int
    num_classes: int
    make_activation: Callable[[], nn.Module]
    spiking: bool
    stem: str
    settings: ModelConfig = field(default_factory=ModelConfig)
    neuron: NeuronConfig = field(default_factory=NeuronConfig)


SMALL_IMAGE = 64


def build_model(
    name: str,
    *,
    channels: int,
    height: int,
    width: int,
    num_classes: int,
    neuron: NeuronConfig | None = None,
    stem: str = "auto",
    settings: ModelConfig | None = None,
) -> Classifier:
    """Return the network `name` for images [channels, height, width]; an SNN if `neuron` is given.

    `stem`: "small" is 3 x 3 without max-pool, "medium" the same at stride 2, "large" torchvision's
    7 x 7 with max-pool, "auto" small up to 64 pixels. `settings`: the sizes of a network that has
    some, None for its own. A plain module of a plug-in gets the face of a Classifier. Raises
    ConfigError for an unknown name, an ANN of a spiking-only one, sizes that do not fit the images,
    or a plug-in that builds no network.
    """
    entry = registry.lookup("model", registry.MODELS, name)
    # the neurons alone tell an SNN from an ANN: all else of a definition is shared
    spiking = neuron is not None
    if entry.spiking_only and not spiking:
        raise ConfigError(f"{name} has no ANN form; use {registry.ann_beside(name)} as a teacher")
    if stem == "auto":
        stem = "large" if max(height, width) > SMALL_IMAGE else "small"
    activation = activation_factory(neuron)
    shape = (channels, height, width, num_classes)
    own = (settings or entry.settings(), neuron or NeuronConfig())
    build = Build(*shape, activation, spiking, stem, *own)
    if registry.is_built_in(entry.target):
        model = registry.load(entry.target)(build)
        assert isinstance(model, Classifier)
        return model
    try:
        made = registry.load(entry.target)
        model = _made(made, build) if entry.own else made(build)
    except TserError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(f"network {name} can't be built: {last_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise ConfigError(f"network {name} is a {type(model).__name__}, not an nn.Module")
    # a plug-in may return a network of ours, or know nothing of this package
    if not isinstance(model, Classifier):
        return OwnNetwork(model, spiking)
    model.spiking = spiking
    return model


def _made(named: Any, build: Build) -> Any:
    """Return what a network that is named MODULE:NAME makes: itself, or without or with `build`."""
    if isinstance(named, nn.Module):
        return copy.deepcopy(named)  # it may be asked for twice, and each is trained
    return named(build) if call_fault(named) else named()


class OwnNetwork(Classifier):
    """A module of your own with the face of our networks.

    A spiking one is called as `module(images, timesteps)` and returns logits [T, N, K]; an ANN is
    called as `module(images)` and returns [N, K]. Samples with a time axis come as
    [N, T, C, H, W] to the first, and as their mean over time to the second, unless `as_given`:
    what your own loaders give is not changed. Methods that compare features need a method
    `stage_names()` of the module: the submodules that end its stages, whose outputs are
    [T * N, C, H, W] with time outermost. `input_kinds()` of the module is asked too.
    """

    def __init__(self, module: nn.Module, spiking: bool, as_given: bool = False) -> None:
        super().__init__()
        self.module = module
        self.spiking = spiking
        self._as_given = as_given

    def forward(self, images_NCHW: Tensor, timesteps: int = 1) -> Tensor:
        if not self.spiking:
            shown = images_NCHW if self._as_given else self.mean_frame(images_NCHW)
            return self._checked(self.module(shown), 2, "[N, K]")
        logits_TNK = self._checked(self.module(images_NCHW, timesteps), 3, "[T, N, K]")
        if logits_TNK.shape[:2] != (timesteps, len(images_NCHW)):
            raise ConfigError(
                f"the student ({type(self.module).__name__}) gave logits of shape "
                f"{tuple(logits_TNK.shape)} for {timesteps} time steps of {len(images_NCHW)} "
                "images; return [T, N, K], time outermost"
            )
        return logits_TNK

    def input_kinds(self) -> dict[str, str] | None:
        named = getattr(self.module, "input_kinds", None)
        return None if named is None else {f"module.{name}": of for name, of in named().items()}

    def stage_names(self) -> tuple[str, ...]:
        named = getattr(self.module, "stage_names", tuple)
        return tuple(f"module.{name}" for name in named())

    def _checked(self, logits: Any, dimensions: int, shape: str) -> Tensor:
        if not isinstance(logits, Tensor) or logits.dim() != dimensions:
            found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            role = "student" if self.spiking else "teacher"
            named = f"the {role} ({type(self.module).__name__})"
            raise ConfigError(f"{named} gave {found}; it must return logits {shape}")
        return logits


def load_weights(model: Classifier, state: dict[str, Tensor], source: str) -> None:
    """Copy `state` into `model`. Raises CheckpointError where it does not fit."""
    check_fits(model, state, source)
    model.load_state_dict(state)


def check_fits(model: Classifier, state: dict[str, Tensor], source: str) -> None:
    """Raise CheckpointError, naming what differs, where `state` is not of `model`."""
    problems = differences(model.state_dict(), state)
    if problems:
        raise CheckpointError(
            f"{source} holds another network than the one asked for: {problems}. Check the model's "
            "name, its stem, the number of classes and the input channels"
        )


SHOWN = 3  # differences that a message names


def differences(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """Return in words how a state dict differs from the expected one; "" where it does not."""
    problems = [f"missing {key}" for key in sorted(expected.keys() - state.keys())]
    problems += [f"unexpected {key}" for key in sorted(state.keys() - expected.keys())]
    problems += sorted(
        f"{key} is {tuple(state[key].shape)}, not {tuple(expected[key].shape)}"
        for key in expected.keys() & state.keys()
        if state[key].shape != expected[key].shape
    )
    more = f" and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    return "; ".join(problems[:SHOWN]) + more


def parameter_count(model: nn.Module) -> int:
    """Return the number of trainable values."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def initialise(model: nn.Module) -> None:
    """Kaiming-normal (fan out) convolutions, unit norms, as torchvision's ResNet and VGG do."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            # on "meta" there is nothing to draw, but torch would import its compiler for it
            if not module.weight.is_meta:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


class FeatureTap:
    """Keep the output of each stage of `model` in its latest forward pass, or of other modules.

    Time stays folded into the batch, as the stages give it: [T * N, C, H, W]. Hooks keep them, not
    the networks' own code: a module from elsewhere can then be tapped as well.
    """

    def __init__(self, model: Classifier, names: tuple[str, ...] | None = None) -> None:
        self._kept: dict[str, Tensor] = {}
        self._sizes: list[tuple[int, int]] = []
        self._names = model.stage_names() if names is None else names
        for name in self._names:
            model.get_submodule(name).register_forward_hook(self._keeper(name))

    def _keeper(self, name: str) -> Callable[..., None]:
        # a plain function: a copy of the network must not copy the tap along with its hooks
        def keep(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            # networks from elsewhere may have time as an axis
            self._kept[name] = output.flatten(0, 1) if output.dim() == 5 else output

        return keep

    def take(self) -> tuple[Tensor, ...]:
        """Return the stages' outputs, first stage first; they are forgotten here."""
        features = tuple(self._kept[name] for name in self._names)
        self._kept.clear()  # or a whole step's maps would live on in memory until the next one
        if not self._sizes:
            return features
        chosen = features[-len(self._sizes) :]
        return tuple(map(nn.functional.adaptive_avg_pool2d, chosen, self._sizes))

    def reduce(self, sizes: list[tuple[int, int]]) -> None:
        """From now on give the last stages alone, as many as there are sizes, averaged to these."""
        self._sizes = sizes


def neuron_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the layers of spiking neurons in `model`, as they were built."""
    return tuple(
        name for name, module in model.named_modules() if hasattr(module, "is_spiking_neuron")
    )


def firing_rates(spikes: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Mean spikes per neuron per time step, of each layer and of all: -> [L] and a scalar."""
    rates_L = torch.stack([layer.float().mean() for layer in spikes])
    # weighted by neurons: the rate over all of them is no mean of the layers' rates
    values_L = torch.tensor([layer.numel() for layer in spikes], device=rates_L.device)
    return rates_L, (rates_L * values_L).sum() / values_L.sum()


def over_time(features_TNCHW: Tensor, timesteps: int) -> Tensor:
    """Mean over time of time-folded features: [T * N, C, H, W] -> [N, C, H, W]."""
    return features_TNCHW.reshape(timesteps, -1, *features_TNCHW.shape[1:]).mean(0)


def aligned(
    shapes: list[tuple[int, int, int]], others: list[tuple[int, int, int]]
) -> list[tuple[int, int]]:
    """Return the (H, W) at which two networks' last stages can be compared: the smaller ones."""
    count = min(len(shapes), len(others))
    pairs = zip(shapes[-count:], others[-count:], strict=True)
    return [(min(a[1], b[1]), min(a[2], b[2])) for a, b in pairs]


@torch.no_grad()
def stage_shapes(
    model: Classifier, tap: FeatureTap, sample_shape: tuple[int, ...], timesteps: int = 1
) -> list[tuple[int, int, int]]:
    """(C, H, W) of each stage's output for samples of that shape; the mode is put back."""
    # eval mode: a pass over zeros would move the norms' running statistics
    was_training = model.training
    device = next(model.parameters()).device
    model.eval()(torch.zeros(1, *sample_shape, device=device), timesteps)
    model.train(was_training)
    return [(int(f.shape[1]), int(f.shape[2]), int(f.shape[3])) for f in tap.take()]


@torch.no_grad()
def penultimate(model: Classifier, images_NCHW: Tensor, timesteps: int) -> Tensor:
    """Return what the last linear layer reads, averaged over time: [N, C, H, W] -> [N, F]."""
    # a hook, since a network from elsewhere has no method that stops before its last layer
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    read: list[Tensor] = []
    hook = last.register_forward_pre_hook(lambda module, args: read.append(args[0]))
    model(images_NCHW, timesteps)
    hook.remove()
    # a network from elsewhere may have time as an axis, or call the layer at each step
    steps = timesteps if model.spiking else 1
    return torch.cat(read).reshape(steps, len(images_NCHW), -1).mean(0)
