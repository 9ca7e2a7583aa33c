"""Teachers: which one a student gets, from where, and the one that a run learned from."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.engine.conftest import SPEC, Told, make_config, make_context, write_network
from tser_cli.base.errors import CheckpointError, ConfigError, RunError, TserError
from tser_cli.data.base import DataSpec
from tser_cli.engine.runs import folder, networks, teachers
from tser_cli.engine.runs.folder import Run
from tser_cli.engine.runs.networks import Loaded
from tser_cli.engine.runs.opened import Context
from tser_cli.engine.runs.teachers import (
    RecordedTeacher,
    build_teacher,
    check_architecture,
    find_teacher,
    fitting_teacher,
    keep_teacher,
    read_run_teacher,
    recorded_teacher,
    renormalised,
    teacher_name,
    teacher_to_count,
)
from tser_cli.models.base import OwnNetwork
from tser_cli.settings.config import Config, keys_where

MakeTeacher = Callable[..., Run]
Network = Callable[..., Loaded]


@pytest.fixture
def make_teacher(tmp_path: Path) -> MakeTeacher:
    """`make_teacher(hour, data.validation_fraction=0.1)`: a teacher run finished at that hour."""

    def make(hour: int, state: str = "finished", name: str = "resnet20", part: float = 0.0) -> Run:
        config = make_config({"model.teacher": name, "data.validation_fraction": part})
        run = folder.create(tmp_path, "teacher", config)
        write_network(run.model_file, config, name=name)
        run.update_status(state=state, model=name, validation_fraction=part)
        run.update_status(finished=f"2025-01-01T{hour:02}:00:00+00:00")
        return run

    return make


Find = Callable[..., str | None]


@pytest.fixture
def find(tmp_path: Path) -> Find:
    """`find({"model.teacher": "resnet18"})`: where the teacher comes from."""

    def source(changes: dict[str, Any] | None = None, runs_dir: Path = tmp_path) -> str | None:
        loaded = find_teacher(make_config(changes), SPEC, runs_dir)
        return None if loaded is None else loaded.source

    return source


def test_the_newest_finished_one_that_fits(
    tmp_path: Path, find: Find, make_teacher: MakeTeacher
) -> None:
    assert find() is None  # one must be trained
    newest = make_teacher(9)
    make_teacher(8)
    make_teacher(11, state="stopped")
    make_teacher(12, name="resnet18")
    held_out = make_teacher(13, part=0.25)
    assert find() == str(newest.model_file)
    assert find({"data.validation_fraction": 0.25}) == str(held_out.model_file)
    assert find({"data.validation_fraction": 0.5}) is find({"data.name": "mnist"}) is None
    assert find(runs_dir=tmp_path / "elsewhere") is None


def test_a_teacher_of_another_test_split_or_other_images_is_passed_over(tmp_path: Path) -> None:
    def settings(fraction: float) -> Config:
        return make_config({"data.name": "imagefolder", "data.test_fraction": fraction})

    run = folder.create(tmp_path, "teacher", settings(0.5))
    name = settings(0.5).model.teacher
    run.update_status(state="finished", model=name, validation_fraction=0.0, images_sha256="a")
    # of train/ and val/: there nothing is split off
    assert teachers.newest_teacher(settings(0.2), tmp_path) == run
    run.update_status(test_fraction=0.5)
    assert teachers.newest_teacher(settings(0.5), tmp_path) == run
    assert teachers.newest_teacher(settings(0.2), tmp_path) is None
    assert teachers.newest_teacher(settings(0.5), tmp_path, "a") == run
    assert teachers.newest_teacher(settings(0.5), tmp_path, "b") is None


def test_a_path_goes_before_the_newest_and_must_be_of_a_finished_run(
    find: Find, make_teacher: MakeTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    named, _newer = make_teacher(8), make_teacher(9)
    monkeypatch.setenv("HOME", str(named.folder.parent))
    for path in (named.folder, named.model_file, f"~/{named.name}"):
        assert find({"model.teacher": str(path)}) == str(named.model_file)
    named.update_status(state="stopped")
    with pytest.raises(RunError, match="is stopped, not finished"):
        find({"model.teacher": str(named.folder)})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet43", r'unknown model "resnet43" \(did you mean "resnet34"\?\). Known: resnet18'),
        ("sew_resnet18", r"sew_resnet18: it has no ANN form; use resnet18"),
        ("runs/teacher/x", "no such run folder or model file"),
        ("model.pt", "no such run folder or model file"),
        ("~no.such.user/x", "no such run folder or model file"),
        (f"{'x' * 5000}/y", "no such run folder or model file"),
        ("a\0/b", "no such run folder or model file"),
    ],
)
def test_a_name_that_is_nothing(find: Find, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find({"model.teacher": name})


def test_imagenet_falls_back_on_torchvision_last(
    tmp_path: Path, find: Find, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, theirs = make_config({"data.name": "imagenet"}), network()
    monkeypatch.setattr(networks, "pretrained", lambda name, spec: theirs)
    assert find({"data.name": "imagenet"}) == theirs.source
    run = folder.create(tmp_path, "teacher", config)
    write_network(run.model_file, config)
    run.update_status(state="finished", model="resnet20", validation_fraction=0.0)
    assert find({"data.name": "imagenet"}) == str(run.model_file)


def test_a_teacher_trained_first_has_its_recipe_and_the_student_s_data() -> None:
    changes = {
        "data.dir": "/images",
        "data.validation_fraction": 0.25,
        "data.workers": 3,
        "model.teacher": "resnet18",
        "model.stem": "small",
        "training.precision": "bf16",
        "training.deterministic": True,
        "training.eval_batch_size": 17,
    }
    student = make_config({**changes, "training.epochs": 77, "optimizer.lr": 0.77})
    teacher = teachers.teacher_config(student)
    shared = keys_where(lambda policy: policy.teacher)
    assert {key: teacher.flat()[key] for key in shared} == {k: student.flat()[k] for k in shared}
    assert set(changes) <= shared
    # these two are the packaged recipe's own
    assert (teacher.training.epochs, teacher.optimizer.lr) == (10, 0.05)


def test_the_teacher_s_recipe_can_be_chosen(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text("[training]\nepochs = 3\n")
    config = make_config({"model.teacher_recipe": str(recipe)})
    assert teachers.teacher_config(config).training.epochs == 3
    with pytest.raises(ConfigError, match="no recipe"):
        teachers.teacher_config(make_config({"model.teacher_recipe": "mine"}))


def test_a_student_that_leaves_its_stem_open_leaves_the_teacher_its_own(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text('[model]\nstem = "medium"\n')
    config = make_config({"model.teacher_recipe": str(recipe)})
    assert teachers.teacher_config(config).model.stem == "medium"
    small = config.updated({"model.stem": "small"})
    assert teachers.teacher_config(small).model.stem == "small"


@pytest.fixture
def network() -> Network:
    """`network(spiking, made_for, classes)`: as it was read from the file x.pt."""

    def make(
        spiking: bool = False, made_for: DataSpec = SPEC, classes: tuple[str, ...] = ()
    ) -> Loaded:
        model = networks.build("resnet20", made_for, make_config(), spiking)
        return Loaded(model, "resnet20", "x.pt", "", classes)

    return make


def test_a_network_that_can_t_teach(network: Network) -> None:
    with pytest.raises(CheckpointError, match=r"x\.pt is a spiking network; a teacher is an"):
        fitting_teacher(network(spiking=True), SPEC)
    other = network(made_for=replace(SPEC, channels=3, mean=(0.5,) * 3, std=(0.3,) * 3))
    with pytest.raises(CheckpointError, match=r"^the teacher x\.pt takes 3 input channels"):
        fitting_teacher(other, SPEC)
    with pytest.raises(ConfigError, match="theirs:build: a function's network teaches in tser dis"):
        check_architecture("theirs:build")


@pytest.mark.parametrize("classes", [(), ("a", "b", "c"), ("d", "e", "f"), ("b", "a", "c")])
def test_classes_that_are_others_or_in_another_order(
    network: Network, classes: tuple[str, ...]
) -> None:
    loaded = network(classes=classes)
    if classes in ((), SPEC.classes):  # not said, or the same
        assert fitting_teacher(loaded, SPEC) is loaded
        return
    said = rf"x\.pt was trained on {', '.join(classes)} .*of digits are a, b, c"
    with pytest.raises(CheckpointError, match=said):
        fitting_teacher(loaded, SPEC)


MODULE = """
from torch import nn

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))

def of_ten_classes():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 10))

def of_colour():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 3))

def in_float64():
    return build().double()

class Careless(nn.Module):
    def forward(self, images):
        return {}["x"]

def careless():
    return Careless()

def ends():
    raise SystemExit(0)

class Ends(nn.Module):
    def forward(self, images):
        raise SystemExit(0)

def meta():
    return build().to("meta")

def circle():
    made = build()
    made.add_module("again", made)
    return made
"""


@pytest.fixture(autouse=True)
def _here(nothing_added: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The current folder holds the user's module."""
    (tmp_path / "theirs.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


def settings(**changes: object) -> Config:
    named = {f"model.{key}": value for key, value in changes.items()}
    return make_config({"model.teacher": "theirs:build", **named})


def test_a_function_and_its_weights(tmp_path: Path) -> None:
    weights = {"1.weight": torch.ones(3, 64), "1.bias": torch.arange(3.0)}
    torch.save({"state_dict": {f"module.{k}": v for k, v in weights.items()}}, "w.pt")
    config = settings(teacher_weights="w.pt")
    loaded = find_teacher(config, SPEC, tmp_path)
    assert loaded is not None
    assert loaded.source == "theirs:build with w.pt"
    fitting_teacher(loaded, SPEC)
    images = torch.rand(2, 1, 8, 8)
    expected = images.sum((1, 2, 3)).unsqueeze(1) + torch.arange(3.0)
    torch.testing.assert_close(loaded.model(images), expected)
    # the same weights are the same teacher, other ones another
    assert loaded.sha256 == build_teacher(config.model).sha256
    torch.save({"1.weight": torch.zeros(3, 64), "1.bias": torch.zeros(3)}, "w.pt")
    assert loaded.sha256 != build_teacher(config.model).sha256


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("theirs:of_ten_classes", "has 10 classes, digits has 3"),
        ("theirs:of_colour", "takes 3 input channels, digits has 1"),
        ("theirs:in_float64", r"can't take the 8 x 8 images of digits \(RuntimeError: "),
        ("theirs:careless", r"can't take the 8 x 8 images of digits \(KeyError: 'x' .*theirs\.py"),
        ("theirs:ends", "--teacher theirs:ends: the function fails: SystemExit"),
        ("theirs:Ends", r"can't take the 8 x 8 images of digits \(SystemExit: 0 "),
        ("theirs:meta", "--teacher theirs:meta: it fails: NotImplementedError"),
        ("theirs:circle", "--teacher theirs:circle: it fails: RecursionError"),
        ("theirs:none", "--teacher theirs:none: theirs has no function none"),
        ("no_such_module:build", "--teacher no_such_module:build: no_such_module can't be imp"),
    ],
)
def test_a_function_that_does_not_fit(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(TserError, match=message):
        loaded = find_teacher(settings(teacher=name), SPEC, tmp_path)
        assert loaded is not None
        fitting_teacher(loaded, SPEC)


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    torch.save({"1.weight": torch.ones(3, 63), "1.bias": torch.ones(3)}, "w.pt")
    with pytest.raises(CheckpointError, match=r"w\.pt does not fit the network.*63"):
        find_teacher(settings(teacher_weights="w.pt"), SPEC, tmp_path)


class Seen(nn.Module):
    def forward(self, images_NCHW: Tensor) -> Tensor:
        return images_NCHW.flatten(1)


def test_the_teacher_s_own_normalisation() -> None:
    pixels = torch.rand(2, 1, 8, 8)
    config = settings(teacher_mean=[0.2], teacher_std=[0.4])
    loaded = Loaded(OwnNetwork(Seen(), spiking=False), "seen", "", "")
    model = renormalised(loaded, config, SPEC).model
    shown = (pixels - SPEC.mean[0]) / SPEC.std[0]
    torch.testing.assert_close(model(shown), ((pixels - 0.2) / 0.4).flatten(1))
    torch.testing.assert_close(model(shown, 1), ((pixels - 0.2) / 0.4).flatten(1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher_mean": [0.2]}, "teacher_mean and model.teacher_std go together"),
        (
            {"teacher_mean": [0.2] * 3, "teacher_std": [0.4] * 3},
            "teacher_mean has 3 numbers, the images of digits have 1",
        ),
        (
            {"teacher": "resnet20", "teacher_mean": [0.2], "teacher_std": [0.4]},
            "resnet20 is trained here, on images as the student sees them",
        ),
        (
            {"teacher": "resnet20", "teacher_weights": "w.pt"},
            "teacher_weights goes with --teacher MODULE:FUNCTION, not with resnet20",
        ),
    ],
)
def test_settings_that_do_not_go_together(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises((ConfigError, ValueError), match=message):
        find_teacher(settings(**changes), SPEC, tmp_path)


def test_a_run_never_imports_it_by_itself(tmp_path: Path) -> None:
    run = folder.create(tmp_path, "student", settings())
    run.update_environment(
        teacher={"source": "theirs:build", "model": "theirs:build", "sha256": "0"}
    )
    with pytest.raises(CheckpointError, match="built by theirs:build, code that a run never"):
        read_run_teacher(run, SPEC)
    assert "theirs" not in sys.modules


@pytest.fixture
def context(told: Told) -> Context:
    """The tiny data set, with messages kept."""
    return make_context(make_config(), told)


@pytest.fixture
def run(tmp_path: Path, context: Context) -> Run:
    """A student's run that has just begun."""
    return folder.create(tmp_path, "student", context.config)


@pytest.fixture
def write_teacher(tmp_path: Path, context: Context) -> Callable[..., Loaded]:
    """`write_teacher("a", seed)`: a teacher's file, as it is read from it."""

    def write(name: str, seed: int = 0) -> Loaded:
        torch.manual_seed(seed)
        write_network(tmp_path / f"{name}.safetensors", context.config)
        return networks.read(tmp_path / f"{name}.safetensors", SPEC)

    return write


@pytest.mark.parametrize("entry", ["resnet20", ["resnet20"]])
def test_a_damaged_record_is_named(run: Run, entry: object) -> None:
    run.update_environment(teacher=entry)
    with pytest.raises(RunError, match=f"{run.folder} is damaged"):
        recorded_teacher(run)


def test_a_run_without_a_teacher(run: Run, context: Context) -> None:
    assert recorded_teacher(run) is None
    assert teacher_name(run) is None
    assert read_run_teacher(run, SPEC) is None
    assert teacher_to_count(run, context) is None


def test_the_first_teacher_is_recorded_frozen_and_read_again(
    run: Run, context: Context, told: Told, write_teacher: Callable[..., Loaded]
) -> None:
    found = write_teacher("a")
    assert keep_teacher(run, context, found) is found
    assert not found.model.training
    assert not any(p.requires_grad for p in found.model.parameters())
    assert recorded_teacher(run) == RecordedTeacher(found.source, "resnet20", found.sha256)
    assert teacher_name(run) == "resnet20"
    again = read_run_teacher(run, context.dataset.spec)
    assert again is not None
    assert (again.source, again.sha256) == (found.source, found.sha256)
    counted = teacher_to_count(run, context)
    assert counted is not None and counted.source == found.source
    assert told.said == told.warnings == []


def test_a_run_keeps_the_teacher_that_it_began_with(
    run: Run, context: Context, told: Told, write_teacher: Callable[..., Loaded]
) -> None:
    first, newer = write_teacher("a"), write_teacher("b", seed=1)
    keep_teacher(run, context, first)
    kept = keep_teacher(run, context, newer)
    assert kept.sha256 == first.sha256
    assert not kept.model.training
    assert told.said == [f"teacher: {first.source} instead, which the run began with"]
    assert recorded_teacher(run) == RecordedTeacher(first.source, "resnet20", first.sha256)


def test_the_same_teacher_may_have_moved(
    run: Run, context: Context, told: Told, write_teacher: Callable[..., Loaded]
) -> None:
    first, copy = write_teacher("a"), write_teacher("copy")
    assert first.sha256 == copy.sha256
    keep_teacher(run, context, first)
    Path(first.source).unlink()
    assert keep_teacher(run, context, copy) is copy
    assert recorded_teacher(run) == RecordedTeacher(copy.source, "resnet20", copy.sha256)
    assert told.said == []


@pytest.mark.parametrize(
    ("change", "said"), [("gone", "can't be read"), ("other", "has changed since that run began")]
)
def test_a_teacher_that_is_gone_or_has_changed(
    run: Run,
    context: Context,
    told: Told,
    write_teacher: Callable[..., Loaded],
    change: str,
    said: str,
) -> None:
    first = write_teacher("a")
    keep_teacher(run, context, first)
    if change == "gone":
        Path(first.source).unlink()
    else:
        write_teacher("a", seed=1)
    with pytest.raises(CheckpointError, match=said):
        read_run_teacher(run, context.dataset.spec)
    with pytest.raises(CheckpointError, match=said):
        keep_teacher(run, context, write_teacher("b", seed=2))
    # counting needs no weights: a network of the same shape serves, and that is told
    counted = teacher_to_count(run, context)
    assert counted is not None
    assert (counted.name, counted.source) == ("resnet20", "untrained")
    assert not counted.model.training
    (warning,) = told.warnings
    assert said in warning
    assert warning.endswith("the operations of an untrained resnet20 serve")


def test_a_teacher_of_no_known_architecture_is_left_out_of_the_counting(
    run: Run, context: Context, told: Told
) -> None:
    run.update_environment(teacher={"source": "gone.pt", "model": "resnet21", "sha256": "0"})
    assert teacher_to_count(run, context) is None
    assert len(told.warnings) == 2
    assert told.warnings[1].startswith("the teacher's energy is left out: ")


def test_a_runs_folder_that_was_moved_finds_its_teacher_by_hash(
    tmp_path: Path, context: Context, write_teacher: Callable[..., Loaded]
) -> None:
    def teacher_run(file: str, seed: int) -> Run:
        made = folder.create(tmp_path / "old", "teacher", context.config)
        loaded = write_teacher(file, seed)
        Path(loaded.source).rename(made.model_file)
        made.update_status(state="finished", sha256=loaded.sha256)
        return made

    teacher, _another = teacher_run("a", 1), teacher_run("b", 2)
    run = folder.create(tmp_path / "old", "student", context.config)
    digest = teacher.status()["sha256"]
    entry = {"source": str(teacher.model_file), "model": "resnet20", "sha256": digest}
    run.update_environment(teacher=entry)
    (tmp_path / "old").rename(tmp_path / "new")
    moved = Run(tmp_path / "new" / run.folder.relative_to(tmp_path / "old"))
    found = read_run_teacher(moved, SPEC)
    assert found is not None and found.sha256 == digest
    assert found.source.startswith(str(tmp_path / "new"))
    moved.update_environment(teacher={**entry, "sha256": "0"})
    with pytest.raises(CheckpointError, match="can't be read"):
        read_run_teacher(moved, SPEC)
