"""README.md and docs/getting-started.md: each command line runs as printed, with short settings.

What the lines speak of is laid out before: a network, images, your own method.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.command import call
from tests.docs.test_pages import README, ROOT, commands

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(1800),
    pytest.mark.xdist_group("integration"),
    pytest.mark.skipif(not README.is_file(), reason="the pages are only in a checkout"),
]

SHORT = {
    "TSER_TRAINING_EPOCHS": "1",
    "TSER_TRAINING_TENSORBOARD": "false",
    "TSER_TRAINING_DEVICE": "cpu",
    "TSER_DATA_WORKERS": "0",
    "TSER_SCHEDULE_WARMUP_EPOCHS": "0",
}
TEACHER, STUDENT = "resnet20", "sew_resnet20"
ABSENT = ("cifar10", "n-mnist")  # data sets that are no part of the tests
# Of these exit code 4 says that something was found, or that a budget is not kept.
MAY_FIND = ("audit", "doctor", "distill", "evaluate")
# What trains cells, or asks other programs, in processes of their own has tests of its own.
CHEAPER = {"ablate": ["--dry-run"], "export": ["--no-verify"]}
NETWORK = """
from spikingjelly.activation_based import layer, neuron
from torch import nn

def build():
    return nn.Sequential(
        layer.Conv2d(1, 4, 3, step_mode="m"), neuron.IFNode(step_mode="m"),
        layer.Flatten(start_dim=1, step_mode="m"), layer.Linear(144, 3, step_mode="m"),
    )
"""
METHOD = """
from typing import ClassVar
from tser_cli import add_method
from tser_cli.losses.base import Supervised, step_cross_entropy

class Settings(Supervised):
    needs_teacher: ClassVar[bool] = False
    name: str = "mymethod"

@add_method(Settings)
def loss(outputs, settings):
    return {"loss": step_cross_entropy(outputs, settings)}
"""


def lay_out(folder: Path) -> None:
    """Put what the pages speak of into `folder`."""
    draw = np.random.default_rng(0)
    (folder / "mypackage").mkdir()
    (folder / "mypackage" / "__init__.py").write_text("")
    (folder / "mypackage" / "models.py").write_text(NETWORK)
    (folder / "mymethod.py").write_text(METHOD)
    np.save(folder / "images.npy", draw.random((4, 1, 8, 8), np.float32))
    for label in ("cat", "dog"):
        (folder / "photos" / label).mkdir(parents=True)
        for number in range(8):
            pixels = draw.integers(0, 256, (12, 12, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / label / f"{number}.png")


def shortened(words: list[str]) -> list[str]:
    """Return a command line with smaller networks, fewer seeds and cells."""
    small = [re.sub(r"^resnet18(?=$|_T)", STUDENT, word) for word in words]
    small = [TEACHER if word == "resnet34" else word for word in small]
    line = re.sub("method=kd(,ts)?,tser", "method=kd", shlex.join(small))
    return shlex.split(re.sub(r"--(seeds|epochs) \d+", r"--\1 1", line))


@pytest.mark.usefixtures("nothing_added", "few_digits")
@pytest.mark.parametrize(
    "page", ["README.md", pytest.param("docs/getting-started.md", marks=pytest.mark.slow)]
)
def test_each_line_runs_as_printed(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lay_out(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "teacher.toml").write_text("[training]\nepochs = 1\n")
    smaller = {
        "TSER_MODEL_TEACHER": TEACHER,
        "TSER_MODEL_STUDENT": STUDENT,
        "TSER_MODEL_TEACHER_RECIPE": str(tmp_path / "teacher.toml"),
    }
    for name, value in {**SHORT, **smaller}.items():
        monkeypatch.setenv(name, value)
    failed = []
    for words in commands((ROOT / page).read_text(encoding="utf-8")):
        if set(words) & set(ABSENT):
            continue
        more = CHEAPER.get(words[0], []) if page == "README.md" else []
        with monkeypatch.context() as patch:
            if "imagefolder" in words:
                patch.setenv("TSER_DATA_SIZE", "16")
            code = call(*shortened(words), *more)
        if code and not (code == 4 and words[0] in MAY_FIND):
            failed.append(f"tser {shlex.join(words)}: {code}, {capsys.readouterr().err[-500:]}")
    assert failed == []
