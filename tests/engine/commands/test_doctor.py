"""`tser doctor`: what a machine has and lacks, what is judged, and how."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
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
    assert f"3 of {os.cpu_count()} cores" in doctor.processor(3).found


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
    no_folder = str(tmp_path / "cifar-10-python.tar.gz")
    first, *_ = doctor.places(DoctorRequest(runs_dir=tmp_path, data_dir=no_folder))
    assert first.state == OK


def test_the_precision_that_will_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    without = "fp32 where none is named; --precision auto too: the CPU has no"
    for has, said in ((True, "100,000 images or more"), (False, without)):
        monkeypatch.setattr(doctor, "cpu_has_bf16", lambda has=has: has)
        monkeypatch.setattr(doctor, "kernels_serve", lambda has=has: has)
        precision, int8 = doctor.abilities(CPU)
        assert said in precision.found
        assert int8.state == (OK if has else NOTE)
        assert ("the results are the same" in int8.advice) is not has


def test_requirements_that_are_not_met() -> None:
    stated = ["pytest>=1", "pytest>=999", "no-such-package>=2"]
    stated += [f"no-such-package ; {why}" for why in ("extra == 'ray'", "python_version < '3'")]
    assert list(doctor.unmet_requirements(stated)) == ["pytest>=999", "no-such-package>=2"]


def test_too_old_a_package_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.versions().state == OK
    monkeypatch.setattr(doctor, "requires", lambda name: ["pytest>=999"])
    check = doctor.versions()
    assert (check.state, check.advice) == (WRONG, "pip install 'pytest>=999'")
    assert f"torch {torch.__version__.split('+')[0]}" in check.found


def test_extras_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "EXTRAS", {"nir": ("json",), "ray": ("json", "no_such_module")})
    check = doctor.extras()
    assert (check.state, check.found) == (NOTE, "installed: nir; not: ray")
    assert check.advice.endswith("pip install 'tser-cli[ray]'")
    monkeypatch.setattr(doctor, "EXTRAS", {"nir": ("json",)})
    assert doctor.extras() == doctor.Checkup("extras", OK, "installed: nir; not: none")


@pytest.mark.parametrize(("used", "state"), [(1, NOTE), (4, OK), (8, WRONG)])
def test_threads(monkeypatch: pytest.MonkeyPatch, used: int, state: str) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    check = doctor.threads(used, 4)
    assert check.state == state
    assert check.found == f"{used} for 4 cores"
    assert ("OMP_NUM_THREADS=4" in check.advice) is (state != OK)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert doctor.threads(2, 2).found == "2 for 2 cores (OMP_NUM_THREADS=2)"


def test_load_and_time_that_the_host_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [doctor.load(average, 2).state for average in (0.9, 1.0)] == [OK, WRONG]
    for times, told in (({"steal": 9.9}, 0), ({"steal": 30.0}, 1), ({}, 0)):
        found = SimpleNamespace(**times)
        monkeypatch.setattr(psutil, "cpu_times_percent", lambda interval, found=found: found)
        assert len(list(doctor.steal())) == told


def test_a_gpu_that_torch_can_t_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "NVIDIA", (str(tmp_path / "none"),))
    assert doctor.graphics().state == OK
    monkeypatch.setattr(doctor, "NVIDIA", (str(tmp_path),))
    for built, advice in (("12.8", "driver"), (None, "CUDA build")):
        monkeypatch.setattr(torch.version, "cuda", built)
        check = doctor.graphics()
        assert check.state == WRONG and advice in check.advice


def test_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    card = SimpleNamespace(name="Card", total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: card)
    assert doctor.graphics().found == "Card (80 GiB), Card (80 GiB)"


def test_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = SimpleNamespace(free=3 * 2**30)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: usage)
    check = doctor.room("runs", tmp_path / "not" / "yet")
    assert (check.state, check.found) == (OK, f"3.0 GiB free at {tmp_path / 'not' / 'yet'}")
    assert not (tmp_path / "not").exists()
    usage.free = 2**20
    assert doctor.room("runs", tmp_path).state == WRONG
    monkeypatch.setattr(os, "access", lambda place, how: False)
    assert doctor.room("runs", tmp_path).found == f"{tmp_path} can't be written"
