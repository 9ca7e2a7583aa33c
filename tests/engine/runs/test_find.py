"""Runs found again: the newest, the unfinished, the one at a path."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import make_config
from tser_cli.base.errors import ConfigError, RunError
from tser_cli.engine.runs import find, folder
from tser_cli.engine.runs.folder import Run
from tser_cli.settings.config import EPOCHS, keys_where


def write_status(folder: Path, **status: Any) -> Run:
    """A run folder with no more than a status."""
    folder.mkdir(parents=True)
    (folder / "status.json").write_text(json.dumps(status))
    return Run(folder)


@pytest.fixture
def unfinished(tmp_path: Path) -> Callable[..., Run]:
    """`unfinished(state=..., changes=...)`: a student's run that did not come to its end."""

    def make(state: str = "stopped", changes: dict[str, Any] | None = None, **status: Any) -> Run:
        run = folder.create(tmp_path, "student", make_config(changes))
        run.update_status(state=state, **status)
        return run

    return make


@pytest.mark.parametrize("name", ["x" * 300, "é" * 200, "", "x" * 5000, "a\0b"])
def test_a_name_that_no_run_can_have(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunError, match="is not a run folder"):
        find.open_run(tmp_path / name, tmp_path)


def test_a_damaged_run_is_named_and_the_others_are_found(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / "student" / "digits"
    sound = write_status(place / "a", state="finished")
    for name, content in (("b", '{"state": []}'), ("c", "[" * 200_000)):
        (place / name).mkdir()
        (place / name / "status.json").write_text(content)
    assert [run for run, _ in find.all_runs(tmp_path)] == [sound]
    assert find.finished(tmp_path, "student")[0] == sound
    assert caplog.text.count("is damaged") == 2
    assert str(place / "b") in caplog.text and str(place / "c") in caplog.text


def test_the_newest_is_the_one_that_finished_last(tmp_path: Path) -> None:
    place = tmp_path / "student" / "digits"
    # later by its text alone: times of other zones are compared as instants
    early = write_status(place / "b", state="finished", finished="2025-01-01T12:00:00+02:00")
    last = write_status(
        place / "a", state="finished", model="resnet18", finished="2025-01-01T11:00:00+00:00"
    )
    write_status(place / "c", state="running", started="2025-01-02T00:00:00+00:00")
    os.utime(early.folder / "status.json", (2e9, 2e9))
    assert find.finished(tmp_path, "student")[0] == last
    for name, expected in (("resnet18", [last]), ("resnet20", [])):
        of = find.finished(tmp_path, "student", "digits", lambda s: s.get("model") == name)  # noqa: B023
        assert of == expected
    assert find.finished(tmp_path, "teacher") == []
    assert find.finished(tmp_path, "student", "mnist") == []


def test_all_runs_come_newest_first(tmp_path: Path) -> None:
    for name, day in (("a", 2), ("b", 3), ("c", 1)):
        write_status(
            tmp_path / "teacher" / "digits" / name, started=f"2025-01-0{day}T00:00:00+00:00"
        )
    write_status(tmp_path / "teacher" / "digits" / "d")
    assert [run.name for run, _ in find.all_runs(tmp_path)] == ["b", "a", "c", "d"]
    assert find.all_runs(tmp_path / "missing") == []


def test_open_run_hints_at_the_nearest_folder(tmp_path: Path) -> None:
    write_status(tmp_path / "resnet18_T2", state="finished")
    assert find.open_run(tmp_path / "resnet18_T2", tmp_path).name == "resnet18_T2"
    with pytest.raises(RunError, match=r'not a run folder \(did you mean "resnet18_T2"\?\)'):
        find.open_run(tmp_path / "resnet18_T", tmp_path)
    with pytest.raises(RunError, match=r"not a run folder: no status\.json"):
        find.open_run(tmp_path / "there" / "is" / "nothing", tmp_path)


@pytest.fixture
def several(tmp_path: Path) -> Path:
    """A runs folder with two students, a teacher, and a damaged student."""
    students = tmp_path / "student" / "digits"
    for name, hour in (("resnet18_T2_tser", 10), ("resnet18_T2_kd", 11)):
        when = f"2025-01-01T{hour}:00:00+00:00"
        write_status(students / name, kind="student", state="finished", finished=when)
    when = "2025-01-01T12:00:00+00:00"
    write_status(
        tmp_path / "teacher" / "mnist" / "vgg11", kind="teacher", state="finished", finished=when
    )
    (students / "resnet20_T4").mkdir()
    (students / "resnet20_T4" / "config.toml").write_text("")
    return tmp_path


@pytest.mark.parametrize(
    ("named", "kind", "name"),
    [
        ("resnet18_T2_tser", "*", "resnet18_T2_tser"),
        ("resnet18_T2_t", "*", "resnet18_T2_tser"),
        ("resnet20", "*", "resnet20_T4"),  # damaged, and not finished: it is told by whoever reads
        ("v", "teacher", "vgg11"),
        ("latest", "*", "vgg11"),
        ("latest", "student", "resnet18_T2_kd"),
    ],
)
def test_a_run_is_found_by_name(several: Path, named: str, kind: str, name: str) -> None:
    assert find.find_run(Path(named), several, kind).name == name


def test_a_path_leads_anywhere(several: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = several / "teacher" / "mnist" / "vgg11"
    assert find.find_run(folder, several / "nowhere").folder == folder
    monkeypatch.chdir(folder.parent)
    assert find.find_run(Path("vgg11"), several / "nowhere").folder == Path("vgg11")


def test_an_ambiguous_beginning_names_its_candidates(several: Path) -> None:
    # a whole name is none, though other names begin with it
    longer = several / "student" / "digits" / "resnet18_T2_tser-2"
    write_status(longer, state="finished")
    assert find.find_run(Path("resnet18_T2_tser"), several).name == "resnet18_T2_tser"
    with pytest.raises(RunError) as error:
        find.find_run(Path("resnet18"), several)
    students = several / "student" / "digits"
    assert str(error.value).splitlines() == [
        '"resnet18" may mean 3 runs:',
        f"  {students / 'resnet18_T2_kd'}",
        f"  {students / 'resnet18_T2_tser'}",
        f"  {longer}",
    ]


def test_many_candidates_are_counted(tmp_path: Path) -> None:
    for number in range(12):
        write_status(tmp_path / "student" / "digits" / f"a{number:02}", state="finished")
    with pytest.raises(RunError, match="may mean 12 runs") as error:
        find.find_run(Path("a"), tmp_path)
    assert str(error.value).splitlines()[-1] == "  and 2 more"


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("resnet18_T2_tsr", r'there is no run .* \(did you mean "resnet18_T2_tser"\?\)'),
        ("lates", r'\(did you mean "latest"\?\)'),
        ("zzz", r"there is no run \"zzz\" under .*\. tser runs lists them"),
        (".", "is not a run folder"),
        ("a/b", "is not a run folder"),
    ],
)
def test_a_run_that_does_not_exist(several: Path, named: str, said: str) -> None:
    with pytest.raises(RunError, match=said):
        find.find_run(Path(named), several)


@pytest.mark.parametrize(
    ("kind", "said"), [("*", r"run under .*; --runs-dir"), ("teacher", "teach")]
)
def test_the_latest_of_none(tmp_path: Path, kind: str, said: str) -> None:
    with pytest.raises(RunError, match=f"no finished {said}"):
        find.find_run(Path("latest"), tmp_path, kind)


def test_finding_runs_loads_no_torch() -> None:
    program = "import sys, tser_cli.engine.runs.find; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


Resume = Callable[..., Run | None]


@pytest.fixture
def resume(tmp_path: Path) -> Resume:
    """`resume({"training.epochs": 9}, must=True)`: the student's run that these settings resume."""

    def found(changes: dict[str, Any] | None = None, must: bool = False) -> Run | None:
        return find.find_unfinished(tmp_path, "student", make_config(changes), must)

    return found


@pytest.mark.parametrize("state", ["running", "stopped", "failed"])
def test_an_unfinished_run_of_the_same_settings_is_found(
    unfinished: Callable[..., Run], resume: Resume, tmp_path: Path, state: str
) -> None:
    run = unfinished(state)
    with pytest.raises(RunError, match=f"is {state}, not finished; repeat the command"):
        find.open_run(run.folder, Path())
    assert resume() == resume(must=True) == run
    assert find.find_unfinished(tmp_path, "teacher", make_config(), False) is None


@pytest.mark.parametrize("status", [{"state": "finished"}, {"state": "failed", "resumable": False}])
def test_nothing_to_resume(
    unfinished: Callable[..., Run], resume: Resume, status: dict[str, Any]
) -> None:
    unfinished(**status)
    assert resume() is None
    with pytest.raises(RunError, match="--resume must: no unfinished student run of digits"):
        resume(must=True)


def test_other_settings_begin_anew_or_are_listed(
    unfinished: Callable[..., Run], resume: Resume
) -> None:
    run = unfinished()
    other = {"optimizer.lr": 0.5, "training.batch_size": 4, "training.epochs": 9}
    assert resume(other) is None
    with pytest.raises(ConfigError) as error:
        resume(other, must=True)
    lines = str(error.value).splitlines()
    assert str(run.folder) in lines[0]
    assert lines[1:] == ["  optimizer.lr: 0.1 -> 0.5", "  training.batch_size: 8 -> 4"]


def test_the_newest_of_several_with_the_same_settings_is_taken(
    unfinished: Callable[..., Run], resume: Resume
) -> None:
    unfinished(started="2025-01-01T00:00:00+00:00")
    newer = unfinished(started="2025-01-02T00:00:00+00:00")
    unfinished(started="2025-01-03T00:00:00+00:00", changes={"optimizer.lr": 0.3})
    assert resume(must=True) == newer


@pytest.mark.parametrize("schedule", ["constant", "step", "cosine", "onecycle"])
def test_more_epochs_make_a_run_longer_where_no_learning_rate_knows_of_them_or_it_must(
    unfinished: Callable[..., Run], resume: Resume, schedule: str
) -> None:
    run = unfinished(changes={"schedule.name": schedule})
    longer = {"schedule.name": schedule, "training.epochs": 9}
    assert resume(longer) == (run if schedule in ("constant", "step") else None)
    assert resume(longer, must=True) == run


CHANGES = {
    "training.device": "auto",
    "training.accumulate": 2,
    "training.eval_batch_size": 3,
    "training.checkpoint_every": "9min",
    "training.tensorboard": True,
    "data.workers": 3,
    "data.dir": "/elsewhere",
    "plugins": ["mine"],
    "performance.spikes_in_bytes": False,
}


def test_these_settings_may_change_on_a_resume(
    unfinished: Callable[..., Run], resume: Resume
) -> None:
    # of epochs it depends on the schedule
    assert {*CHANGES, EPOCHS} == keys_where(lambda policy: policy.resume)
    run = unfinished()
    assert resume(CHANGES, must=True) == run


def test_a_run_with_damaged_settings_is_passed_over(
    unfinished: Callable[..., Run], resume: Resume
) -> None:
    (unfinished().folder / "config.toml").write_text("[data\n")
    assert resume() is None
    with pytest.raises(ConfigError, match=r"config\.toml"):
        resume(must=True)


def test_another_folder_of_your_own_images_is_another_run(
    unfinished: Callable[..., Run], resume: Resume
) -> None:
    mine = {"data.name": "imagefolder", "data.dir": "/mine"}
    run = unfinished(changes=mine)
    assert resume(mine, must=True) == run
    with pytest.raises(ConfigError, match=r"data\.dir: '/mine' -> '/other'"):
        resume({**mine, "data.dir": "/other"}, must=True)


def test_only_its_own_command_resumes_what_is_no_training(tmp_path: Path, resume: Resume) -> None:
    parent = {"run": "/runs/parent", "sha256": "1"}
    run = folder.create(tmp_path, "student", make_config(), parent=parent)
    assert resume() is None
    with pytest.raises(ConfigError, match="it is no training: repeat the tser quantize"):
        resume(must=True)
    found = [
        find.find_unfinished(tmp_path, "student", make_config(), False, of)
        for of in (parent, {**parent, "sha256": "2"})
    ]
    assert found == [run, None]
