"""tsd by hand, at its limits, and against its authors' code.

Authors: Intelli-Chip-Lab/snn_temporal_decoupling_distillation e3f5fd4, model/layer.py,
`make_teacher`, `kd_loss`, `cal_loss`, joined as in experiment/cifar/main.py.
"""

from __future__ import annotations

import pytest
import torch

from tests.losses.by_hand import (
    AVERAGED,
    CE_OF_STEPS,
    CLASSES,
    IMAGES,
    LABELS,
    STEPS,
    STUDENT,
    TEACHER,
    average,
    check_authors,
    check_fixed_target,
    check_weights,
    kl,
    mean,
    outputs,
    settings_for,
    student,
    terms_of,
)
from tser_cli.losses import tsd


def test_tsd_by_hand() -> None:
    right = average([STUDENT[0][0], STUDENT[2][0]])  # image 0; image 1 is pulled to uniform
    targets = [right, [0.0] * CLASSES]
    own = mean([kl(targets[n], step[n], 3.0) for step in STUDENT for n in range(IMAGES)])
    kd = mean([kl(TEACHER[n], step[n], 3.0) for step in STUDENT for n in range(IMAGES)])
    found = terms_of("tsd", outputs())
    expected = {"ce": CE_OF_STEPS, "kd": kd, "self": own}
    expected["loss"] = CE_OF_STEPS + 0.2 * kd + 0.5 * own
    assert found == pytest.approx(expected, abs=1e-12)
    # without a term for images with no right step
    own = sum(kl(right, step[0], 3.0) for step in STUDENT) / (STEPS * IMAGES)
    skipped = terms_of("tsd", outputs(), no_right_step="skip")
    assert skipped["self"] == pytest.approx(own, abs=1e-12)
    # with all steps as the target
    own = mean([kl(AVERAGED[n], step[n], 3.0) for step in STUDENT for n in range(IMAGES)])
    assert terms_of("tsd", outputs(), target="all")["self"] == pytest.approx(own, abs=1e-12)


def test_one_step_is_its_own_teacher() -> None:
    # the target is the step itself where it is right, and there is none where it is not
    one = outputs(STUDENT[:1])
    skipped = terms_of("tsd", one, no_right_step="skip")["self"]
    assert skipped == pytest.approx(0.0, abs=1e-15)
    assert terms_of("tsd", one, target="all")["self"] == pytest.approx(0.0, abs=1e-15)


def test_equal_steps_teach_each_other_nothing() -> None:
    found = terms_of("tsd", outputs([STUDENT[0]] * 4), target="all")
    assert found["self"] == pytest.approx(0.0, abs=1e-13)


def test_no_right_step_leaves_tsd_s_own_term_out() -> None:
    never = outputs(labels=[2, 2])
    flat = mean([kl([0.0] * CLASSES, step[n], 3.0) for step in STUDENT for n in range(IMAGES)])
    assert terms_of("tsd", never)["self"] == pytest.approx(flat, abs=1e-12)
    assert terms_of("tsd", never, target="all")["self"] > 0.01
    leaf = student()
    never = outputs(leaf, labels=[2, 2])
    tsd.self_distillation(never, settings_for("tsd", no_right_step="skip")).backward()
    assert torch.equal(leaf.grad, torch.zeros_like(leaf))


def test_its_targets_carry_no_gradient() -> None:
    leaf = student()
    tsd.self_distillation(outputs(leaf), settings_for("tsd", target="all")).backward()
    check_fixed_target(leaf.grad, [AVERAGED] * STEPS)


def test_the_weights_it_reads() -> None:
    check_weights(
        "tsd",
        {"temperature": 3.0, "alpha": 0.2, "beta": 0.5}
        | {"target": "correct", "no_right_step": "uniform"},
    )


def test_the_loss_and_its_gradient_are_the_authors() -> None:
    gradient = [
        *(-0.02979848810678796, 0.03908589497091388, -0.009287406864125904),
        *(0.11429810831536996, 0.015184196338809445, -0.12948230465417945),
    ]
    check_authors("tsd", 1.3272468024503066, gradient)


def test_the_targets_of_tsd() -> None:
    target_NK, _ = tsd.ensemble(student(), torch.tensor(LABELS), "correct")
    expected = [[1.599999992, 0.04999999974999999, -0.199999999], [0.0, 0.0, 0.0]]
    assert target_NK.flatten().tolist() == pytest.approx([*expected[0], *expected[1]], rel=1e-7)
