"""Which teacher a student gets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tser_cli.base.errors import ConfigError, RunError
from tser_cli.data.base import DataSpec
from tser_cli.engine.runs import folder, networks, teachers
from tser_cli.engine.runs.folder import Run
from tser_cli.engine.runs.networks import Loaded
from tser_cli.settings.config import Config, keys_where

MakeConfig = Callable[..., Config]
MakeTeacher = Callable[..., Run]


@pytest.fixture
def make_teacher(tmp_path: Path, spec: DataSpec, make_config: MakeConfig) -> MakeTeacher:
    """`make_teacher(hour, data.validation_fraction=0.1)`: a teacher run finished at that hour."""

    def make(hour: int, state: str = "finished", name: str = "resnet20", part: float = 0.0) -> Run:
        config = make_config({"model.teacher": name, "data.validation_fraction": part})
        run = folder.create(tmp_path, "teacher", config)
        model = networks.build(name, spec, config, spiking=False)
        networks.write(run.model_file, model, networks.describe(name, spec, config, False))
        run.update_status(
            state=state,
            model=name,
            validation_fraction=part,
            finished=f"2025-01-01T{hour:02}:00:00+00:00",
        )
        return run

    return make


def find(config: Config, spec: DataSpec, runs_dir: Path) -> str | None:
    """Where the teacher of `config` comes from."""
    loaded = teachers.find_teacher(config, spec, runs_dir)
    return None if loaded is None else loaded.source


def test_none_where_one_must_be_trained(
    tmp_path: Path, spec: DataSpec, make_config: MakeConfig
) -> None:
    assert find(make_config(), spec, tmp_path) is None


def test_the_newest_finished_one_that_fits(
    tmp_path: Path, spec: DataSpec, make_config: MakeConfig, make_teacher: MakeTeacher
) -> None:
    newest = make_teacher(9)
    make_teacher(8)
    make_teacher(11, state="stopped")
    make_teacher(12, name="resnet18")
    held_out = make_teacher(13, part=0.25)
    assert find(make_config(), spec, tmp_path) == str(newest.model_file)
    part = make_config({"data.validation_fraction": 0.25})
    assert find(part, spec, tmp_path) == str(held_out.model_file)
    other_part = make_config({"data.validation_fraction": 0.5})
    assert find(other_part, spec, tmp_path) is None
    other_data = make_config({"data.name": "mnist"})
    assert find(other_data, spec, tmp_path) is None
    assert find(make_config(), spec, tmp_path / "elsewhere") is None


def test_a_teacher_of_another_test_split_is_passed_over(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    def settings(fraction: float) -> Config:
        return make_config({"data.name": "imagefolder", "data.test_fraction": fraction})

    run = folder.create(tmp_path, "teacher", settings(0.5))
    name = settings(0.5).model.teacher
    run.update_status(state="finished", model=name, validation_fraction=0.0)
    # of train/ and val/: there nothing is split off
    assert teachers.newest_teacher(settings(0.2), tmp_path) == run
    run.update_status(test_fraction=0.5)
    assert teachers.newest_teacher(settings(0.5), tmp_path) == run
    assert teachers.newest_teacher(settings(0.2), tmp_path) is None


def test_a_teacher_of_other_images_is_passed_over(tmp_path: Path, make_config: MakeConfig) -> None:
    config = make_config({"data.name": "npz"})
    run = folder.create(tmp_path, "teacher", config)
    run.update_status(state="finished", model=config.model.teacher, validation_fraction=0.0)
    # what ran before fingerprints were kept does not say which images it had
    assert teachers.newest_teacher(config, tmp_path, "a") == run
    run.update_status(images_sha256="a")
    assert teachers.newest_teacher(config, tmp_path, "a") == run
    assert teachers.newest_teacher(config, tmp_path) == run
    assert teachers.newest_teacher(config, tmp_path, "b") is None


def test_a_path_goes_before_the_newest(
    tmp_path: Path, spec: DataSpec, make_config: MakeConfig, make_teacher: MakeTeacher
) -> None:
    named, _newer = make_teacher(8), make_teacher(9)
    for path in (named.folder, named.model_file):
        config = make_config({"model.teacher": str(path)})
        assert find(config, spec, tmp_path) == str(named.model_file)


def test_a_path_from_home(
    tmp_path: Path,
    spec: DataSpec,
    make_config: MakeConfig,
    make_teacher: MakeTeacher,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = make_teacher(8)
    monkeypatch.setenv("HOME", str(run.folder.parent))
    config = make_config({"model.teacher": f"~/{run.name}"})
    assert find(config, spec, tmp_path) == str(run.model_file)


def test_a_run_that_is_not_finished_is_no_teacher(
    tmp_path: Path, spec: DataSpec, make_config: MakeConfig, make_teacher: MakeTeacher
) -> None:
    run = make_teacher(8, state="stopped")
    with pytest.raises(RunError, match="is stopped, not finished"):
        find(make_config({"model.teacher": str(run.folder)}), spec, tmp_path)


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
def test_a_name_that_is_nothing(
    tmp_path: Path, spec: DataSpec, make_config: MakeConfig, name: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        find(make_config({"model.teacher": name}), spec, tmp_path)


def test_imagenet_falls_back_on_torchvision_last(
    tmp_path: Path,
    spec: DataSpec,
    make_config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = make_config({"data.name": "imagenet"})
    model = networks.build("resnet20", spec, config, spiking=False)
    theirs = Loaded(model, "resnet20", "torchvision", "")
    monkeypatch.setattr(networks, "pretrained", lambda name, spec: theirs)
    assert teachers.find_teacher(config, spec, tmp_path) is theirs
    run = folder.create(tmp_path, "teacher", config)
    networks.write(run.model_file, model, networks.describe("resnet20", spec, config, False))
    run.update_status(state="finished", model="resnet20", validation_fraction=0.0)
    assert find(config, spec, tmp_path) == str(run.model_file)


def test_a_teacher_trained_first_has_its_recipe_and_the_student_s_data(
    make_config: MakeConfig,
) -> None:
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


def test_the_teacher_s_recipe_can_be_chosen(tmp_path: Path, make_config: MakeConfig) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text("[training]\nepochs = 3\n")
    config = make_config({"model.teacher_recipe": str(recipe)})
    assert teachers.teacher_config(config).training.epochs == 3
    with pytest.raises(ConfigError, match="no recipe"):
        teachers.teacher_config(make_config({"model.teacher_recipe": "mine"}))


def test_the_weights_read_are_those_of_the_run(
    tmp_path: Path, spec: DataSpec, make_config: MakeConfig, make_teacher: MakeTeacher
) -> None:
    run = make_teacher(8)
    loaded = teachers.find_teacher(make_config(), spec, tmp_path)
    assert loaded is not None
    expected = networks.read(run.model_file, spec).model.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in loaded.model.state_dict().items())
