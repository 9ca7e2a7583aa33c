"""The rivals against their authors' own code.

The numbers are what the authors' functions gave in float64 on the tensors below, from
these commits:

- DKD: megvii-research/mdistiller a08d46f, mdistiller/distillers/DKD.py, `dkd_loss`
- tsd: Intelli-Chip-Lab/snn_temporal_decoupling_distillation e3f5fd4, model/layer.py,
  `make_teacher`, `kd_loss`, `cal_loss`, joined as in experiment/cifar/main.py
- TET: Gus-Lab/temporal_efficient_training f9bde41, functions.py, `TET_loss`
- BKD: Intelligent-Computing-Research-Group/BKDSNN dd6bd53, Spike-Element-Wise-ResNet:
  imagenet/train_distillation.py, `get_logits_loss`; cifar10dvs/loss.py, `BRDLoss`

A gradient is that of step 1, both images.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tser_cli.losses import tsd
from tser_cli.losses.adapters import Blur
from tser_cli.losses.base import Features, Outputs, TrainingProgress, load_method
from tser_cli.settings import registry

STUDENT = [
    [[2.0, 0.5, -1.0], [1.0, 0.2, 0.4]],
    [[0.3, 1.5, 0.0], [-0.5, 2.0, 1.0]],
    [[1.2, -0.4, 0.6], [0.8, -1.0, 0.1]],
]
TEACHER = [[3.0, 1.0, -0.5], [0.4, 2.5, 2.0]]
LABELS = [0, 2]


def student() -> Tensor:
    return torch.tensor(STUDENT, dtype=torch.float64, requires_grad=True)


def outputs(logits_TNK: Tensor, features: Features | None = None, epoch: int = 0) -> Outputs:
    return Outputs(
        logits_TNK,
        torch.tensor(LABELS),
        torch.tensor(TEACHER, dtype=torch.float64),
        features,
        TrainingProgress(epoch),
    )


def agrees(
    method: str, value: float, gradient: list[float], epoch: int = 0, **weights: float
) -> None:
    leaf = student()
    settings = registry.METHODS[method].settings(**weights)
    loss = load_method(method)(outputs(leaf, epoch=epoch), settings)["loss"]
    loss.backward()
    # their make_teacher divides by the count + 1e-8
    assert loss.item() == pytest.approx(value, rel=1e-7)
    assert leaf.grad is not None
    assert leaf.grad[0].flatten().tolist() == pytest.approx(gradient, rel=1e-6)


def test_dkd() -> None:
    agrees(
        "dkd",
        5.173728347214758,
        [
            *(-0.020788466374627917, 0.012320629684509456, 0.008467836690117294),
            *(0.9631375405714464, -0.9394881893251265, -0.02364935124631965),
        ],
        ce_weight=0.0,
        kd_warmup_epochs=0.0,
    )


def test_dkd_as_on_imagenet() -> None:
    agrees(
        "dkd",
        0.44556887686609126,
        [
            *(-0.012063296003196894, 0.009862642910982584, 0.0022006530922143207),
            *(0.057162245529283576, -0.04447224885871945, -0.012689996670564115),
        ],
        ce_weight=0.0,
        kd_warmup_epochs=1.0,
        temperature=1.0,
        beta=0.5,
    )


def test_dkd_in_its_fifth_epoch() -> None:
    agrees(
        "dkd",
        2.3425305924010678,
        [
            *(-0.040930944162110995, 0.03229522277780014, 0.008635721384310565),
            *(0.32419526556291123, -0.19739312283603527, -0.12680214272687593),
        ],
        epoch=4,  # theirs count from 1
    )


def test_tsd() -> None:
    agrees(
        "tsd",
        1.3272468024503066,
        [
            *(-0.02979848810678796, 0.03908589497091388, -0.009287406864125904),
            *(0.11429810831536996, 0.015184196338809445, -0.12948230465417945),
        ],
    )


def test_the_targets_of_tsd() -> None:
    target_NK, _ = tsd.ensemble(student(), torch.tensor(LABELS), "correct")
    expected = [[1.599999992, 0.04999999974999999, -0.199999999], [0.0, 0.0, 0.0]]
    assert target_NK.flatten().tolist() == pytest.approx([*expected[0], *expected[1]], rel=1e-7)


def test_tet() -> None:
    agrees(
        "tet",
        1.0490632959806696,
        [
            *(-0.03558698262977446, 0.029130294735760554, 0.006290021227347238),
            *(0.08332746953962962, 0.037352556681862215, -0.1208355817770474),
        ],
    )


def sines(shape: tuple[int, ...], pace: float, start: float = 0.0) -> Tensor:
    size = torch.Size(shape).numel()
    return torch.sin(torch.arange(size, dtype=torch.float64) * pace + start).reshape(shape)


def test_the_logits_of_bkd() -> None:
    same = sines((2, 3, 2, 2), 0.5)
    leaf = student()
    settings = registry.METHODS["bkd"].settings(ce_weight=0.0)
    found = load_method("bkd")(outputs(leaf, Features((same,), (same,))), settings)
    found["loss"].backward()
    assert leaf.grad is not None
    expected = [
        *(-0.06666047267125637, 0.02776098416078236, 0.03889948851047401),
        *(0.03512310973967319, -0.03024397018869499, -0.004879139550978196),
    ]
    assert leaf.grad[0].flatten().tolist() == pytest.approx(expected, rel=1e-9)


def test_the_features_of_bkd() -> None:
    blur = Blur(4, 3).double().eval()  # theirs with no channel masked
    with torch.no_grad():
        for number, weight in enumerate(blur.parameters()):
            weight.copy_(0.3 * sines(tuple(weight.shape), 0.7 + 0.1 * number, 1.0))
    leaf = torch.cos(torch.arange(32, dtype=torch.float64) * 0.37).reshape(2, 4, 2, 2)
    leaf.requires_grad_()
    features = Features(blur((leaf,)), (sines((2, 3, 2, 2), 0.53),))
    error = load_method("bkd")(outputs(student(), features), registry.METHODS["bkd"].settings())
    # their weight multiplies the sum over the 3 x 2 x 2 values of a map
    loss = 2e-3 * 3 * 2 * 2 * error["feature"]
    loss.backward()
    assert loss.item() == pytest.approx(0.008962449558847257, rel=1e-9)
    assert leaf.grad is not None
    expected = [
        *(0.00022885441344813571, 0.00014904204136599472, -0.00020319965598957466),
        *(-0.0002090594871854659, 0.0002847954849799101, 0.00028880997876212225),
    ]
    assert leaf.grad.flatten()[:6].tolist() == pytest.approx(expected, rel=1e-9)
