from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch
from scipy.stats import chisquare

from tser_cli.data.transforms import BOUNDS, CHANCES, AutoAugment, Operation, Stream, table

SHAPES = [(3, 32, 32), (3, 33, 31), (3, 12, 10), (1, 28, 28), (1, 8, 8)]


@pytest.fixture(scope="module")
def theirs() -> Any:
    from torchvision.transforms import v2

    return v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)


def random_images(count: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=generator)


def drawn(count: int) -> torch.Tensor:
    return table(Stream.AUTOAUGMENT, 0, 0, count, BOUNDS).long()


def every_choice() -> torch.Tensor:
    """Choices with which all stages act, and others as drawn."""
    acting = [[policy, 0, 0, *signs] for policy, *signs in product(range(25), (0, 1), (0, 1))]
    return torch.cat([torch.tensor(acting), drawn(400)])


def outcomes(theirs: Any, choices: list[int]) -> Iterator[float]:
    """What torch.rand must give for torchvision to choose the same."""
    policy, *chances_and_signs = choices
    for stage, (name, probability, _) in enumerate(theirs._policies[policy]):
        outcome = chances_and_signs[stage] / CHANCES
        yield outcome
        _, signed = theirs._AUGMENTATION_SPACE[name]
        if torch.tensor(outcome) <= probability and signed:
            # it takes the negative magnitude up to 0.5
            yield 0.25 if chances_and_signs[2 + stage] else 0.75


@pytest.mark.parametrize("shape", SHAPES)
def test_each_image_is_exactly_what_torchvision_makes_of_it_alone(
    theirs: Any, shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, choices = random_images(500, *shape), every_choice()
    # of one colour, which has no contrast
    images[::7] = 77
    ours = AutoAugment(*shape[1:])
    result = ours(images, choices)
    for index, row in enumerate(choices.tolist()):
        given = outcomes(theirs, row)
        monkeypatch.setattr(torch, "randint", lambda *_, policy=row[0]: torch.tensor(policy))
        monkeypatch.setattr(torch, "rand", lambda *_, given=given: torch.tensor(next(given)))
        assert torch.equal(result[index], theirs(images[index])), (index, row)
        assert next(given, None) is None
    acts = {number for stage in (0, 1) for number in ours.chosen(choices, stage).tolist()}
    assert acts == set(range(len(ours.operations) + 1))


def test_the_given_images_stay_as_they_are() -> None:
    images = random_images(50, 3, 12, 10)
    before = images.clone()
    assert not torch.equal(AutoAugment(12, 10)(images, drawn(50)), before)
    assert torch.equal(images, before)


def test_colour_means_nothing_to_grey_images(theirs: Any) -> None:
    ours = AutoAugment(12, 10)
    policy = [name for (name, _, _), _ in theirs._policies].index("Color")
    # chance 0 acts, the highest one does not
    choices = torch.tensor([[policy, 0, CHANCES - 1, sign, 0] for sign in (0, 1)])
    grey, coloured = random_images(2, 1, 12, 10), random_images(2, 3, 12, 10)
    assert torch.equal(ours(grey, choices), grey)
    changed = ours(coloured, choices)
    assert not torch.equal(changed[0], coloured[0]) and not torch.equal(changed[1], coloured[1])


def test_a_chance_acts_up_to_the_operations_probability(theirs: Any) -> None:
    ours = AutoAugment(12, 10)
    # an outcome of torch.rand is float32
    for policy, stages in enumerate(theirs._policies):
        for stage, (_, probability, _) in enumerate(stages):
            nearest = int(probability * CHANCES)
            for chance in (0, max(0, nearest - 1), nearest, nearest + 1, CHANCES - 1):
                choices = torch.tensor([[policy, chance, chance, 0, 0]])
                (number,) = ours.chosen(choices, stage).tolist()
                acts = bool(torch.tensor(chance / CHANCES) <= probability)
                assert (number < len(ours.operations)) is acts


Acts = tuple[Operation, ...]


def expected(theirs: Any) -> dict[Acts, float]:
    """The probability of each sequence of operations, from the policy alone."""
    found: dict[Acts, float] = defaultdict(float)
    for stages in theirs._policies:
        ways: list[tuple[Acts, float]] = [((), 1 / len(theirs._policies))]
        for name, probability, level in stages:
            function, signed = theirs._AUGMENTATION_SPACE[name]
            magnitudes = function(10, 32, 32)
            size = 0.0 if magnitudes is None else float(magnitudes[level])
            operations = [Operation(name, size), Operation(name, -size)][: 1 + signed]
            ways = [
                (acts + extra, chance * factor)
                for acts, chance in ways
                for extra, factor in [
                    ((), 1 - probability),
                    *(((one,), probability / len(operations)) for one in operations),
                ]
            ]
        for acts, chance in ways:
            found[acts] += chance
    return {acts: chance for acts, chance in found.items() if chance > 0}


def ours_drawn(count: int) -> Iterator[Acts]:
    ours = AutoAugment(32, 32)
    operations = [*ours.operations, None]
    numbers = [ours.chosen(drawn(count), stage).tolist() for stage in (0, 1)]
    for pair in zip(*numbers, strict=True):
        yield tuple(one for number in pair if (one := operations[number]) is not None)


def theirs_drawn(theirs: Any, count: int) -> Iterator[Acts]:
    acts: list[Operation] = []

    def note(image: torch.Tensor, name: str, magnitude: float, **_: object) -> torch.Tensor:
        acts.append(Operation(name, magnitude))
        return image

    image = torch.zeros(3, 32, 32, dtype=torch.uint8)
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        patch.setattr(theirs, "_apply_image_or_video_transform", note)
        torch.manual_seed(0)
        for _ in range(count):
            acts.clear()
            theirs(image)
            yield tuple(acts)


def p_value(draws: Iterator[Acts], chances: dict[Acts, float]) -> float:
    counts = Counter(draws)
    assert set(counts) <= set(chances)
    observed = [counts[acts] for acts in chances]
    return float(
        chisquare(observed, [chance * sum(observed) for chance in chances.values()]).pvalue
    )


def test_operations_are_as_frequent_as_torchvisions(theirs: Any) -> None:
    chances = expected(theirs)
    assert sum(chances.values()) == pytest.approx(1)
    assert p_value(ours_drawn(50_000), chances) > 0.01
    # so that what is expected is theirs too
    assert p_value(theirs_drawn(theirs, 3000), chances) > 0.01


@pytest.mark.parametrize("column", range(5))
def test_each_choice_is_uniform(column: int) -> None:
    bins = min(BOUNDS[column], 32)
    counts = torch.bincount(drawn(50_000)[:, column] * bins // BOUNDS[column], minlength=bins)
    assert chisquare(counts.numpy()).pvalue > 0.01
