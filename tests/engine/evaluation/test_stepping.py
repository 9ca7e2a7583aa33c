"""Running an SNN step by step gives the logits of one call, also for images that stay."""

from __future__ import annotations

import pytest
import torch

from tser_cli.engine.evaluation.early_exit import Stepper
from tser_cli.models.base import Classifier, build_model
from tser_cli.settings.config import NeuronConfig


def network(**neuron: object) -> Classifier:
    torch.manual_seed(0)
    settings = NeuronConfig.model_validate(neuron)
    model = build_model("resnet20", channels=1, height=8, width=8, num_classes=4, neuron=settings)
    for _ in range(20):  # running statistics under which the neurons spike
        model(torch.randn(16, 1, 8, 8), timesteps=2)
    return model.eval()


@pytest.mark.parametrize(
    "neuron", [{}, {"name": "if"}, {"name": "plif"}, {"reset": "soft"}, {"tau": 3.0}]
)
@torch.inference_mode()
def test_steps_equal_one_call(neuron: dict[str, object]) -> None:
    model = network(**neuron)
    images = torch.randn(5, 1, 8, 8)
    whole_TNK = model(images, timesteps=4)
    assert whole_TNK.std() > 0
    with Stepper(model) as stepper:
        stepper.start(images)
        for t in range(4):
            assert torch.allclose(stepper.step(), whole_TNK[t], atol=1e-6)
    assert torch.equal(model(images, timesteps=4), whole_TNK)


@torch.inference_mode()
def test_images_that_stay_go_on_as_if_alone() -> None:
    model = network()
    images = torch.randn(6, 1, 8, 8)
    whole_TNK = model(images, timesteps=3)
    mask = torch.tensor([True, False, True, True, False, False])
    with Stepper(model) as stepper:
        stepper.start(images)
        stepper.step()
        stepper.keep(mask)
        second = stepper.step()
        assert second.shape == (3, 4)
        assert torch.allclose(second, whole_TNK[1][mask], atol=1e-6)
        stepper.start(images[:2])
        assert torch.allclose(stepper.step(), whole_TNK[0][:2], atol=1e-6)


@torch.inference_mode()
def test_steps_in_bf16_equal_one_call_in_bf16() -> None:
    model = network()
    images = torch.randn(5, 1, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        whole_TNK = model(images, timesteps=4)
        with Stepper(model) as stepper:
            stepper.start(images)
            for t in range(4):
                assert torch.equal(stepper.step(), whole_TNK[t])
