"""The rivals of the ladder: by hand in plain Python, at their limits, against authors' code.

The authors' numbers are what their functions gave in float64 on the tensors below, from these
commits:

- DKD: megvii-research/mdistiller a08d46f, mdistiller/distillers/DKD.py, `dkd_loss`
- tsd: Intelli-Chip-Lab/snn_temporal_decoupling_distillation e3f5fd4, model/layer.py,
  `make_teacher`, `kd_loss`, `cal_loss`, joined as in experiment/cifar/main.py
- TET: Gus-Lab/temporal_efficient_training f9bde41, functions.py, `TET_loss`
- BKD: Intelligent-Computing-Research-Group/BKDSNN dd6bd53, Spike-Element-Wise-ResNet:
  imagenet/train_distillation.py, `get_logits_loss`; cifar10dvs/loss.py, `BRDLoss`
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tser_cli.losses import bkd, dkd, seal, tsd
from tser_cli.losses.adapters import Blur
from tser_cli.losses.base import (
    Features,
    Outputs,
    TrainingProgress,
    load_method,
    reward_entropy,
    stage_features,
)
from tser_cli.settings import registry
from tser_cli.settings.config import MethodSettings

Logits = list[float]
OF_LOGITS = ["tsd", "seal", "tet", "dkd"]
# Three steps, two images, three classes. Image 0 (label 0) is right at steps 1 and 3; image 1
# (label 2) never.
STUDENT = [
    [[2.0, 0.5, -1.0], [1.0, 0.2, 0.4]],
    [[0.3, 1.5, 0.0], [-0.5, 2.0, 1.0]],
    [[1.2, -0.4, 0.6], [0.8, -1.0, 0.1]],
]
TEACHER = [[3.0, 1.0, -0.5], [0.4, 2.5, 2.0]]
LABELS = [0, 2]
STEPS, IMAGES, CLASSES = 3, 2, 3


def outputs(
    student: list[list[Logits]] | Tensor = STUDENT,
    teacher: list[Logits] | Tensor = TEACHER,
    labels: list[int] = LABELS,
    features: Features | None = None,
) -> Outputs:
    logits = [
        values if isinstance(values, Tensor) else torch.tensor(values, dtype=torch.float64)
        for values in (student, teacher)
    ]
    features = features or some_features()
    return Outputs(logits[0], torch.tensor(labels), logits[1], features=features)


def student() -> Tensor:
    return torch.tensor(STUDENT, dtype=torch.float64, requires_grad=True)


def some_features(leaf: bool = False) -> Features:
    """Two stages of two images: [2, 3, 2, 2] and [2, 4, 1, 1], from a generator of their own."""
    draw = torch.Generator().manual_seed(11)
    shapes = [(2, 3, 2, 2), (2, 4, 1, 1)]
    made = [torch.randn(*s, dtype=torch.float64, generator=draw) for s in [*shapes, *shapes]]
    return Features(tuple(x.requires_grad_(leaf) for x in made[:2]), tuple(made[2:]))


def settings_for(method: str, **weights: float | str) -> MethodSettings:
    return registry.METHODS[method].settings(**weights)


def terms_of(method: str, of: Outputs, **settings: float | str) -> dict[str, float]:
    found = load_method(method)(of, settings_for(method, **settings))
    return {name: term.item() for name, term in found.items()}


def softmax(z: Logits, tau: float = 1.0) -> Logits:
    powers = [math.exp(value / tau) for value in z]
    return [power / sum(powers) for power in powers]


def ce(z: Logits, label: int) -> float:
    return -math.log(softmax(z)[label])


def kl(target: Logits, z: Logits, tau: float) -> float:
    """tau^2 KL(softmax(target / tau) || softmax(z / tau))."""
    pairs = zip(softmax(target, tau), softmax(z, tau), strict=True)
    return tau**2 * sum(p * math.log(p / q) for p, q in pairs)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def average(rows: list[Logits]) -> Logits:
    return [mean(list(column)) for column in zip(*rows, strict=True)]


CE_OF_STEPS = mean([ce(step[n], LABELS[n]) for step in STUDENT for n in range(IMAGES)])
AVERAGED = [average([step[n] for step in STUDENT]) for n in range(IMAGES)]
CE_OF_MEAN = mean([ce(AVERAGED[n], LABELS[n]) for n in range(IMAGES)])


def squared_error(stage: int) -> float:
    """Sum of the squared differences of a stage, value by value."""
    of = some_features()
    ours, theirs = (part[stage].flatten().tolist() for part in (of.student, of.teacher))
    return math.fsum((a - b) ** 2 for a, b in zip(ours, theirs, strict=True))


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


def test_seal_by_hand() -> None:
    # Where a step is wrong, written out: the student's wrong logit takes the true one's value, the
    # teacher's wrong and true logits the smaller of theirs.
    copies = [
        ([2.0, 0.5, -1.0], [3.0, 1.0, -0.5]),  # right
        ([0.4, 0.2, 0.4], [0.4, 2.5, 0.4]),  # says 0, true 2
        ([0.3, 0.3, 0.0], [1.0, 1.0, -0.5]),  # says 1, true 0
        ([-0.5, 1.0, 1.0], [0.4, 2.0, 2.0]),  # says 1, true 2
        ([1.2, -0.4, 0.6], [3.0, 1.0, -0.5]),  # right
        ([0.1, -1.0, 0.1], [0.4, 2.5, 0.4]),  # says 0, true 2
    ]
    ela = mean([kl(theirs, ours, 3.0) for ours, theirs in copies])
    sta = mean([sta_by_hand([step[n] for step in STUDENT]) for n in range(IMAGES)])
    found = terms_of("seal", outputs())
    loss = CE_OF_STEPS + 0.6 * ela + 0.15 * sta
    expected = {"ce": CE_OF_STEPS, "ela": ela, "sta": sta, "loss": loss}
    assert found == pytest.approx(expected, abs=1e-12)


def confidence(z: Logits) -> float:
    return 1 + sum(p * math.log(p) for p in softmax(z)) / math.log(len(z))


def cosine(a: Logits, b: Logits) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


def sta_by_hand(steps: list[Logits]) -> float:
    """The mean over the steps of one image."""
    found = []
    for i, z in enumerate(steps):
        others = [other for j, other in enumerate(steps) if j != i]
        weights = softmax([confidence(other) * cosine(z, other) for other in others])
        target = [
            sum(w * other[k] for w, other in zip(weights, others, strict=True))
            for k in range(len(z))
        ]
        found.append(kl(target, z, 3.0))
    return mean(found)


def test_tet_by_hand() -> None:
    error = mean([(value - 1) ** 2 for step in STUDENT for z in step for value in z])
    found = terms_of("tet", outputs())
    expected = {"ce": CE_OF_STEPS, "mse": error, "loss": 0.999 * CE_OF_STEPS + 0.001 * error}
    assert found == pytest.approx(expected, abs=1e-12)


def target_and_others(n: int, z: Logits, tau: float) -> tuple[float, float]:
    y = LABELS[n]
    p, q = softmax(TEACHER[n], tau)[y], softmax(z, tau)[y]
    target = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    rest = [k for k in range(CLASSES) if k != y]
    return tau**2 * target, kl([TEACHER[n][k] for k in rest], [z[k] for k in rest], tau)


def test_dkd_by_hand() -> None:
    pairs = [target_and_others(n, step[n], 4.0) for step in STUDENT for n in range(IMAGES)]
    target, others = (mean(list(values)) for values in zip(*pairs, strict=True))
    for epoch, weight in ((0, 1 / 20), (9, 10 / 20), (19, 1.0), (99, 1.0)):
        found = terms_of("dkd", replace(outputs(), progress=TrainingProgress(epoch)))
        loss = CE_OF_STEPS + weight * (target + 8 * others)
        expected = {"ce": CE_OF_STEPS, "target": target, "others": others, "loss": loss}
        assert found == pytest.approx(expected, abs=1e-12)
    at_once = terms_of("dkd", outputs(), kd_warmup_epochs=0.0)["loss"]
    assert at_once == pytest.approx(CE_OF_STEPS + target + 8 * others, abs=1e-12)


def test_the_two_terms_of_dkd_make_up_the_kl() -> None:
    # Zhao et al., equation 7: KL = target + (1 - p_y) others, of every row.
    student, labels = torch.tensor(STUDENT[0], dtype=torch.float64), torch.tensor(LABELS)
    teacher = torch.tensor(TEACHER, dtype=torch.float64)
    target = dkd.target_kl(teacher, student, labels, 1.0).tolist()
    others = dkd.other_kl(teacher, student, labels, 1.0).tolist()
    for n in range(IMAGES):
        rest = 1 - softmax(TEACHER[n])[LABELS[n]]
        whole = kl(TEACHER[n], STUDENT[0][n], 1.0)
        assert target[n] + rest * others[n] == pytest.approx(whole, abs=1e-12)


def test_dkd_still_learns_from_a_student_that_is_surer_than_its_teacher() -> None:
    # In float32 1 - p_y is exactly 0 here, and its logarithm -34.5.
    student = torch.tensor([[[40.0, 5.0, 5.5 - math.log(2)]]], requires_grad=True)
    of = Outputs(student, torch.tensor([0]), torch.tensor([[2.0, 0.0, 0.0]]))
    stated = {"temperature": 1.0, "ce_weight": 0.0, "beta": 0.0, "kd_warmup_epochs": 0.0}
    settings = settings_for("dkd", **stated)
    found = load_method("dkd")(of, settings)
    p = math.exp(2) / (math.exp(2) + 2)
    rest = math.log(math.exp(-35.0) + math.exp(-34.5) / 2)
    expected = p * math.log(p) + (1 - p) * (math.log(1 - p) - rest)
    assert found["loss"].item() == pytest.approx(expected, rel=1e-5)
    found["loss"].backward()
    assert student.grad[0, 0, 0].item() == pytest.approx(1 - p, rel=1e-5)


def test_feature_and_kd_feature_by_hand() -> None:
    error = mean([squared_error(0) / 24, squared_error(1) / 8])
    expected = {"ce": CE_OF_MEAN, "feature": error, "loss": CE_OF_MEAN + 100 * error}
    assert terms_of("feature", outputs()) == pytest.approx(expected, abs=1e-9)
    kd = mean([kl(TEACHER[n], AVERAGED[n], 2.0) for n in range(IMAGES)])
    expected |= {"kd": kd, "loss": CE_OF_MEAN + kd + 100 * error}
    assert terms_of("kd_feature", outputs()) == pytest.approx(expected, abs=1e-9)


def bkd_weight(n: int) -> float:
    return 1 - math.exp(-ce(AVERAGED[n], LABELS[n]) / (ce(TEACHER[n], LABELS[n]) + 1e-7))


def test_bkd_by_hand() -> None:
    weighted = [bkd_weight(n) * kl(TEACHER[n], AVERAGED[n], 2.0) for n in range(IMAGES)]
    error = squared_error(1) / 8  # of the last stage alone, [2, 4, 1, 1]
    expected = {"ce": CE_OF_MEAN, "kd": mean(weighted), "feature": error}
    expected["loss"] = CE_OF_MEAN + mean(weighted) + 16.384 * error
    assert terms_of("bkd", outputs()) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("logit", "weight"), [(1e3, 0.0), (0.0, 0.5), (-1e3, 1.0)])
def test_the_weight_of_bkd_runs_from_0_to_1(logit: float, weight: float) -> None:
    # the teacher's cross entropy is 1, the student's 0, log 2 and 1000
    teacher = torch.tensor([[-math.log(math.e - 1), 0.0]], dtype=torch.float64)
    student = torch.tensor([[logit, 0.0]], dtype=torch.float64)
    found = bkd.distance_weights(student, teacher, torch.tensor([0]))
    assert found.item() == pytest.approx(weight, abs=1e-7)
    perfect = torch.tensor([[900.0, 0.0, 0.0]])  # divides by no zero
    assert bkd.distance_weights(torch.zeros(1, 3), perfect, torch.tensor([0])).item() == 1.0


@pytest.mark.parametrize("method", OF_LOGITS)
def test_one_step_is_the_mean_of_itself(method: str) -> None:
    found = terms_of(method, outputs(STUDENT[:1]))
    alone = terms_of(method, outputs([STUDENT[0], STUDENT[0]]))
    assert found == pytest.approx(alone, abs=1e-12)


def test_one_step_has_no_others_to_learn_from() -> None:
    one = outputs(STUDENT[:1])
    assert terms_of("seal", one)["sta"] == 0.0
    # zhat is the step itself where it is right, and there is none where it is not
    skipped = terms_of("tsd", one, no_right_step="skip")["self"]
    assert skipped == pytest.approx(0.0, abs=1e-15)
    assert terms_of("tsd", one, target="all")["self"] == pytest.approx(0.0, abs=1e-15)


def test_no_right_step_leaves_tsd_s_own_term_out() -> None:
    never = outputs(labels=[2, 2])
    flat = mean([kl([0.0] * CLASSES, step[n], 3.0) for step in STUDENT for n in range(IMAGES)])
    assert terms_of("tsd", never)["self"] == pytest.approx(flat, abs=1e-12)
    assert terms_of("tsd", never, target="all")["self"] > 0.01
    leaf = student()
    never = outputs(leaf, labels=[2, 2])
    tsd.self_distillation(never, settings_for("tsd", no_right_step="skip")).backward()
    assert torch.equal(leaf.grad, torch.zeros_like(leaf))


@pytest.mark.parametrize("method", ["tsd", "seal"])
def test_equal_steps_teach_each_other_nothing(method: str) -> None:
    stated = {"target": "all"} if method == "tsd" else {}
    found = terms_of(method, outputs([STUDENT[0]] * 4), **stated)
    assert found["self" if method == "tsd" else "sta"] == pytest.approx(0.0, abs=1e-13)


@pytest.mark.parametrize(
    ("method", "silent"),
    [
        *((method, {"kd"}) for method in ("kd", "tskl", "tsce", "ts", "tser")),
        ("feature", {"feature"}),
        ("kd_feature", {"kd", "feature"}),
        ("bkd", {"kd", "feature"}),
        ("tsd", {"kd", "self"}),
        ("dkd", {"target", "others"}),
    ],
)
def test_a_student_equal_to_its_teacher(method: str, silent: set[str]) -> None:
    always_right = [max(range(CLASSES), key=z.__getitem__) for z in TEACHER]
    theirs = some_features().teacher
    equal = outputs([TEACHER] * 3, labels=always_right, features=Features(theirs, theirs))
    found = terms_of(method, equal)
    nothing = dict.fromkeys(silent, 0.0)
    assert {name: found[name] for name in silent} == pytest.approx(nothing, abs=1e-13)


def test_ela_leaves_right_answers_as_they_are_and_works_on_copies() -> None:
    right = [[[2.0, 0.5, -1.0], [1.0, 0.2, 4.0]]]
    before = torch.tensor(right[0]), torch.tensor(TEACHER)
    after = seal.aligned_copies(*before, torch.tensor(LABELS))
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))
    expected = mean([kl(TEACHER[n], right[0][n], 3.0) for n in range(IMAGES)])
    assert terms_of("seal", outputs(right))["ela"] == pytest.approx(expected, abs=1e-12)
    student, teacher = torch.tensor(STUDENT[1]), torch.tensor(TEACHER)
    seal.aligned_copies(student, teacher, torch.tensor(LABELS))
    assert torch.equal(student, torch.tensor(STUDENT[1]))
    assert torch.equal(teacher, torch.tensor(TEACHER))


def test_a_sure_step_weighs_more_in_seal_s_targets() -> None:
    # the first step learns from one that is nearly sure and one that is nearly flat
    z = torch.tensor([[[1.0, 0.0, 0.0]], [[9.0, 0.0, 0.0]], [[0.1, 0.0, 0.0]]])
    target = seal.step_targets(z)[0, 0, 0].item()
    sure, flat = confidence([9.0, 0.0, 0.0]), confidence([0.1, 0.0, 0.0])
    weight = 1 / (1 + math.exp(flat - sure))  # both have a cosine of 1
    assert target == pytest.approx(weight * 9.0 + (1 - weight) * 0.1, rel=1e-5)


COMMON = {"entropy_weight": 0.0, "rate_weight": 0.0, "ce_weight": 1.0, "label_smoothing": 0.0}


@pytest.mark.parametrize(
    ("method", "own"),
    [
        ("feature", {"feature_weight": 100.0}),
        ("kd_feature", {"temperature": 2.0, "kd_weight": 1.0, "feature_weight": 100.0}),
        ("bkd", {"temperature": 2.0, "kd_weight": 1.0, "feature_weight": 16.384}),
        (
            "tsd",
            {"temperature": 3.0, "alpha": 0.2, "beta": 0.5}
            | {"target": "correct", "no_right_step": "uniform"},
        ),
        ("seal", {"temperature": 3.0, "alpha": 0.6, "beta": 0.15}),
        ("tet", {"lam": 1e-3}),
        (
            "dkd",
            {"temperature": 4.0, "kd_weight": 1.0, "alpha": 1.0, "beta": 8.0}
            | {"kd_warmup_epochs": 20.0},
        ),
    ],
)
def test_the_weights_that_a_method_reads(method: str, own: dict[str, float]) -> None:
    settings = registry.METHODS[method].settings
    assert settings.weights() == COMMON | own
    assert settings().model_dump() == {"name": method} | COMMON | own


@pytest.mark.parametrize("method", sorted(registry.METHODS))
def test_entropy_can_be_rewarded_under_any_method(method: str) -> None:
    entropy = mean([-sum(p * math.log(p) for p in softmax(z)) for step in STUDENT for z in step])
    without = settings_for(method, entropy_weight=0.0)
    plain = reward_entropy(load_method(method)(outputs(), without), outputs(), without)
    assert "entropy" not in plain
    settings = settings_for(method, entropy_weight=0.25)
    found = reward_entropy(load_method(method)(outputs(), settings), outputs(), settings)
    assert found["entropy"].item() == pytest.approx(entropy, abs=1e-12)
    assert found["loss"].item() == pytest.approx(plain["loss"].item() - 0.25 * entropy, abs=1e-9)


@pytest.mark.parametrize("method", sorted(registry.METHODS))
@pytest.mark.parametrize("steps", [1, 3])
def test_every_method_stays_finite_on_large_logits(method: str, steps: int) -> None:
    student = (50 * torch.randn(steps, 2, 5)).requires_grad_()
    of = Outputs(student, torch.tensor([4, 0]), 50 * torch.randn(2, 5), some_features())
    found = load_method(method)(of, settings_for(method))
    assert all(term.shape == () and torch.isfinite(term) for term in found.values())
    found["loss"].backward()
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("method", ["tsd", "seal"])
def test_the_targets_of_steps_carry_no_gradient(method: str) -> None:
    leaf, targets = student(), [AVERAGED] * STEPS
    if method == "tsd":
        tsd.self_distillation(outputs(leaf), settings_for("tsd", target="all")).backward()
    else:
        seal.step_alignment(outputs(leaf), 3.0).backward()
        targets = seal.step_targets(torch.tensor(STUDENT, dtype=torch.float64)).tolist()
    # tau (softmax(z / tau) - softmax(target / tau)): the gradient with a fixed target
    for step, of_step, gradient in zip(STUDENT, targets, leaf.grad.tolist(), strict=True):
        for z, target, found in zip(step, of_step, gradient, strict=True):
            pairs = zip(softmax(z, 3.0), softmax(target, 3.0), strict=True)
            expected = [3.0 * (q - p) / (STEPS * IMAGES) for q, p in pairs]
            assert found == pytest.approx(expected, abs=1e-9)


def test_the_weights_of_bkd_carry_no_gradient() -> None:
    leaf = student()
    settings = settings_for("bkd", ce_weight=0.0, feature_weight=0.0)
    load_method("bkd")(outputs(leaf), settings)["loss"].backward()
    for n in range(IMAGES):
        pairs = zip(softmax(AVERAGED[n], 2.0), softmax(TEACHER[n], 2.0), strict=True)
        expected = [bkd_weight(n) * 2.0 * (q - p) / (STEPS * IMAGES) for q, p in pairs]
        for step in range(STEPS):
            assert leaf.grad[step, n].tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("method", sorted(registry.METHODS))
def test_the_teacher_gets_no_gradient(method: str) -> None:
    leaf = student()
    teacher = torch.tensor(TEACHER, dtype=torch.float64, requires_grad=True)
    load_method(method)(outputs(leaf, teacher), settings_for(method))["loss"].backward()
    assert teacher.grad is None
    assert leaf.grad.abs().sum() > 0


@pytest.mark.parametrize("method", sorted(registry.METHODS))
def test_gradients_agree_with_finite_differences(method: str) -> None:
    # bkd's weights, and the targets of tsd and seal, are held fixed
    fixed = {"bkd": {"kd_weight": 0.0}, "tsd": {"beta": 0.0}, "seal": {"beta": 0.0}}
    settings = settings_for(method, **fixed.get(method, {}))
    teacher = some_features().teacher

    def loss(logits: Tensor, *features: Tensor) -> Tensor:
        of = outputs(logits, features=Features(features, teacher))
        return load_method(method)(of, settings)["loss"]

    assert torch.autograd.gradcheck(loss, (student(), *some_features(leaf=True).student))


def test_missing_features_are_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="needs features"):
        stage_features(Outputs(torch.zeros(1, 1, 2), torch.tensor([0])))


@pytest.mark.parametrize(
    ("method", "value", "gradient", "epoch", "weights"),
    [
        (
            "dkd",
            5.173728347214758,
            [
                *(-0.020788466374627917, 0.012320629684509456, 0.008467836690117294),
                *(0.9631375405714464, -0.9394881893251265, -0.02364935124631965),
            ],
            0,
            {"ce_weight": 0.0, "kd_warmup_epochs": 0.0},
        ),
        (
            "dkd",  # as on ImageNet
            0.44556887686609126,
            [
                *(-0.012063296003196894, 0.009862642910982584, 0.0022006530922143207),
                *(0.057162245529283576, -0.04447224885871945, -0.012689996670564115),
            ],
            0,
            {"ce_weight": 0.0, "kd_warmup_epochs": 1.0, "temperature": 1.0, "beta": 0.5},
        ),
        (
            "dkd",
            2.3425305924010678,
            [
                *(-0.040930944162110995, 0.03229522277780014, 0.008635721384310565),
                *(0.32419526556291123, -0.19739312283603527, -0.12680214272687593),
            ],
            4,  # theirs count from 1
            {},
        ),
        (
            "tsd",
            1.3272468024503066,
            [
                *(-0.02979848810678796, 0.03908589497091388, -0.009287406864125904),
                *(0.11429810831536996, 0.015184196338809445, -0.12948230465417945),
            ],
            0,
            {},
        ),
        (
            "tet",
            1.0490632959806696,
            [
                *(-0.03558698262977446, 0.029130294735760554, 0.006290021227347238),
                *(0.08332746953962962, 0.037352556681862215, -0.1208355817770474),
            ],
            0,
            {},
        ),
    ],
)
def test_losses_and_gradients_are_the_authors(
    method: str, value: float, gradient: list[float], epoch: int, weights: dict[str, float]
) -> None:
    leaf = student()
    of = replace(outputs(leaf), progress=TrainingProgress(epoch))
    loss = load_method(method)(of, settings_for(method, **weights))["loss"]
    loss.backward()
    # their make_teacher divides by the count + 1e-8
    assert loss.item() == pytest.approx(value, rel=1e-7)
    # of step 1, both images
    assert leaf.grad[0].flatten().tolist() == pytest.approx(gradient, rel=1e-6)


def test_the_targets_of_tsd() -> None:
    target_NK, _ = tsd.ensemble(student(), torch.tensor(LABELS), "correct")
    expected = [[1.599999992, 0.04999999974999999, -0.199999999], [0.0, 0.0, 0.0]]
    assert target_NK.flatten().tolist() == pytest.approx([*expected[0], *expected[1]], rel=1e-7)


def sines(shape: tuple[int, ...], pace: float, start: float = 0.0) -> Tensor:
    size = torch.Size(shape).numel()
    return torch.sin(torch.arange(size, dtype=torch.float64) * pace + start).reshape(shape)


def test_the_logits_of_bkd() -> None:
    same = sines((2, 3, 2, 2), 0.5)
    leaf = student()
    settings = registry.METHODS["bkd"].settings(ce_weight=0.0)
    found = load_method("bkd")(outputs(leaf, features=Features((same,), (same,))), settings)
    found["loss"].backward()
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
    error = load_method("bkd")(
        outputs(student(), features=features), registry.METHODS["bkd"].settings()
    )
    # their weight multiplies the sum over the 3 x 2 x 2 values of a map
    loss = 2e-3 * 3 * 2 * 2 * error["feature"]
    loss.backward()
    assert loss.item() == pytest.approx(0.008962449558847257, rel=1e-9)
    expected = [
        *(0.00022885441344813571, 0.00014904204136599472, -0.00020319965598957466),
        *(-0.0002090594871854659, 0.0002847954849799101, 0.00028880997876212225),
    ]
    assert leaf.grad.flatten()[:6].tolist() == pytest.approx(expected, rel=1e-9)
