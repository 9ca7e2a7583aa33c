"""What is trained: a classifier (the teacher), or a student that learns from one.

A `Task` turns a batch of images into the named terms of its loss; the loop (`loop.fit`) does the
rest. Time is never averaged before the loss: that is what the methods are about.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tser_cli.base.errors import ConfigError
from tser_cli.energy.joules import priced
from tser_cli.energy.meter import Meter
from tser_cli.engine.runs.networks import counts_at_random, freeze, meter_of
from tser_cli.engine.training.budget import EnergyBudget, settle_budget
from tser_cli.losses import base as losses
from tser_cli.losses.base import Features, Method, Outputs, Terms, TrainingProgress
from tser_cli.models import base as models
from tser_cli.models.base import Classifier, FeatureTap
from tser_cli.models.savings import folded, use_products
from tser_cli.settings import registry
from tser_cli.settings.config import Config, MethodSettings
from tser_cli.settings.plugins import last_line

NOT_BEGUN = TrainingProgress()


@dataclass(frozen=True)
class StepResult:
    """The named terms of one batch and the number of images that were right.

    `teacher_correct`: how many of them the teacher has right, as augmented; None without one.
    """

    terms: Terms
    correct: Tensor
    logits_TNK: Tensor
    teacher_correct: Tensor | None = None


@dataclass
class Task:
    """A network in training and its objective. `network` may be its Trainee wrapped for DDP.

    `teacher_logits_MK`: the teacher's logits of all training images by index, if they never change.
    """

    model: Classifier
    network: nn.Module
    method: Method
    settings: MethodSettings
    timesteps: int
    teacher: Classifier | None = None
    adapters: nn.Module | None = None
    teacher_tap: FeatureTap | None = None
    teacher_logits_MK: Tensor | None = None
    budget: EnergyBudget | None = None

    def step(
        self,
        images_NCHW: Tensor,
        labels_N: Tensor,
        indices_N: Tensor | None = None,
        progress: TrainingProgress = NOT_BEGUN,
        multiplier: float = 0.0,
        targets_NK: Tensor | None = None,
    ) -> StepResult:
        """Forward pass and loss of a batch.

        `indices_N`: the images' places in the training data, for `teacher_logits_MK`. `progress`:
        how far the training has come, for methods that depend on it. `multiplier`: what energy /
        budget weighs in the loss; 0 leaves loss and gradients as they are without a budget.
        `targets_NK`: the shares of the classes where images are mixed; what is right goes by the
        largest.
        """
        logits, student, rates, accumulates = self.network(images_NCHW, self.timesteps)
        # losses in float32, whatever the network was computed in
        logits_TNK = logits.float() if self.model.spiking else logits.float().unsqueeze(0)
        teacher_NK: Tensor | None = None
        # kept where images look the same in every epoch: the teacher then answers them once
        if self.teacher_logits_MK is not None and indices_N is not None:
            teacher_NK = self.teacher_logits_MK[indices_N.to(self.teacher_logits_MK.device)]
        elif self.teacher is not None:
            teacher_NK = teach(self.teacher, images_NCHW)
        features = None
        if self.teacher_tap is not None:
            # sums of squares over a map leave the range of half precision
            both = (student, self.teacher_tap.take())
            features = Features(*(tuple(stage.float() for stage in stages) for stages in both))
        # Methods see every step: to average over time, or not to, is what sets them apart.
        seen = (logits_TNK, labels_N, teacher_NK, features, progress)
        of_layers, of_all = rates or (None, None)
        outputs = Outputs(*seen, of_layers, of_all, targets_NK)
        terms = self.method(outputs, self.settings)
        terms = losses.reward_entropy(terms, outputs, self.settings)
        terms = losses.charge_firing(terms, outputs, self.settings)
        if self.budget is not None and accumulates is not None:
            all_of_them, narrow = accumulates
            energy_pj = priced(self.budget.macs, all_of_them, self.budget.profile, narrow)
            terms = {**terms, "energy_pj": energy_pj}
            if multiplier:  # at 0 not even a zero is added: the loss keeps its bits
                pressure = multiplier / self.budget.pj * energy_pj
                terms["loss"] = terms["loss"] + pressure.to(terms["loss"].dtype)
        correct = (logits_TNK.detach().mean(0).argmax(-1) == labels_N).sum()
        taught = None if teacher_NK is None else (teacher_NK.argmax(-1) == labels_N).sum()
        return StepResult(terms, correct, logits_TNK, taught)

    def trainable(self) -> list[nn.Module]:
        """Return the modules whose parameters the optimizer moves."""
        return [self.model] + ([] if self.adapters is None else [self.adapters])

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters that the optimizer moves."""
        yield from self.model.named_parameters()
        if self.adapters is not None:
            yield from self.adapters.named_parameters(prefix="adapters")


@torch.no_grad()
def teach(teacher: Classifier, images_NCHW: Tensor) -> Tensor:
    """Return the teacher's logits in single precision: [N, C, H, W] -> [N, K]."""
    return teacher(images_NCHW).float()  # type: ignore[no-any-return]


class Trainee(nn.Module):
    """A network in training with the adapters of its method, if any: what the processes share.

    DDP sees only what passes through the forward of the module that it wraps. So whatever takes
    part in the gradient is computed here: images [N, C, H, W], T -> logits as the network gives
    them, the adapted features of each stage, averaged over time, the firing rates of the neurons,
    where the method reads them, and the accumulates of an image, where there is an energy budget.
    """

    def __init__(
        self,
        model: Classifier,
        adapters: nn.Module | None = None,
        tap: FeatureTap | None = None,
        neurons: FeatureTap | None = None,
        meter: Meter | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.adapters = adapters
        self._tap = tap
        self._neurons = neurons
        self._meter = meter

    def forward(
        self, images_NCHW: Tensor, timesteps: int
    ) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, Tensor] | None, Tensor | None]:
        with self._meter or nullcontext():
            logits = self.model(images_NCHW, timesteps)
        rates = None if self._neurons is None else models.firing_rates(self._neurons.take())
        accumulates = None if self._meter is None else self._meter.take() / len(images_NCHW)
        if self.adapters is None or self._tap is None:
            return logits, (), rates, accumulates
        averaged = tuple(models.over_time(stage, timesteps) for stage in self._tap.take())
        return logits, self.adapters(averaged), rates, accumulates


def prepared(network: Trainee, config: Config) -> Trainee:
    """Return `network`, its layers computed in training as the settings allow."""
    if config.performance.pixel_products:
        use_products(network)
    return network


def classification(model: Classifier, config: Config) -> Task:
    """Train an ANN with cross entropy on its logits; of [method] the label smoothing counts."""
    network = prepared(Trainee(model), config)
    smoothing = getattr(config.method, "label_smoothing", 0.0)
    settings = registry.METHODS["ce"].settings.model_validate({"label_smoothing": smoothing})
    return Task(model, network, losses.load_method("ce"), settings, 1)


def distillation(
    student: Classifier,
    teacher: Classifier | None,
    config: Config,
    sample_shape: tuple[int, ...],
) -> Task:
    """Train an SNN by the recipe's method; the teacher is frozen and in eval mode.

    Raises ConfigError where the method compares features that do not match.
    """
    name = config.method.name
    needs_teacher = registry.METHODS[name].needs_teacher
    assert teacher is not None or not needs_teacher, "the engine provides the teacher"
    if teacher is not None and config.performance.fold_teacher and teacher.norms_follow:
        # it is in eval mode for good, so that its norms are constants; the student's are not
        teacher = folded(teacher)
    task = Task(
        student,
        Trainee(student),
        losses.load_method(name),
        config.method,
        config.model.timesteps,
        freeze(teacher) if teacher is not None and needs_teacher else None,
    )
    tap = neurons = meter = None
    if config.method.reads_firing_rates or config.method.rate_weight:
        neurons = FeatureTap(student, models.neuron_names(student))
    make_adapters = registry.METHODS[name].make_adapters
    if make_adapters is not None and task.teacher is not None:
        for role, network in (("student", student), ("teacher", task.teacher)):
            if not network.stage_names():
                raise ConfigError(
                    f"method {name} compares features of stages, and the {role} names none: give "
                    "it a method stage_names(), or choose another method"
                )
        taps = tap, task.teacher_tap = FeatureTap(student), FeatureTap(task.teacher)
        both = list(zip((student, task.teacher), taps, strict=True))
        shown = (sample_shape, task.timesteps)
        if student.any_maps:
            sizes = models.aligned(*(models.stage_shapes(*one, *shown) for one in both))
            for one in taps:
                one.reduce(sizes)
        task.adapters = make_adapters(*(models.stage_shapes(*one, *shown) for one in both))
    if config.has_energy_budget:
        counts = counts_at_random(student, sample_shape, config.model.timesteps)
        task.budget, meter = settle_budget(config, counts), meter_of(student, counts)
    task.network = prepared(Trainee(student, task.adapters, tap, neurons, meter), config)
    if not registry.is_built_in(registry.METHODS[name].target):
        check_method(task, sample_shape)
    return task


def check_method(task: Task, sample_shape: tuple[int, ...]) -> None:
    """Raise ConfigError where the method of a plug-in fails on two images, before any training."""
    name, training = task.settings.name, task.network.training
    device = next(task.network.parameters()).device
    with torch.random.fork_rng(devices=[]):  # what follows draws the same numbers as without
        images = torch.zeros(2, *sample_shape, device=device)
        logits_TNK, student, rates, _ = task.network.eval()(images, task.timesteps)
        task.network.train(training)
        labels_N = torch.zeros(2, dtype=torch.long, device=device)
        # the teacher may be on another device by now: zeros of its shapes will do
        teacher_NK = None if task.teacher is None else torch.zeros_like(logits_TNK[0])
        features = Features(student, tuple(map(torch.zeros_like, student))) if student else None
        tried = Outputs(logits_TNK, labels_N, teacher_NK, features, NOT_BEGUN, *(rates or ()))
        try:
            found = task.method(tried, task.settings)
        except (Exception, SystemExit) as error:
            raise ConfigError(f"method {name} fails on two images: {last_line(error)}") from error
    losses.check_terms(name, found)
