"""The settings of a run: the sections, one validated model each, and the `Config` that joins them.

A recipe, a variable or a flag sets a field by its dotted key: `optimizer.lr` is the field `lr` of
[optimizer]. A field says its policy itself: whether it changes results, and so on
(`fields.Policy`); without one it changes results and nothing else. A `Config` is immutable and
complete: it alone (with the code) says what a run does. Reading recipes: `settings/recipe.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable
from dataclasses import replace
from functools import cache
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    Field,
    FieldSerializationInfo,
    SerializeAsAny,
    field_serializer,
    field_validator,
    model_validator,
)

from tser_cli.base.errors import ConfigError
from tser_cli.settings import fields, registry
from tser_cli.settings.fields import Fraction, Natural, NonNegative, Policy, Positive, Real, Section

# What a teacher that is trained for a student has in common with it.
TEACHER_S = Policy(teacher=True)
# How the work is done, at training and at measuring, for teacher and student alike.
HOW = Policy(results=False, resume=True, measuring=True, teacher=True)
# What is written on the way.
NOTES = Policy(results=False, resume=True, teacher=True)

AUTO = "auto"
Auto = Literal["auto"]
Whole = Annotated[int, Field(strict=True)]  # not 8.0, nor "8"
Side = Annotated[Whole, Field(ge=0, le=4096)]  # pixels; a larger input fits no memory
# The keys of [data] that only your own images have a use for.
OWN_INPUT = ("size", "channels", "mean", "std", "test_fraction")
EVENTS = ("frames", "frames_by", "split")  # and only event cameras' samples for these
FLOAT_BITS = 32  # of weights that are no integers
Precision = Literal["auto", "fp32", "bf16", "fp16"]
PRECISION: Precision = "fp32"  # the default of a training
CHECKPOINT_EVERY = re.compile(r"([0-9]{1,9})(min|epochs?|steps?)")


def _known(kind: str) -> AfterValidator:
    """Let a field hold the names that are registered: those of plug-ins too, which come later."""

    def check(name: str) -> str:
        if name not in registry.TABLES[kind]:
            raise ValueError(registry.unknown_name(kind, name, registry.TABLES[kind]))
        return name

    return AfterValidator(check)


def _alpha(value: float) -> float:
    # torch draws 0.5 from a Beta distribution whose gamma variates underflow
    if value and not 0.01 <= value <= 1000.0:
        raise ValueError("write 0, which is off, or an alpha from 0.01 to 1000")
    return value


Alpha = Annotated[float, AfterValidator(_alpha)]


class DataConfig(Section):
    """Which images. `dir` "" means the platform's cache folder; `workers` -1 chooses.

    `size` (pixels a side), `channels` (1: grey, 3: RGB), `mean` and `std` (one a channel, of
    values in 0..1) are the network's input for `imagefolder` and `npz`. "auto" measures them on the
    training images, and the run keeps what came out; 0 and () mean 224, RGB and ImageNet's for
    `imagefolder`. `test_fraction` is split off where a folder has no train/ and val/.

    `frames`: into how many each sample of an event camera is divided, by equal spans of "time" or
    by equal "number"s of events (`frames_by`); 0 for images, and for an npz of frames, which has
    its own. A network is shown one at each time step, so that this and `model.timesteps` are one
    number, whichever is stated. `split` of cifar10-dvs: numbers 0 to 99 of each class are for
    testing ("first"), or a `test_fraction` of each ("random").
    """

    name: Annotated[str, _known("data set"), TEACHER_S] = "digits"
    dir: Annotated[str, HOW] = ""
    validation_fraction: Annotated[Fraction, TEACHER_S] = 0.0
    test_fraction: Annotated[Fraction, TEACHER_S] = 0.2
    size: Annotated[Side | Auto, TEACHER_S] = 0
    channels: Annotated[Whole | Auto, TEACHER_S] = 0
    mean: Annotated[tuple[Real, ...] | Auto, TEACHER_S] = ()
    std: Annotated[tuple[Positive, ...] | Auto, TEACHER_S] = ()
    frames: Annotated[int, Field(ge=0, le=1024), TEACHER_S] = 0
    frames_by: Annotated[Literal["time", "number"], TEACHER_S] = "time"
    split: Annotated[Literal["first", "random"], TEACHER_S] = "first"
    workers: Annotated[int, Field(ge=-1, le=256), HOW] = -1

    @field_validator("channels")
    @classmethod
    def _channels(cls, channels: int | str) -> int | str:
        if channels not in (0, 1, 3, AUTO):
            raise ValueError(f"{channels} channels: write 1 (grey), 3 (RGB) or auto")
        return channels

    @model_validator(mode="after")
    def _own_input(self) -> DataConfig:
        # a setting without effect would be recorded as if it had one
        free = {
            "imagefolder": OWN_INPUT,
            "npz": ("mean", "std"),
            "events": ("size", "test_fraction"),
            "cifar10-dvs": ("test_fraction", "split"),
        }.get(self.name, ())
        entry = registry.DATASETS.get(self.name)
        if entry is not None and (entry.events or not registry.is_built_in(entry.target)):
            free = (*free, "frames", "frames_by")
        for key in (*OWN_INPUT, *EVENTS):
            default = DataConfig.model_fields[key].default
            if key not in free and getattr(self, key) not in (default, AUTO):
                raise ValueError(f"data.{key} has no effect on {self.name}: leave it out")
        return self


class AugmentConfig(Section):
    """Training transforms, applied in this order; all off by default.

    `crop_padding`: pixels of zero padding before a random crop back to size. `randaugment_ops`: so
    many operations of RandAugment an image, each of `randaugment_magnitude`, from 0 to 30.
    `random_erasing`: how probable it is that a rectangle is erased. `cutout`: side of the erased
    square in pixels. `random_resized_crop` replaces resize and crop.

    `mixup` and `cutmix` mix the images of a batch in pairs, and their labels; each is the alpha of
    its Beta distribution, 0 is off, and with both every batch has one of them by chance.
    `mix_probability`: of a batch to be mixed. `mix_epochs`: the first so many epochs are mixed, 0
    means all.
    """

    random_resized_crop: bool = False
    crop_padding: Natural = 0
    flip: bool = False
    autoaugment: Literal["none", "cifar10"] = "none"
    randaugment_ops: Annotated[Whole, Field(ge=0, le=14)] = 0
    randaugment_magnitude: Annotated[Whole, Field(ge=0, le=30)] = 9
    random_erasing: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    cutout: Natural = 0
    mixup: Alpha = 0.0
    cutmix: Alpha = 0.0
    mix_probability: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    mix_epochs: Natural = 0

    @model_validator(mode="after")
    def _one_policy(self) -> AugmentConfig:
        if self.autoaugment != "none" and self.randaugment_ops:
            raise ValueError("augment.autoaugment and augment.randaugment_ops: choose one of them")
        return self

    def mixes(self, epoch: int) -> bool:
        """Return whether the batches of an epoch, counted from 0, are mixed."""
        return bool(self.mixup or self.cutmix) and epoch < (self.mix_epochs or epoch + 1)

    @property
    def one_by_one(self) -> bool:
        """Whether a transform acts on one image after the other, on the CPU."""
        policy = self.autoaugment != "none" or self.randaugment_ops > 0
        return policy or self.random_resized_crop or self.random_erasing > 0.0


class ModelConfig(Section):
    """The two networks. `stem` auto: small for images up to 64 pixels, else large.

    small: 3 x 3 at stride 1. medium: 3 x 3 at stride 2, so that all that follows costs a quarter.
    large: torchvision's, 7 x 7 at stride 2 and a max-pool (ResNet), a head of 4096 (VGG).

    `teacher` is an architecture, a run folder, a model file, or MODULE:FUNCTION, found from the
    current folder, which builds an ANN; `teacher_weights` is then a file to load into it.
    `student` is an architecture, or such a function, whose file counts as a plug-in.
    `teacher_mean` and `teacher_std`, one a channel, of values in 0..1: how a teacher from elsewhere
    wants its images normalised; () means as the student does. `teacher_recipe` "" means the data
    set's own, used where a teacher must be trained first. `weight_bits` 8 or 4: the student's
    weights are integers of so many bits times a scale per output channel; 32 leaves them floats.
    """

    teacher: Annotated[str, TEACHER_S] = "resnet34"
    teacher_weights: str = ""
    teacher_mean: tuple[Real, ...] = ()
    teacher_std: tuple[Positive, ...] = ()
    teacher_recipe: str = ""
    student: Annotated[str, _known("model")] = registry.DEFAULT_STUDENT
    timesteps: Annotated[int, Field(ge=1, le=1024)] = 2
    stem: Annotated[Literal["auto", "small", "medium", "large"], TEACHER_S] = "auto"
    weight_bits: Literal[4, 8, 32] = 32

    @model_validator(mode="after")
    def _teacher_sees(self) -> ModelConfig:
        if len(self.teacher_mean) != len(self.teacher_std):
            raise ValueError("model.teacher_mean and model.teacher_std go together, one a channel")
        return self


class OwnSizes(ModelConfig):
    """Base of [model] for a network that has sizes of its own: a network adds them as fields.

    Its neurons are its own too: of [neuron] only what is stated acts, and only that is kept.
    """

    def sizes(self) -> dict[str, Any]:
        """Return the sizes, as plain values by name."""
        return self.model_dump(mode="json", exclude=set(ModelConfig.model_fields))


class NeuronConfig(Section):
    """The spiking neuron: v <- v - v / tau + x, a spike where v >= threshold, then the reset.

    `backend` auto takes our own CPU code where it gives spikingjelly's result faster.
    """

    name: Literal["lif", "if", "plif"] = "lif"
    tau: Annotated[float, Field(gt=1.0, le=fields.FLOAT32_MAX)] = 2.0
    decay_input: bool = False
    threshold: Positive = 1.0
    reset: Literal["hard", "soft"] = "hard"
    reset_value: Real = 0.0
    detach_reset: bool = False
    surrogate: Literal["sigmoid", "atan", "rect", "piecewise_quadratic"] = "sigmoid"
    surrogate_alpha: Positive = 4.0
    backend: Literal["auto", "spikingjelly"] = "auto"


class MethodSettings(Section):
    """Base of every method's settings, the section [method]: a method adds the weights it reads.

    The class variables describe the method: `summary` and `source` for people, `deviations` from
    the code that its authors released, `needs_teacher`, and `separated` where it compares every
    time step by itself. `reads_firing_rates`: it is given those of the student.

    `entropy_weight` rewards the mean entropy of every step's prediction, on top of any method;
    `rate_weight` charges for the mean firing rate of the student's neurons in the same way.
    """

    summary: ClassVar[str] = ""
    source: ClassVar[str] = ""
    deviations: ClassVar[str] = ""
    needs_teacher: ClassVar[bool] = True
    separated: ClassVar[bool] = True
    reads_firing_rates: ClassVar[bool] = False

    name: Annotated[str, _known("method")] = ""
    entropy_weight: Real = 0.0
    rate_weight: NonNegative = 0.0

    @classmethod
    def weights(cls) -> dict[str, Any]:
        """Return the settings that the method reads besides its name, with their defaults."""
        return {key: of.default for key, of in cls.model_fields.items() if key != "name"}


class OptimizerConfig(Section):
    """`weight_decay` acts on convolution and linear weights alone."""

    name: Literal["sgd", "adamw"] = "sgd"
    lr: Positive = 0.1
    momentum: Fraction = 0.9
    nesterov: bool = False
    weight_decay: NonNegative = 5e-4
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999

    @model_validator(mode="after")
    def _nesterov(self) -> OptimizerConfig:
        if self.nesterov and self.momentum == 0.0:
            raise ValueError("optimizer.nesterov needs a momentum above 0")
        return self


class ScheduleConfig(Section):
    """The learning rate over a run; `milestones` (step) and `warmup_epochs` are in epochs.

    cosine: from lr down to lr * final_factor; step: times `gamma` at each milestone;
    onecycle: a cosine up over the first `warmup_epochs`, then down to lr * final_factor.
    """

    name: Literal["cosine", "step", "onecycle", "constant"] = "cosine"
    warmup_epochs: NonNegative = 0.0
    final_factor: Fraction = 0.0
    milestones: tuple[Positive, ...] = ()
    gamma: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1


class TrainingConfig(Section):
    """Length, batch (global, over all processes), numerics and what is written on the way.

    `batch_size` 0 or "auto": the largest power of two that fits into memory, at most a 16th of the
    training images. `accumulate`: how many parts a batch is computed in, one after the other.
    `precision` auto: bf16 where the CPU has it and is found to be faster with it, else fp32; the
    run keeps what was chosen. `ema_decay`: the network that is kept is the exponential moving
    average of its weights over the steps; 0 keeps the last ones.
    """

    epochs: Annotated[fields.Count, Policy(resume=True)] = 10
    batch_size: Natural = 128
    eval_batch_size: Annotated[Natural, HOW] = 0
    accumulate: Annotated[fields.Count, Policy(resume=True)] = 1
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    device: Annotated[str, HOW] = "auto"
    precision: Annotated[Precision, Policy(measuring=True, teacher=True)] = PRECISION
    deterministic: Annotated[bool, TEACHER_S] = False
    clip_norm: NonNegative = 0.0
    ema_decay: Fraction = 0.0
    checkpoint_every: Annotated[str, NOTES] = "5min"
    tensorboard: Annotated[bool, NOTES] = True

    @field_validator("batch_size", mode="before")
    @classmethod
    def _batch_size(cls, size: Any) -> Any:
        # "auto" is kept as 0, so that the field stays a number for all who read it
        if isinstance(size, str) and size != "auto" and not size.strip().isdecimal():
            raise ValueError(f'"{size}" is not a batch size; write a number from 1 on, or auto')
        return 0 if size == "auto" else size

    @field_validator("device")
    @classmethod
    def _device(cls, device: str) -> str:
        # the words alone: whether there is such a device is known where torch is
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
            raise ValueError(f'"{device}" is not a device; use auto, cpu, cuda or cuda:N')
        return device

    @field_validator("checkpoint_every")
    @classmethod
    def _checkpoint_every(cls, every: str) -> str:
        match = CHECKPOINT_EVERY.fullmatch(every)
        if not match or int(match[1]) < 1:
            raise ValueError(f'"{every}" is not an interval; write 5min, 1epoch or 200steps')
        return every


class EnergyConfig(Section):
    """What an image may cost, and which cost profile energy is computed with.

    `budget`: a student is trained until it costs at most so much: an energy, as "4uJ", a share of
    the ANN of the same shape, as "25%", or "none". `profile`: a name or a TOML file; "" chooses by
    the bits of the weights.
    """

    budget: str = fields.NO_BUDGET
    profile: str = ""

    @field_validator("budget")
    @classmethod
    def _budget(cls, text: str) -> str:
        # kept as text, as it was written: config.toml says 25%, not a number of pJ
        try:
            if text != fields.NO_BUDGET:
                fields.parse_budget(text)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return text


class PerformanceConfig(Section):
    """How the work is done: the results are equal up to rounding, and each part can be turned off.

    `channels_last`: the memory layout that convolutions prefer. `stem_once`: what comes before the
    first spikes is computed once an image, not T times. `fold_teacher`: the teacher's norms are
    folded into its convolutions. `keep_teacher_logits`: computed once where an image looks the same
    in every epoch. `data_on_device`: images that fit live, and are augmented, on the device.
    `fused_optimizer`: one pass over the weights a step. `save_memory`: residual blocks are computed
    again for backward instead of being kept. `integer_kernels`: integer weights are measured with
    integer arithmetic on a CPU. `spikes_in_bytes`: backward keeps spikes in a byte each.
    `pixel_products`: layers on a single pixel are one product. `compile`: torch.compile. (And
    `neuron.backend`.)
    """

    channels_last: bool = True
    stem_once: bool = True
    fold_teacher: bool = True
    keep_teacher_logits: bool = True
    data_on_device: bool = True
    fused_optimizer: bool = True
    save_memory: bool = False
    integer_kernels: bool = True
    spikes_in_bytes: Annotated[bool, HOW] = True
    pixel_products: bool = True
    compile: Literal["on", "off"] = "off"

    @model_validator(mode="after")
    def _compile(self) -> PerformanceConfig:
        if self.save_memory and self.compile == "on":
            raise ValueError("performance.compile = on does not go with performance.save_memory")
        return self


METHOD = "method.name"
STUDENT = "model.student"
FRAMES, TIMESTEPS = "data.frames", "model.timesteps"  # of events one number
EPOCHS = "training.epochs"
# What a weight adds to a method that would go without it, as results then name the method.
ADDED = {"entropy": "entropy_weight", "rate": "rate_weight"}
ENDLESS = ("constant", "step")  # schedules in which no learning rate depends on the last epoch


class Config(Section):
    """Everything that a run depends on. `method` is of the class that the chosen method has.

    `plugins` are imported by the command line (`tser_cli.settings.plugins`), never by reading them.
    """

    plugins: Annotated[tuple[str, ...], NOTES] = ()
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    model: SerializeAsAny[ModelConfig] = ModelConfig()
    neuron: NeuronConfig = NeuronConfig()
    method: SerializeAsAny[MethodSettings] = Field(
        default_factory=lambda: registry.METHODS[registry.DEFAULT_METHOD].settings()
    )
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    training: TrainingConfig = TrainingConfig()
    energy: EnergyConfig = EnergyConfig()
    performance: PerformanceConfig = PerformanceConfig()

    @field_validator("method", mode="before")
    @classmethod
    def _by_its_method(cls, values: Any) -> MethodSettings:
        if isinstance(values, MethodSettings):
            return values
        stated = {"name": registry.DEFAULT_METHOD, **values}
        entry = registry.METHODS.get(str(stated["name"]))
        # a name that is none is an error of the base class, which all methods share
        chosen = entry.settings if entry else MethodSettings
        return chosen.model_validate(stated if entry else {"name": stated["name"]})

    @field_validator("model", mode="before")
    @classmethod
    def _by_its_student(cls, values: Any) -> ModelConfig:
        if isinstance(values, ModelConfig):
            return values
        entry = registry.MODELS.get(str(values.get("student", registry.DEFAULT_STUDENT)))
        return (entry.settings if entry else ModelConfig).model_validate(values)

    @field_serializer("neuron")
    def _what_is_stated(self, neuron: NeuronConfig, info: FieldSerializationInfo) -> dict[str, Any]:
        own = isinstance(self.model, OwnSizes)
        return neuron.model_dump(mode=info.mode, exclude_unset=own)

    def flat(self) -> dict[str, Any]:
        """Return every setting by dotted key, as plain values: {"data.name": "digits", ...}."""
        return fields.flatten(self.model_dump(mode="json"))

    def updated(self, changes: dict[str, Any]) -> Config:
        """Return a copy with dotted keys changed, as {"training.epochs": 3}; validated again.

        Another method comes with its own weights, another student with its own sizes and neurons.
        """
        # by way of plain values: pydantic's own model_copy(update=...) validates nothing
        kept = self.flat()
        if changes.get(METHOD, self.method.name) != self.method.name:
            kept = {key: value for key, value in kept.items() if not key.startswith("method.")}
        apart = of_network(self.model.student, changes.get(STUDENT, self.model.student), kept)
        kept = {key: value for key, value in kept.items() if key not in apart}
        return Config.model_validate(fields.split({**kept, **changes}))

    def policy(self, key: str) -> Policy:
        """Return the policy of a dotted key under these settings; two keys depend on others."""
        policy = policies().get(key, Policy())
        if key == "data.dir" and registry.DATASETS[self.data.name].own_images:
            # here the folder says which images there are
            return replace(policy, results=True, resume=False)
        if key == EPOCHS:
            # More epochs only make a run longer where nothing before its end depends on them. A
            # method of a plug-in may read what part of the training is done.
            endless = self.schedule.name in ENDLESS and not self.has_energy_budget
            built_in = registry.is_built_in(registry.METHODS[self.method.name].target)
            return replace(policy, resume=endless and built_in)
        return policy

    @property
    def has_energy_budget(self) -> bool:
        """Whether the student is trained to an energy budget."""
        return self.energy.budget != fields.NO_BUDGET

    def result_settings(self) -> dict[str, Any]:
        """Return the settings that the results depend on, by dotted key."""
        return {key: value for key, value in self.flat().items() if self.policy(key).results}


def keys(method: str | None = None, student: str | None = None) -> dict[str, Any]:
    """Return every dotted key with its default: those of all methods and networks.

    Or those alone that `method` reads, or that `student` has. A key of several has the first one's
    default.
    """
    # a copy: the cached one is everybody's
    of_one = (student,) if student else tuple(registry.MODELS)
    return dict(_keys((method,) if method else tuple(registry.METHODS), of_one))


@cache  # by the methods and networks that there are: a plug-in may add one
def _keys(methods: tuple[str, ...], students: tuple[str, ...]) -> dict[str, Any]:
    found = {key: of for key, of in Config().flat().items() if not key.startswith("method.")}
    for network in dict.fromkeys(registry.MODELS[name].settings for name in students):
        if issubclass(network, OwnSizes):
            found = fields.flatten({"model": network().sizes()}) | found
    for settings in (registry.METHODS[name].settings for name in methods):
        weights = fields.flatten(
            {"method": {"name": registry.DEFAULT_METHOD, **settings.weights()}}
        )
        found |= {key: default for key, default in weights.items() if key not in found}
    return found


def readers(key: str) -> list[str]:
    """Return the methods that read a weight: `readers("method.temperature")`."""
    name, methods = key.removeprefix("method."), registry.METHODS.items()
    return [method for method, entry in methods if name in entry.settings.weights()]


def of_network(network: str, student: str, stated: Iterable[str]) -> set[str]:
    """Return which of the stated keys are sizes and neurons of `network` that `student` can't use.

    None where they are one, or neither has sizes and neurons of its own.
    """
    named = [
        registry.MODELS[name].settings for name in (network, student) if name in registry.MODELS
    ]
    if network == student or not any(issubclass(settings, OwnSizes) for settings in named):
        return set()
    shared = {f"model.{name}" for name in ModelConfig.model_fields}
    return {key for key in stated if key.startswith(("model.", "neuron."))} - shared


def unread(key: str, method: str, student: str) -> str:
    """Return the message for a weight of another method, or a size that the student has not."""
    if key.startswith("model."):
        of_student = registry.MODELS[student].settings
        own = of_student().sizes() if issubclass(of_student, OwnSizes) else {}
        has = ", ".join(f"model.{name}" for name in own) or "no sizes to set"
        return f"{key}: {student} does not have it; it has {has}"
    return f"{key}: {method} does not read it; it is read by {', '.join(readers(key))}"


def method_label(config: Config, varied: Container[str] = ()) -> str:
    """Return the method as results name it: `kd`, or `kd+entropy` where entropy was added to it.

    A weight among the `varied` keys is named elsewhere.
    """
    # a weight of 0 by default was added by somebody; tser's own entropy is no news
    now, usual = config.method.model_dump(), config.method.weights()
    words = [
        word
        for word, weight in ADDED.items()
        if now[weight] != 0.0 and usual[weight] == 0.0 and f"method.{weight}" not in varied
    ]
    return "+".join([config.method.name, *words])


@cache
def policies() -> dict[str, Policy]:
    """Return the policy of every dotted key."""
    own = Config.policies()
    return fields.flatten(
        {
            name: type(part).policies() if isinstance(part, Section) else own[name]
            for name, part in Config()
        }
    )


def keys_where(holds: Callable[[Policy], bool]) -> frozenset[str]:
    """Return the dotted keys whose policy is so: `keys_where(lambda policy: policy.measuring)`."""
    return frozenset(key for key, policy in policies().items() if holds(policy))
