"""The exponential moving average of a network's weights, which is then the network that is kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """The moving average of `network`'s weights and running statistics, from its first ones on.

    After step n, from 1 on: average <- d average + (1 - d) weights, d = min(decay, (1 + n) / (10 +
    n)), the rise of tf.train.ExponentialMovingAverage: with a decay near 1 the average of a short
    training would be made of random first weights. `state` has the average, by the names of the
    network's own state dict.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._decay = decay
        # views of the weights: whatever moves these in place is seen here
        self._own = network.state_dict()
        self.restart()

    def restart(self) -> None:
        """Take the weights that the network has now for the average."""
        self.state = {name: value.clone() for name, value in self._own.items()}

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Take in the weights after step `steps`, counted from 1 over the whole run."""
        decay = min(self._decay, (1 + steps) / (10 + steps))
        pairs = [(self.state[name], own) for name, own in self._own.items()]
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        averages, weights = (list(of) for of in zip(*floats, strict=True))
        get_ema_multi_avg_fn(decay)(averages, weights, steps)  # type: ignore[no-untyped-call]
        for average, own in pairs:
            if not average.is_floating_point():  # a norm's number of batches
                average.copy_(own)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Inside, the network has the averaged weights; its own are put back after, to the bit.

        What changes in the network inside, as its running statistics may, is the average's.
        """
        kept = {name: own.clone() for name, own in self._own.items()}
        _copy(self.state, self._own)
        try:
            yield
        finally:
            # all at once and not name by name: two names may be of one tensor
            _copy(self._own, self.state)
            _copy(kept, self._own)


@torch.no_grad()
def _copy(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    for name, value in target.items():
        value.copy_(source[name])
