"""What the data and the machine decide before a run: precision, batch size, compiling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from tests.engine.conftest import Told, make_config, make_context
from tests.engine.training.conftest import Prepared
from tser_cli.base.errors import ConfigError
from tser_cli.base.system import cpu_has_bf16
from tser_cli.engine.runs import folder
from tser_cli.engine.runs.opened import Options
from tser_cli.engine.training import settle
from tser_cli.engine.training.settle import (
    WORTH_TAKING,
    WORTH_TRYING,
    bf16_over_fp32,
    bytes_an_image,
    compile_networks,
    kept_bytes,
    largest_batch,
    settle_precision,
)
from tser_cli.settings.config import Config

LONG = {"training.precision": "auto", "training.epochs": WORTH_TRYING}


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, told: Told) -> Callable[..., str]:
    """`settled(config, 0.6)`: the precision where a step in bf16 takes 0.6 of its time in fp32."""

    def settle_it(config: Config, share: float, resume: str = "auto", bf16: bool = True) -> str:
        monkeypatch.setattr(settle, "cpu_has_bf16", lambda: bf16)
        monkeypatch.setattr(settle, "bf16_over_fp32", lambda kind, context: share)
        context = make_context(config, told)
        after = settle_precision("student", context, Options(tmp_path, resume))
        chosen = after.config.training.precision
        assert after.config == config.updated({"training.precision": chosen})
        mixed = after.runtime.accelerator.mixed_precision
        assert mixed == ("bf16" if chosen == "bf16" else "no")
        return chosen

    return settle_it


@pytest.mark.parametrize(("share", "chosen"), [(WORTH_TAKING, "bf16"), (0.95, "fp32")])
def test_bf16_where_it_is_faster(
    settled: Callable[..., str], told: Told, share: float, chosen: str
) -> None:
    assert settled(make_config(LONG), share) == chosen
    assert told.said == [
        f"precision: {chosen}; a step in bf16 takes {share:.2f} of its time in fp32 here"
    ]


@pytest.mark.parametrize(
    ("hardware", "changes"),
    [(False, {}), (True, {"training.epochs": 2}), (True, {"model.weight_bits": 8})],
)
def test_fp32_without_trying(
    settled: Callable[..., str], told: Told, hardware: bool, changes: dict[str, Any]
) -> None:
    assert settled(make_config({**LONG, **changes}), 0.1, bf16=hardware) == "fp32"
    assert not told.said


@pytest.mark.parametrize("stated", ["fp32", "bf16"])
def test_what_is_stated_stands(tmp_path: Path, stated: str) -> None:
    context = make_context(make_config({"training.precision": stated}))
    assert settle_precision("student", context, Options(tmp_path)) is context


@pytest.mark.parametrize(
    ("kept", "share", "resume"),
    [("bf16", 2.0, "auto"), ("fp32", 0.1, "must"), ("bf16", 2.0, "never")],
)
def test_a_resumed_run_keeps_its_own(
    settled: Callable[..., str], tmp_path: Path, kept: str, share: float, resume: str
) -> None:
    begun = make_config({**LONG, "training.precision": kept})
    folder.create(tmp_path, "student", begun).update_status(state="stopped")
    assert (settled(make_config(LONG), share, resume) == kept) == (resume != "never")


def test_a_teacher_that_was_begun_decides_for_its_student(
    settled: Callable[..., str], tmp_path: Path
) -> None:
    config = make_config(LONG)
    teacher = settle.teacher_config(config.updated({"training.precision": "bf16"}))
    folder.create(tmp_path, "teacher", teacher).update_status(state="stopped")
    assert settled(config, 2.0) == "bf16"


@pytest.mark.parametrize(("kind", "batch_size"), [("teacher", "auto"), ("student", 8)])
def test_a_try_gives_a_share(
    monkeypatch: pytest.MonkeyPatch, kind: str, batch_size: int | str
) -> None:
    monkeypatch.setattr(settle, "TRY_SECONDS", 0.2)
    context = make_context(make_config({**LONG, "training.batch_size": batch_size}))
    assert 0.05 < bf16_over_fp32(kind, context) < 50


@pytest.mark.parametrize(
    ("share", "most", "images"), [(1.0, 64, 2), (1 / 4, 64, 8), (1e-6, 64, 32), (1e-6, 7, 2)]
)
def test_how_many_images_a_try_has(share: float, most: int, images: int) -> None:
    of_two = share * settle.TRY_SECONDS / (2 * (settle.ROUNDS + 1))
    assert settle.images_to_try(lambda number: of_two * number / 2, most) == images


def test_the_hardware_is_what_the_system_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for words, has in (("flags : avx512_bf16 avx2", True), ("amx_bf16", True), ("avx2", False)):
        monkeypatch.setattr(Path, "read_text", Mock(return_value=words))
        assert cpu_has_bf16() == has
    monkeypatch.setattr(Path, "read_text", Mock(side_effect=FileNotFoundError))
    assert not cpu_has_bf16()


def test_kept_bytes_grow_with_the_batch_and_change_nothing(prepared: Prepared) -> None:
    task, context = prepared()
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    two, four, eight = (kept_bytes(task, context, images) for images in (2, 4, 8))
    assert (eight - four) == pytest.approx(2 * (four - two), rel=0.01)
    for name, value in task.model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_largest_batch_follows_the_free_memory(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, context = prepared()
    assert largest_batch(task, context) == 2  # of 24 training images
    monkeypatch.setattr(settle, "FEWEST_STEPS", 1)
    assert largest_batch(task, context) == 16
    one = (kept_bytes(task, context, 8) - kept_bytes(task, context, 4)) / 4
    weights = sum(p.numel() * p.element_size() for p in task.network.parameters())
    enough = 2 * weights + one * 1.5 / 0.8 * 4.5
    monkeypatch.setattr("tser_cli.engine.training.settle.free_bytes", lambda device: enough)
    assert largest_batch(task, context) == 4
    monkeypatch.setattr("tser_cli.engine.training.settle.free_bytes", lambda device: 2 * weights)
    with pytest.raises(ConfigError, match="not even one image fits"):
        largest_batch(task, context)


def test_saving_memory_lets_more_images_in_but_not_too_many(prepared: Prepared) -> None:
    plain, saving = (
        bytes_an_image(*prepared({"performance.save_memory": saves})) for saves in (False, True)
    )
    assert plain / 2 < saving < plain
    task, context = prepared({"performance.save_memory": True})
    bytes_an_image(task, context)
    assert task.model.save_memory


def test_every_part_of_a_batch_gets_as_many_images(prepared: Prepared) -> None:
    task, context = prepared({"training.accumulate": 3, "training.batch_size": 3})
    assert largest_batch(task, context) == 6  # 3 parts of 2, of 24 training images


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (1, ""),
        (2, "= 2: 12 steps an epoch of 24 training images"),
        (5000, "= 5000: 1 step an epoch"),
    ],
)
def test_few_steps_an_epoch_are_a_warning(
    prepared: Prepared, told: Told, tmp_path: Path, size: int, said: str
) -> None:
    task, context = prepared({"training.batch_size": size})
    context = replace(context, progress=told)
    assert settle.settle_batch_size(task, "student", context, Options(tmp_path)) is context
    assert [said in line for line in told.warnings] == [True] * bool(said)


@pytest.mark.parametrize("mode", ["on", "off"])
def test_what_is_compiled(prepared: Prepared, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    monkeypatch.setattr(settle, "what_compiling_lacks", lambda device: "")
    task, context = prepared({"performance.compile": mode})
    task.teacher, task.network = Mock(), Mock()
    compile_networks(task, context.config, torch.device("cpu"))
    assert task.teacher.compile.called == task.network.compile.called == (mode == "on")


def test_compiling_on_a_cpu_asks_for_a_compiler(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settle.shutil, "which", lambda name: None)
    task, context = prepared({"performance.compile": "on"})
    with pytest.raises(ConfigError, match=r"needs a compiler \(CXX, g\+\+ or clang\+\+\)"):
        compile_networks(task, context.config, torch.device("cpu"))


def test_compiling_does_not_go_with_saving_memory() -> None:
    with pytest.raises(ConfigError, match="does not go with"):
        make_config({"performance.compile": "on", "performance.save_memory": True})


@pytest.fixture
def unfinished(tmp_path: Path) -> Callable[..., folder.Run]:
    """`unfinished({"training.batch_size": 4})`: a student's run that was stopped."""

    def make(changes: dict[str, Any] | None = None, state: str = "stopped") -> folder.Run:
        run = folder.create(tmp_path, "student", make_config(changes))
        run.update_status(state=state)
        return run

    return make


def test_what_is_left_open_is_that_of_the_unfinished_run(
    tmp_path: Path, unfinished: Callable[..., folder.Run]
) -> None:
    both = make_config({"training.precision": "auto", "training.batch_size": "auto"})

    def begun(config: Config = both, resume: str = "auto") -> Config | None:
        return settle.begun_like("student", config, Options(tmp_path, resume))

    assert begun() is None
    like = {"training.precision": "bf16", "training.batch_size": 12}
    unfinished(like)
    unfinished({"training.batch_size": 24, "optimizer.lr": 0.7})
    (unfinished({"training.batch_size": 48}).folder / "config.toml").write_text("[")
    unfinished({"training.batch_size": 6}, "finished")
    assert begun() == begun(make_config({**like, "training.batch_size": "auto"}))
    assert begun() == make_config(like)
    assert begun(resume="never") is None
    # what is stated must be the run's, too
    assert begun(make_config({"training.batch_size": "auto"})) is None


def test_more_epochs_are_another_run_unless_it_must(
    tmp_path: Path, unfinished: Callable[..., folder.Run]
) -> None:
    unfinished()
    longer = make_config({"training.epochs": 9, "training.batch_size": "auto"})
    assert settle.begun_like("student", longer, Options(tmp_path)) is None
    begun = settle.begun_like("student", longer, Options(tmp_path, "must"))
    assert begun is not None and begun.training.batch_size == 8


def test_paths_are_made_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    (tmp_path / "t.pt").touch()
    config = make_config(
        {
            "data.dir": "~/images",
            "model.teacher": "t.pt",
            "model.teacher_weights": "w.pt",
            "model.teacher_recipe": "digits/resnet34_teacher",
        }
    )
    whole = settle.with_whole_paths(config)
    assert whole.data.dir == "/home/somebody/images"
    assert whole.model.teacher == str(tmp_path / "t.pt")
    assert whole.model.teacher_weights == str(tmp_path / "w.pt")
    assert whole.model.teacher_recipe == "digits/resnet34_teacher"  # one of the package
    assert settle.with_whole_paths(whole) is whole
    # an architecture is none, and what can be none is left to whoever opens it
    (tmp_path / "resnet20").mkdir()
    assert settle.with_whole_paths(make_config()).model.teacher == "resnet20"
    odd = make_config({"data.dir": "~no.such.user/x"})
    assert settle.with_whole_paths(odd).data.dir == "~no.such.user/x"
