"""`tser doctor`: what is judged, and how."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tser_cli.engine.commands import doctor
from tser_cli.engine.commands.doctor import NOTE, OK, WRONG, DoctorRequest, examine

CPU = torch.device("cpu")


def test_a_quick_look(tmp_path: Path) -> None:
    checks = {check.name: check for check in examine(DoctorRequest(runs_dir=tmp_path, quick=True))}
    expected = {"versions", "extras", "processor", "GPU", "threads", "precision", "int8"}
    assert expected | {"data sets", "runs"} <= set(checks)
    assert checks["data sets"].found.startswith("here: digits")
    assert all(check.advice for check in checks.values() if check.state != OK)


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
    absent, *_ = doctor.places(DoctorRequest(runs_dir=tmp_path, data_dir=str(tmp_path)))
    assert absent.found.endswith("first used: mnist, fashion-mnist, cifar10, cifar100")
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            (raw / f"{part}-{kind}-ubyte").touch()
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(np.zeros(3).tobytes())
    present, *_ = doctor.places(DoctorRequest(runs_dir=tmp_path, data_dir=str(tmp_path)))
    assert f"mnist ({raw})" in present.found
    assert f"cifar10 ({tmp_path / 'cifar-10-python.tar.gz'})" in present.found
    assert present.found.endswith("first used: fashion-mnist, cifar100")


def test_a_data_folder_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    first, *_ = doctor.places(DoctorRequest(runs_dir=tmp_path, data_dir=str(tmp_path / "file")))
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
