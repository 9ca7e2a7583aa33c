"""`tser doctor`: what is judged, and how."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tser_cli.engine.commands import doctor
from tser_cli.engine.commands.doctor import NOTE, OK, WRONG, DoctorRequest, Record, Speed, examine

CPU = torch.device("cpu")
THEN = Record(Speed(100.0, 50.0, 60.0), "2025-01-31")


def test_a_quick_look(tmp_path: Path) -> None:
    checks = {check.name: check for check in examine(DoctorRequest(tmp_path, quick=True))}
    expected = {"versions", "extras", "processor", "GPU", "threads", "precision", "int8"}
    assert expected | {"data sets", "runs"} <= set(checks)
    assert "speed" not in checks
    assert checks["data sets"].found.startswith("here: digits")
    assert all(check.advice for check in checks.values() if check.state != OK)


def test_the_speed_is_measured_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "speed.json"
    monkeypatch.setattr(doctor, "place", lambda: path)
    monkeypatch.setattr(doctor, "measure", lambda device: Speed(100.0, 50.0, 60.0))
    # tests have one thread: nothing is said of scaling
    (busy,) = doctor.speeds(CPU, keep=False)
    assert busy.found.endswith("; not kept, see load") and not path.exists()
    (first,) = doctor.speeds(CPU, keep=True)
    assert first.found.endswith(f"kept in {path}, to compare with next time")
    monkeypatch.setattr(doctor, "measure", lambda device: Speed(59.0, 50.0, 60.0))
    (second,) = doctor.speeds(CPU, keep=True)
    assert second.state == WRONG
    assert second.found.startswith("59 GFLOP/s in products of matrices, 50 in convolutions")
    assert "it has 59 % of its speed" in second.advice


@pytest.mark.parametrize(
    ("now", "state"),
    [
        (Speed(100.0, 50.0, 60.0), OK),
        (Speed(61.0, 31.0, 60.0), OK),
        (Speed(59.0, 50.0, 60.0), WRONG),
        (Speed(100.0, 29.0, 60.0), WRONG),
    ],
)
def test_a_machine_that_was_faster(now: Speed, state: str) -> None:
    check = doctor.judged_speed(now, THEN, Path("x"))
    assert check.state == state
    assert "the best here was 100 and 50, on 2025-01-31" in check.found


@pytest.mark.parametrize(("alone", "state"), [(50.0, OK), (99.0, OK), (101.0, NOTE)])
def test_threads_that_gain_nothing(alone: float, state: str) -> None:
    check = doctor.judged_scaling(Speed(100.0, 50.0, alone), 2)
    assert check.state == state
    assert ("OMP_NUM_THREADS=1" in check.advice) is (state == NOTE)


def test_a_compiler_that_is_missing_or_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "what_compiling_lacks", lambda device: "a compiler")
    assert doctor.compiling(CPU).found == "it needs a compiler"
    monkeypatch.setattr(doctor, "what_compiling_lacks", lambda device: "")

    def broken(function: object) -> object:
        raise RuntimeError("no such header\nand more")

    monkeypatch.setattr(torch, "compile", broken)
    check = doctor.compiling(CPU)
    assert (check.state, check.found) == (NOTE, "it fails here: no such header")
    monkeypatch.setattr(torch, "compile", lambda function: lambda values: values)
    assert doctor.compiling(CPU).state == WRONG
    monkeypatch.setattr(torch, "compile", lambda function: function)
    assert doctor.compiling(CPU).state == OK


def test_data_sets_that_are_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tser_cli.data.builtin.DEBIAN", tmp_path / "nowhere")
    absent, *_ = doctor.places(DoctorRequest(tmp_path, str(tmp_path)))
    assert absent.found.endswith("first used: mnist, fashion-mnist, cifar10, cifar100")
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            (raw / f"{part}-{kind}-ubyte").touch()
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(np.zeros(3).tobytes())
    present, *_ = doctor.places(DoctorRequest(tmp_path, str(tmp_path)))
    assert f"mnist ({raw})" in present.found
    assert f"cifar10 ({tmp_path / 'cifar-10-python.tar.gz'})" in present.found
    assert present.found.endswith("first used: fashion-mnist, cifar100")


def test_a_data_folder_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    first, *_ = doctor.places(DoctorRequest(tmp_path, str(tmp_path / "file")))
    assert first.state == OK


def test_int8_kernels_that_do_not_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "kernels_serve", lambda: False)
    _, check = doctor.abilities(CPU)
    assert check.state == NOTE
    assert "the results are the same" in check.advice


@pytest.mark.parametrize(
    ("has", "said"),
    [
        (True, "100,000 images or more"),
        (False, "fp32 where none is named; --precision auto too: the CPU has no"),
    ],
)
def test_the_precision_that_will_be_chosen(
    monkeypatch: pytest.MonkeyPatch, has: bool, said: str
) -> None:
    monkeypatch.setattr(doctor, "cpu_has_bf16", lambda: has)
    assert said in doctor.precision(CPU).found
