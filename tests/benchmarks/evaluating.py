"""Evaluation and counting against a plain forward pass, and early exit against its share."""

from __future__ import annotations

import torch

from tests.benchmarks.subjects import PLAIN, SPEC, Size, make_batch
from tests.benchmarks.timing import Ratio, added, alternate, one_thread, ratio
from tser_cli.energy.counter import counting
from tser_cli.engine.evaluation.early_exit import CONFIDENCE, Rule, Stepper, exit_batch
from tser_cli.engine.evaluation.evaluate import evaluate
from tser_cli.engine.runs import networks
from tser_cli.engine.runs.runtime import make_runtime
from tser_cli.models.integers import integer
from tser_cli.settings.config import FLOAT_BITS


def evaluation_over_forward(size: Size, rounds: int, bits: int = FLOAT_BITS) -> Ratio:
    """`evaluate` of all time steps against a plain eager forward of the same images: images/s.

    `bits`: of our student's weights; the plain one's are fp32.
    """
    batch = make_batch(size.batch)
    ours = make_runtime(size.config().training)
    config = size.config({"model.weight_bits": bits})
    model = integer(ours.place(networks.build(size.student, SPEC, config, spiking=True)).eval())
    plain_config = size.config(PLAIN)
    plain = networks.build(size.student, SPEC, plain_config, spiking=True).eval()
    if bits == FLOAT_BITS:
        plain.load_state_dict(model.state_dict())
    plain.to(ours.device)
    images = batch.images_NCHW.to(ours.device)

    def forward() -> None:
        with torch.no_grad():
            plain(images, size.timesteps)

    works = {"forward": forward, "ours": lambda: evaluate(model, [batch], ours, size.timesteps)}
    spent = alternate(works, rounds)
    return ratio(spent["forward"], spent["ours"])


def exits_over_share(size: Size, rounds: int) -> Ratio:
    """Early exit against the share of the time of a full pass that its mean steps make."""
    batch = make_batch(size.batch)
    runtime = make_runtime(size.config().training)
    model = networks.build(size.student, SPEC, size.config(), spiking=True)
    runtime.place(model).eval()
    images, labels = runtime.images(batch.images_NCHW), batch.labels_N.to(runtime.device)
    with torch.inference_mode():
        first = model(images, 1)[0].softmax(-1).amax(-1)
    rule, steps = Rule(CONFIDENCE, float(first.median())), list[float]()

    def exits() -> None:
        with torch.inference_mode(), Stepper(model) as stepper:
            step_N, _ = exit_batch(stepper, images, labels, size.timesteps, rule)
        steps.append(float(step_N.float().mean()))

    works = {"exits": exits, "full": lambda: evaluate(model, [batch], runtime, size.timesteps)}
    spent = alternate(works, rounds)
    share = steps[0] / size.timesteps
    return ratio(spent["exits"], [whole * share for whole in spent["full"]])


def counting_added(rounds: int) -> Ratio:
    """What counting adds to a forward pass of ResNet-18, in per cent of the pass."""
    torch.manual_seed(0)
    size = Size(4, 32)
    model = networks.build(size.student, SPEC, size.config(), spiking=True)
    images_NCHW = make_batch(size.batch).images_NCHW
    with torch.no_grad():  # batch statistics that make the neurons fire as in a trained network
        model.train()(images_NCHW, size.timesteps)
    model.eval()

    def counted() -> None:
        with counting(model, model.input_kinds()) as counter:
            model(images_NCHW, size.timesteps)
        counter.counts()

    with one_thread(), torch.inference_mode():
        works = {"plain": lambda: model(images_NCHW, size.timesteps), "counted": counted}
        spent = alternate(works, rounds)
    return added(spent["counted"], spent["plain"])
