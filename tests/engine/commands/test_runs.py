"""The list of runs: filters and order; and what may be removed."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tser_cli.base.errors import ConfigError, RunError
from tser_cli.engine.commands.runs import RunsRequest, find_removable, list_runs, remove
from tser_cli.engine.runs import folder
from tser_cli.engine.runs.folder import Run
from tser_cli.settings.config import Config

MakeConfig = Callable[..., Config]


@pytest.fixture
def make(tmp_path: Path, make_config: MakeConfig) -> Callable[..., Run]:
    """`make("name", accuracy, settings)`: a finished student under runs/."""

    def finished(name: str, accuracy: float | None = None, **settings: Any) -> Run:
        made = folder.create(tmp_path / "made", "student", make_config(settings))
        home = tmp_path / "runs" / "student" / "digits" / name
        home.parent.mkdir(parents=True, exist_ok=True)
        run = Run(made.folder.rename(home))
        result = {"accuracy": accuracy, "energy_pj": None}
        when = f"2030-01-0{1 + len(list(home.parent.iterdir()))}T00:00:00+00:00"
        run.update_status(state="finished", finished=when, result=result)
        return run

    return finished


@pytest.fixture
def runs_dir(tmp_path: Path, make: Callable[..., Run]) -> Path:
    """Three runs, c the newest; b alone was measured best, c not at all."""
    make("a", 0.5, **{"method.name": "kd", "training.seed": 1})
    make("b", 0.9, **{"optimizer.lr": 0.5})
    make("c", None, **{"model.timesteps": 4, "training.deterministic": True})
    return tmp_path / "runs"


def names(runs_dir: Path, *filters: str, **more: Any) -> list[str]:
    return [record.name for record in list_runs(RunsRequest(runs_dir, filters, **more))]


def test_filters(runs_dir: Path) -> None:
    expected = {"": "cba", "method=kd": "a", "method=kd,tser": "cba", "method=t*": "cb"}
    expected |= {"T=2 method=tser": "b", "timesteps=4": "c", "lr=0.50": "b", "seed=1": "a"}
    expected |= {"optimizer.lr=0.1": "ca", "deterministic=true": "c", "state=finished": "cba"}
    expected |= {"run=b": "b", "method=": ""}
    for filters, found in expected.items():
        assert "".join(names(runs_dir, *filters.split())) == found, filters


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kd", r'"kd" is no filter; write KEY=VALUE'),
        ("=kd", "is no filter"),
        ("metod=kd", r'unknown key "metod" \(did you mean "method"'),
        ("accuracy=0.9", "--sort accuracy"),
        ("tau=2", "may mean method.temperature or neuron.tau"),
    ],
)
def test_a_filter_that_is_none(runs_dir: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        names(runs_dir, text)


def test_what_lacks_a_column_comes_last(runs_dir: Path) -> None:
    assert names(runs_dir, sort="accuracy") == ["a", "b", "c"]
    assert names(runs_dir, sort="accuracy", reverse=True) == ["b", "a", "c"]
    assert names(runs_dir, sort="run") == ["a", "b", "c"]
    assert names(runs_dir, reverse=True) == ["a", "b", "c"]
    with pytest.raises(ConfigError, match=r'unknown column "accurcy" \(did you mean "accuracy"'):
        names(runs_dir, sort="accurcy")


def test_a_broken_folder_is_a_line_like_others(runs_dir: Path) -> None:
    for name, content in (("d", "{"), ("e", "[" * 100_000)):
        (runs_dir / "student" / "digits" / name).mkdir()
        (runs_dir / "student" / "digits" / name / "status.json").write_text(content)
    place = runs_dir / "file"
    place.write_text("")
    for none in (runs_dir / "nowhere", place, Path("x" * 5000), Path("a\0b")):
        assert list_runs(RunsRequest(none)) == []
    states = {record.name: record.state for record in list_runs(RunsRequest(runs_dir))}
    assert states == {**dict.fromkeys("abc", "finished"), "d": "damaged", "e": "damaged"}
    ((record, _),) = find_removable([Path("d")], runs_dir)
    remove(record)
    assert "d" not in names(runs_dir)


def test_a_run_is_removed_with_all_that_is_in_it(runs_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("precious")
    folder = runs_dir / "student" / "digits" / "b"
    (folder / "link").symlink_to(tmp_path / "kept")
    ((record, students),) = find_removable([Path("b"), folder], runs_dir)
    assert students == 0
    remove(record)
    assert names(runs_dir) == ["c", "a"]
    assert (tmp_path / "kept" / "file").read_text() == "precious"


def test_a_run_that_somebody_works_on_is_not_touched(runs_dir: Path) -> None:
    ((record, _),) = find_removable([Path("a")], runs_dir)
    with Run(record.folder).lock():
        with pytest.raises(RunError, match="is in use by process"):
            find_removable([Path("a")], runs_dir)
        with pytest.raises(RunError, match="is in use by process"):
            remove(record)
    assert "a" in names(runs_dir)


@pytest.mark.parametrize(("host", "refused"), [("another", True), (socket.gethostname(), False)])
def test_a_run_on_another_machine_is_believed(runs_dir: Path, host: str, refused: bool) -> None:
    # here the lock alone counts: its holder is gone
    folder = runs_dir / "student" / "digits" / "a"
    status = {"state": "running", "pid": 1, "host": host}
    (folder / "status.json").write_text(json.dumps(status))
    if refused:
        with pytest.raises(RunError, match="is running on another: stop it there"):
            find_removable([Path("a")], runs_dir)
    else:
        assert len(find_removable([Path("a")], runs_dir)) == 1


def test_only_runs_of_the_place_are_removed(runs_dir: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "project"
    elsewhere.mkdir()
    (elsewhere / "status.json").write_text('{"kind": "student", "state": "finished"}')
    (runs_dir / "student" / "digits" / "link").symlink_to(elsewhere)
    with pytest.raises(RunError, match="is no run folder under"):
        find_removable([elsewhere], runs_dir)
    with pytest.raises(RunError, match="is a link to a folder elsewhere"):
        find_removable([Path("link")], runs_dir)
    assert elsewhere.is_dir()


def test_who_learned_from_a_teacher_is_counted(runs_dir: Path, make_config: MakeConfig) -> None:
    teacher = folder.create(runs_dir, "teacher", make_config())
    teacher.update_status(state="finished")
    for name in ("a", "b"):
        record = {"source": str(teacher.model_file.resolve()), "model": "resnet20"}
        Run(runs_dir / "student" / "digits" / name).update_environment(teacher=record)
    assert [students for _, students in find_removable([Path("resnet20")], runs_dir)] == [2]
