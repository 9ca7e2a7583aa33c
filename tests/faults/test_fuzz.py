"""Any text on the command line: a valid run, or exit code 2 with a message. Never a traceback."""

from __future__ import annotations

import io
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NoReturn

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.faults.bench import Bench, Reference
from tser_cli.base.errors import ConfigError
from tser_cli.cli import app
from tser_cli.cli.commands import training_config
from tser_cli.engine.commands import dry_run, train
from tser_cli.engine.runs.opened import Options
from tser_cli.settings import config as settings
from tser_cli.settings.config import Config
from tser_cli.settings.options import TrainingRequest
from tser_cli.settings.registry import METHODS

# For runs that are really begun: small enough for memory and patience.
REAL = ("0", "1e-300", "1e-8", "0.5", "0.999999", "1.0", "100", "1e38", "-1")
WHOLE = ("-1", "0", "1", "2", "3", "7")
WORDS = {
    "data.name": ("digits",),
    "model.teacher": ("resnet20", "vgg11", "sew_resnet18", "/nowhere", ""),
    "model.student": ("resnet20", "vgg11", "sew_resnet18", "resnet50"),
    "training.precision": ("fp32", "bf16", "fp16"),
    "training.device": ("cpu", "cuda", "cuda:7", "auto"),
    "training.checkpoint_every": ("1steps", "999999999epochs", "0min"),
    "schedule.name": ("cosine", "step", "onecycle", "constant"),
    "schedule.milestones": ("[]", "[1]", "[0.5, 0.2]"),
    "method.name": tuple(sorted(METHODS)),
    "method.target": ("correct", "all"),
    "method.no_right_step": ("uniform", "skip"),
    "neuron.name": ("lif", "if", "plif"),
    "neuron.reset": ("hard", "soft"),
    "neuron.surrogate": ("sigmoid", "atan", "rect", "piecewise_quadratic"),
    "neuron.backend": ("auto", "spikingjelly"),
    "optimizer.name": ("sgd", "adamw"),
    "augment.autoaugment": ("none", "cifar10"),
    "augment.mixup": ("0", "0.5", "1e-300", "1000", "1001"),
    "model.stem": ("auto", "small", "medium", "large"),
}

KEYS = st.one_of(st.sampled_from(sorted(settings.keys())), st.text(max_size=20))
VALUES = st.one_of(
    st.text(max_size=30),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(["true", "[]", "{}", "1e999", "nan", "-0", "''", '"\\u0000"', "[[", "1=2"]),
)
ASSIGNMENTS = st.lists(st.tuples(KEYS, VALUES).map("=".join) | st.text(max_size=20), max_size=3)
FLAGS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                *("-T", "--epochs", "--batch-size", "--lr", "--seed", "--method", "--temperature"),
                *("--dataset", "--device", "--precision", "--checkpoint-every", "--resume"),
                *("--student", "--teacher", "--data-dir", "--recipe", "--runs-dir", "--bogus"),
            ]
        ),
        VALUES,
    ),
    max_size=3,
)
CONTENT = st.one_of(
    st.binary(max_size=200),
    st.lists(st.tuples(KEYS, VALUES).map(" = ".join), max_size=4).map(
        lambda lines: "\n".join(lines).encode(errors="replace")
    ),
)


few_examples = hypothesis.settings(max_examples=40)


@few_examples
@given(st.sampled_from(["teacher", "student"]), ASSIGNMENTS)
def test_any_assignments(kind: str, assignments: list[str]) -> None:
    request = TrainingRequest(assignments=tuple(assignments))
    try:
        assert isinstance(training_config(kind, request), Config)
    except ConfigError as error:
        assert str(error)


@few_examples
@given(CONTENT)
def test_any_recipe(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.toml"
    path.write_bytes(content)
    try:
        assert isinstance(training_config("student", TrainingRequest(recipe=str(path))), Config)
    except ConfigError as error:
        assert str(error)


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Config]]:
    """The settings with which the verbs would have begun; they don't."""
    begun: list[Config] = []

    def begin(config: Config, options: Options) -> NoReturn:
        begun.append(config)
        raise SystemExit(0)  # there is no result to show

    for module, name in (
        (train, "train_teacher"),
        (train, "distill"),
        (dry_run, "plan_teacher"),
        (dry_run, "plan_student"),
    ):
        monkeypatch.setattr(module, name, begin)
    yield begun


def call(*argv: str) -> tuple[int, str]:
    """The exit code of the command line, and what it wrote."""
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(out):
        patch.setattr(sys, "argv", ["tser", *argv])
        try:
            app.main()
        except SystemExit as stop:
            return int(stop.code or 0), out.getvalue()
    return 0, out.getvalue()


def test_any_command_line(called: list[Config], tmp_path: Path) -> None:
    @few_examples
    @given(st.sampled_from(["train-teacher", "distill"]), FLAGS, ASSIGNMENTS)
    def any_command_line(verb: str, flags: list[tuple[str, str]], assignments: list[str]) -> None:
        called.clear()
        argv: list[Any] = [verb, *(part for flag in flags for part in flag)]
        argv += [part for assignment in assignments for part in ("--set", assignment)]
        code, text = call(*argv)
        assert code in (0, 2), text
        assert "Traceback" not in text
        assert text if code else len(called) == 1 or "--help" in argv

    any_command_line()


def drawn_value(key: str, default: Any, draw: random.Random) -> str:
    """A value for `key` that is likely to be taken."""
    if isinstance(default, bool):
        return draw.choice(("true", "false"))
    if isinstance(default, int | float):
        return draw.choice(WHOLE if isinstance(default, int) else REAL)
    return draw.choice(WORDS.get(key, ("", "none", "auto", "off", "/nowhere")))


@pytest.mark.long
@pytest.mark.timeout(0)
def test_what_is_accepted_can_be_run(
    bench: Bench,
    undisturbed: Reference,
    pytestconfig: pytest.Config,
    record_property: Callable[[str, object], None],
) -> None:
    """A step is taken and timed, or it is told why not."""
    draw, defaults = random.Random(), settings.keys()
    teacher, codes = str(undisturbed("train-teacher").run), {0: 0, 1: 0, 2: 0}
    for _ in range(pytestconfig.getoption("--faults") // 2):
        verb = draw.choice(("train-teacher", "distill"))
        argv = [verb, "--dry-run", *(("--teacher", teacher) if verb == "distill" else ())]
        for key in draw.sample(sorted(defaults), draw.randint(1, 4)):
            argv += ["--set", f"{key}={drawn_value(key, defaults[key], draw)}"]
        job = bench.start(*argv)
        code = job.wait()
        assert code in codes, (argv, job.messages)
        assert "Traceback" not in job.messages, (argv, job.messages)
        assert code == 0 or "error:" in job.messages, (argv, job.messages)
        codes[code] += 1
    assert codes[0] > codes[1]
    record_property("exit codes of drawn settings", codes)
