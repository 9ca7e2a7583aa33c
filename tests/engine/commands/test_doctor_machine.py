"""What a machine has and lacks."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from tser_cli.engine.commands import doctor
from tser_cli.engine.commands.doctor import NOTE, OK, WRONG


def test_requirements_that_are_not_met() -> None:
    stated = [
        "pytest>=1",
        "pytest>=999",
        "no-such-package>=2",
        "no-such-package ; extra == 'ray'",
        "no-such-package ; python_version < '3'",
    ]
    assert list(doctor.unmet_requirements(stated)) == ["pytest>=999", "no-such-package>=2"]


def test_too_old_a_package_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.versions().state == OK
    monkeypatch.setattr(doctor, "_stated", lambda: ["pytest>=999"])
    check = doctor.versions()
    assert (check.state, check.advice) == (WRONG, "pip install 'pytest>=999'")
    assert f"torch {torch.__version__.split('+')[0]}" in check.found


def test_extras_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "EXTRAS", {"nir": ("json",), "ray": ("json", "no_such_module")})
    check = doctor.extras()
    assert (check.state, check.found) == (NOTE, "installed: nir; not: ray")
    assert check.advice.endswith("pip install 'tser-cli[ray]'")
    monkeypatch.setattr(doctor, "EXTRAS", {"nir": ("json",)})
    assert doctor.extras() == doctor.Check("extras", OK, "installed: nir; not: none")


@pytest.mark.parametrize(("used", "state"), [(1, NOTE), (4, OK), (8, WRONG)])
def test_threads(monkeypatch: pytest.MonkeyPatch, used: int, state: str) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    check = doctor.threads(used, 4)
    assert check.state == state
    assert check.found == f"{used} for 4 cores"
    assert ("OMP_NUM_THREADS=4" in check.advice) is (state != OK)


def test_the_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert doctor.threads(2, 2).found == "2 for 2 cores (OMP_NUM_THREADS=2)"


@pytest.mark.parametrize(("average", "state"), [(0.0, OK), (0.9, OK), (1.0, WRONG), (9.0, WRONG)])
def test_load(average: float, state: str) -> None:
    assert doctor.load(average, 2).state == state


@pytest.mark.parametrize(("stolen", "told"), [(0.0, False), (9.9, False), (30.0, True)])
def test_time_that_the_host_takes(
    monkeypatch: pytest.MonkeyPatch, stolen: float, told: bool
) -> None:
    times = SimpleNamespace(steal=stolen)
    monkeypatch.setattr(psutil, "cpu_times_percent", lambda interval: times)
    check = doctor.steal()
    assert (check is not None) is told
    monkeypatch.setattr(psutil, "cpu_times_percent", lambda interval: SimpleNamespace())
    assert doctor.steal() is None


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


def test_the_processor_is_named() -> None:
    check = doctor.processor(3)
    assert check.state == OK
    assert f"3 of {os.cpu_count()} cores" in check.found
