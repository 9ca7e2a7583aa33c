"""The settings of a run: one validated model a section. Reading recipes: `tser_cli.recipe`.

A `Config` is immutable and complete: it alone (with the code) says what a run does.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from tser_cli import registry
from tser_cli.errors import unknown

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
FLOAT32_MAX = 3.4e38  # a larger one is infinite where it is used
Positive = Annotated[float, Field(gt=0.0, le=FLOAT32_MAX)]
NonNegative = Annotated[float, Field(ge=0.0, le=FLOAT32_MAX)]
Real = Annotated[float, Field(ge=-FLOAT32_MAX, le=FLOAT32_MAX)]
TOML_INTEGER_MAX = 2**63 - 1  # a larger one can't be written into config.toml
Count = Annotated[int, Field(ge=1, le=TOML_INTEGER_MAX)]
Natural = Annotated[int, Field(ge=0, le=TOML_INTEGER_MAX)]

FLOAT_BITS = 32  # of weights that are no integers

CHECKPOINT_EVERY = re.compile(r"([0-9]{1,9})(min|epochs?|steps?)")


def _known(kind: str, table: Any, name: str) -> str:
    if name not in table:
        raise ValueError(unknown(kind, name, table))
    return name


class Section(BaseModel):
    """Base of all sections: unknown keys, NaN, infinity and true for a number are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean_number(cls, value: Any, info: ValidationInfo) -> Any:
        # pydantic would take true as 1, so that epochs = true would train for one epoch.
        assert info.field_name is not None
        numeric = cls.model_fields[info.field_name].annotation in (int, float)
        if numeric and isinstance(value, bool):
            raise ValueError("expected a number, not true or false")
        return value


class DataConfig(Section):
    """Which images. `dir` "" means the platform's cache folder; `workers` -1 chooses."""

    name: str = "digits"
    dir: str = ""
    validation_fraction: Fraction = 0.0
    workers: Annotated[int, Field(ge=-1, le=256)] = -1

    @field_validator("name")
    @classmethod
    def _name(cls, name: str) -> str:
        return _known("data set", registry.DATASETS, name)


class AugmentConfig(Section):
    """Training transforms, applied in this order; all off by default.

    `crop_padding`: pixels of zero padding before a random crop back to size. `cutout`: side of
    the erased square in pixels. `random_resized_crop` replaces resize and crop.
    """

    random_resized_crop: bool = False
    crop_padding: Natural = 0
    flip: bool = False
    autoaugment: Literal["none", "cifar10"] = "none"
    cutout: Natural = 0


class ModelConfig(Section):
    """The two networks. `stem` auto: 3 x 3 for images up to 64 pixels, else torchvision's.

    `teacher` is an architecture, a run folder or a model file. `teacher_recipe` "" means the data
    set's own, used where a teacher must be trained first. `weight_bits` 8 or 4: the student's
    weights are integers of so many bits times a scale per output channel; 32 leaves them floats.
    """

    teacher: str = "resnet34"
    teacher_recipe: str = ""
    student: str = "resnet18"
    timesteps: Annotated[int, Field(ge=1, le=1024)] = 2
    stem: Literal["auto", "small", "large"] = "auto"
    weight_bits: Literal[4, 8, 32] = 32

    @field_validator("student")
    @classmethod
    def _student(cls, name: str) -> str:
        return _known("model", registry.MODELS, name)


class NeuronConfig(Section):
    """The spiking neuron: v <- v - v / tau + x, a spike where v >= threshold, then the reset.

    `backend` auto takes our own CPU code where it gives spikingjelly's result faster.
    """

    name: Literal["lif", "if", "plif"] = "lif"
    tau: Annotated[float, Field(gt=1.0, le=FLOAT32_MAX)] = 2.0
    decay_input: bool = False
    threshold: Positive = 1.0
    reset: Literal["hard", "soft"] = "hard"
    reset_value: Real = 0.0
    detach_reset: bool = False
    surrogate: Literal["sigmoid", "atan", "rect", "piecewise_quadratic"] = "sigmoid"
    surrogate_alpha: Positive = 4.0
    backend: Literal["auto", "spikingjelly"] = "auto"


class MethodConfig(Section):
    """The training objective and its weights; what is not set is the method's own (registry.py).

    `alpha`, `beta`, `lam`, `feature_weight` and `target` serve the methods whose docstrings name
    them. `entropy_weight` acts on every method.
    """

    name: str = "tser"
    temperature: Positive = 2.0
    ce_weight: NonNegative = 1.0
    kd_weight: NonNegative = 1.0
    entropy_weight: Real = 0.0
    feature_weight: NonNegative = 0.0
    alpha: NonNegative = 0.0
    beta: NonNegative = 0.0
    lam: Fraction = 0.0
    target: Literal["correct", "all"] = "correct"

    @model_validator(mode="before")
    @classmethod
    def _own_weights(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        entry = registry.METHODS.get(str(values.get("name", "tser")))
        return {**entry.weights, **values} if entry else values

    @field_validator("name")
    @classmethod
    def _name(cls, name: str) -> str:
        return _known("method", registry.METHODS, name)


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

    `batch_size` 0 or "auto": the largest power of two that fits into memory. `accumulate`: how many
    parts a batch is computed in, one after the other.
    """

    epochs: Count = 10
    batch_size: Natural = 128
    eval_batch_size: Natural = 0
    accumulate: Count = 1
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    device: str = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    deterministic: bool = False
    label_smoothing: Fraction = 0.0
    clip_norm: NonNegative = 0.0
    checkpoint_every: str = "5min"
    tensorboard: bool = True

    @field_validator("batch_size", mode="before")
    @classmethod
    def _batch_size(cls, size: Any) -> Any:
        if isinstance(size, str) and size != "auto" and not size.strip().isdecimal():
            raise ValueError(f'"{size}" is not a batch size; write a number from 1 on, or auto')
        return 0 if size == "auto" else size

    @field_validator("device")
    @classmethod
    def _device(cls, device: str) -> str:
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


class PerformanceConfig(Section):
    """How the work is done: the results are equal up to rounding, and each part can be turned off.

    `channels_last`: the memory layout that convolutions prefer. `stem_once`: what comes before the
    first spikes is computed once an image, not T times. `fold_teacher`: the teacher's norms are
    folded into its convolutions. `keep_teacher_logits`: computed once where an image looks the same
    in every epoch. `data_on_device`: images that fit live, and are augmented, on the device.
    `fused_optimizer`: one pass over the weights a step. `save_memory`: residual blocks are computed
    again for the backward pass instead of being kept. `integer_kernels`: a student with integer
    weights is measured with integer arithmetic on a CPU. `compile`: torch.compile.
    (`neuron.backend` chooses the neurons' code.)
    """

    channels_last: bool = True
    stem_once: bool = True
    fold_teacher: bool = True
    keep_teacher_logits: bool = True
    data_on_device: bool = True
    fused_optimizer: bool = True
    save_memory: bool = False
    integer_kernels: bool = True
    compile: Literal["auto", "on", "off"] = "auto"

    @model_validator(mode="after")
    def _compile(self) -> PerformanceConfig:
        if self.save_memory and self.compile == "on":
            raise ValueError("performance.compile = on does not go with performance.save_memory")
        return self


class Config(Section):
    """Everything that a run depends on."""

    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    neuron: NeuronConfig = NeuronConfig()
    method: MethodConfig = Field(default_factory=MethodConfig)
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    training: TrainingConfig = TrainingConfig()
    performance: PerformanceConfig = PerformanceConfig()

    def updated(self, changes: dict[str, Any]) -> Config:
        """A copy with dotted keys changed, as {"training.epochs": 3}; validated again."""
        values = self.model_dump(mode="json")
        for key, value in changes.items():
            section, name = key.split(".")
            values[section][name] = value
        return Config.model_validate(values)


def keys() -> dict[str, Any]:
    """Every dotted key with its default."""
    return {
        f"{section}.{key}": value
        for section, values in Config().model_dump(mode="json").items()
        for key, value in values.items()
    }
