"""What counting adds to a forward pass: ResNet-18, T = 4, 32 images of 32 x 32, on this CPU.

    python tests/benchmarks/bench_counting.py [--rounds 7] [--model resnet18] [--threads 1]

Plain and counted passes alternate, so that other work on the machine slows both alike; reported
are the medians, and the median of the ratios of neighbours.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from tser_cli.energy.counter import counting
from tser_cli.models.base import build_model
from tser_cli.settings.config import NeuronConfig

TIMESTEPS, IMAGES, SIDE = 4, 32, 32


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--channels-last", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    model = build_model(
        options.model, channels=3, height=SIDE, width=SIDE, num_classes=10, neuron=NeuronConfig()
    )
    images_NCHW = torch.randn(IMAGES, 3, SIDE, SIDE)
    model.train()
    with torch.no_grad():  # batch statistics that make the neurons fire as in a trained network
        model(images_NCHW, timesteps=TIMESTEPS)
    model.eval()
    if options.channels_last:
        model.to(memory_format=torch.channels_last)
        images_NCHW = images_NCHW.contiguous(memory_format=torch.channels_last)

    def plain() -> None:
        model(images_NCHW, timesteps=TIMESTEPS)

    def counted() -> None:
        with counting(model, model.input_kinds()) as counter:
            plain()
        counter.counts()

    with torch.inference_mode():
        plain(), counted()
        pairs = [(seconds(plain), seconds(counted)) for _ in range(options.rounds)]
    without, with_counting = (statistics.median(column) for column in zip(*pairs, strict=True))
    added = statistics.median(second / first - 1 for first, second in pairs)
    print(f"{options.model}, T = {TIMESTEPS}, {IMAGES} images, {torch.get_num_threads()} threads")
    print(f"plain {without:.3f} s, counted {with_counting:.3f} s, added {added:+.1%}")


if __name__ == "__main__":
    main()
