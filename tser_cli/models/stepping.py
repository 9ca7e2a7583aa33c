"""An SNN run one time step at a time, so that images can leave when they are decided."""

from __future__ import annotations

from types import TracebackType

from torch import Tensor

from tser_cli.models.base import Classifier
from tser_cli.models.neurons import SpikingNeuron


class Stepper:
    """Inside the `with`, the neurons of `model` keep their membrane potential between steps.

    `start` shows a batch of images, each `step` gives the logits [N, K] of the next time step,
    `keep` drops images, which are not computed any further. The logits are those of
    `model(images, timesteps=T)`, step by step.
    """

    def __init__(self, model: Classifier) -> None:
        assert model.spiking, "an ANN has no time steps"
        self._model = model
        self._neurons = [m for m in model.modules() if isinstance(m, SpikingNeuron)]
        self._current: Tensor | None = None

    def __enter__(self) -> Stepper:
        for neuron in self._neurons:
            neuron.set_streaming(True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for neuron in self._neurons:
            neuron.set_streaming(False)

    def start(self, images_NCHW: Tensor) -> None:
        """Begin with new images; the stem is computed once, every membrane starts anew."""
        for neuron in self._neurons:
            neuron.set_streaming(True)
        self._current = self._model.stem(images_NCHW)

    def step(self) -> Tensor:
        """Logits [N, K] of the next time step, for the images that are left."""
        assert self._current is not None, "start() comes first"
        return self._model.body(self._current, 1)

    def keep(self, chosen: Tensor) -> None:
        """Go on with the chosen images: those where a mask is true, or those at these places."""
        assert self._current is not None, "start() comes first"
        self._current = self._current[chosen]
        for neuron in self._neurons:
            neuron.keep(chosen)
