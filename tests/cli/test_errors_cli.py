"""Bad input: one clear message on standard error, exit code 2, no traceback."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.command import Invoke


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("distill", "--student", "rsnet18"), 'did you mean "resnet18"'),
        (("distill", "--teacher", "resnet43"), 'did you mean "resnet34"'),
        (("distill", "--teacher", "sew_resnet18"), "no ANN form"),
        (("train-teacher", "resnet43"), 'did you mean "resnet34"'),
        (("train-teacher", "some/path"), "no such run folder or model file"),
        (("distill", "--dataset", "digit"), 'did you mean "digits"'),
        (("distill", "--method", "tsr"), 'did you mean "tser"'),
        (("distill", "--set", "optimizer.lrr=1"), 'did you mean "optimizer.lr"'),
        (("distill", "--set", "optimizer.lr"), "--set section.key=value"),
        (("distill", "-T", "0"), "model.timesteps = 0"),
        (("distill", "--epochs", "0"), "training.epochs = 0"),
        (("distill", "--lr", "-1"), "optimizer.lr = -1"),
        (("distill", "--resume", "maybe"), "auto, must, never"),
        (("distill", "--resume", "must", "--method", "ce"), "no unfinished student run"),
        (("distill", "--recipe", "cifar100/resnet18_tsr"), 'did you mean "cifar100/resnet18'),
        (("distill", "--energy-budget", "4"), '"4" is no energy; write it as'),
        (("distill", "--energy-budget", "-4uJ"), '"-4uJ" is no energy'),
        (("distill", "--energy-budget", "1pJ"), "that an image costs without a single spike"),
        (("distill", "--energy-budget", "1J", "--dry-run"), "of the ANN of the same shape"),
        (("distill", "--set", "augment.cutout=8"), "augment.cutout = 8 can hide all of an image"),
        (("distill", "--set", "energy.profile=nonesuch"), 'unknown cost profile "nonesuch"'),
        (("distill", "--device", "gpu"), "use auto, cpu, cuda or cuda:N"),
        (("distill", "--precision", "fp16", "--device", "cpu"), "fp16 needs a GPU"),
        (("distill", "--dataset", "imagefolder"), "train/"),
        (("distill", "--dataset", "imagefolder", "--data-dir", "nowhere"), "nowhere"),
        (("evaluate",), "no finished student"),
        (("evaluate", "--run", "runs/student/digits/x"), "not a run folder"),
        (("evaluate", "--split", "tests"), "test, validation, train"),
    ],
)
def test_one_clear_message(tser: Invoke, arguments: tuple[str, ...], said: str) -> None:
    code, out, err = tser(*arguments)
    assert code == 2
    assert out == ""
    assert said in err
    assert err.startswith("error: ")
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "arguments",
    [("distill", "-T", "two"), ("distill", "--no-such-flag"), ("distil",), ("evaluate", "extra")],
)
def test_usage_errors(tser: Invoke, arguments: tuple[str, ...]) -> None:
    code, _, err = tser(*arguments)
    assert code == 2
    assert "Traceback" not in err


def test_all_problems_of_a_recipe_at_once(tser: Invoke, tmp_path: Path) -> None:
    recipe = tmp_path / "bad.toml"
    recipe.write_text("[data]\nname = 'digit'\n[optimizer]\nlrr = 1\n[training]\nepochs = 'x'\n")
    code, _, err = tser("distill", "--recipe", str(recipe))
    assert code == 2
    assert err.count(str(recipe)) == 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_cuda_without_a_gpu(tser: Invoke) -> None:
    code, _, err = tser("distill", "--device", "cuda")
    assert code == 2
    assert "--device cpu" in err


def _text(path: Path) -> None:
    path.write_text("this is no checkpoint\n")


def _truncated(path: Path) -> None:
    torch.save({"w": torch.zeros(100)}, path)
    path.write_bytes(path.read_bytes()[:200])


def _foreign(path: Path) -> None:
    torch.save({"w": torch.zeros(100)}, path)


class Bomb:
    """Unpickling this makes a file called `ran`."""

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return os.system, ("touch ran",)


def _bomb(path: Path) -> None:
    path.write_bytes(pickle.dumps(Bomb()))


@pytest.mark.parametrize("make", [_text, _truncated, _foreign, _bomb])
def test_a_teacher_file_that_is_none(
    tser: Invoke, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "teacher.pt")
    code, _, err = tser("distill", "--teacher", "teacher.pt")
    assert code == 2
    assert "teacher.pt" in err
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "runs").exists()


def test_a_runs_folder_that_is_a_file(tser: Invoke, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    code, _, err = tser("distill", "--method", "ce", "--epochs", "1", "--student", "resnet20")
    assert code == 2
    assert "can't be written" in err
    assert "Choose another place" in err


@pytest.mark.parametrize("output", ["", ".", "x" * 256])
def test_an_output_that_can_be_no_file(tser: Invoke, output: str) -> None:
    code, _, err = tser("energy", output)
    assert code == 2
    assert "name a file in it" in err or "File name too long" in err


def test_environment_variables_are_checked_too(
    tser: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TSER_OPTIMIZER_LRR", "1")
    code, _, err = tser("distill")
    assert code == 2
    assert "TSER_" in err
    assert "optimizer.lrr" in err
