"""Cells in processes of their own: here, and on a Ray cluster or a stand-in for it."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.engine.ablation.conftest import make_cell
from tests.engine.conftest import make_config
from tests.engine.results import RESULT
from tser_cli.base.errors import ConfigError
from tser_cli.engine.ablation import cell_process, launchers
from tser_cli.engine.ablation.folder import cell_folder
from tser_cli.engine.ablation.grid import Cell
from tser_cli.engine.ablation.launchers import (
    Cluster,
    Launcher,
    RayLauncher,
    cell_environment,
    connected,
    default_jobs,
    share,
)
from tser_cli.engine.runs.folder import create
from tser_cli.engine.runs.stop import StopRequest


def test_a_cell_s_process_gets_its_share_of_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(launchers, "cores", lambda: 8)
    cell = make_cell({"method.name": "kd"})
    assert [cell_environment(cell, 0, jobs)["OMP_NUM_THREADS"] for jobs in (1, 3, 9)] == [
        *("8", "2", "1")
    ]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert cell_environment(cell, 0, 2)["OMP_NUM_THREADS"] == "5"
    for odd in ("x", "0", "99999999999", "9" * 5000):
        monkeypatch.setenv("OMP_NUM_THREADS", odd)
        assert launchers.threads_of(1) == 8


def stand_in(monkeypatch: pytest.MonkeyPatch, program: str) -> list[list[str]]:
    """Cells run this program instead; returns the commands that they would have run."""
    begin, commands = subprocess.Popen, list[list[str]]()

    def popen(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        commands.append(command)
        return begin([sys.executable, "-c", program], **options)

    monkeypatch.setattr(cell_process.subprocess, "Popen", popen)
    return commands


def test_no_setting_from_outside_reaches_a_cell(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TSER_OPTIMIZER_LR", "3")
    seen = stand_in(monkeypatch, "import os; print(sorted(os.environ))")
    launcher = Launcher(tmp_path, 1, StopRequest(lambda text: None))
    assert launcher.run(make_cell({"method.name": "kd"})) == ""
    (log,) = tmp_path.rglob("cell.log")
    assert "PATH" in log.read_text()
    assert "TSER_" not in log.read_text()
    module, home = "tser_cli.engine.ablation.cell_process", str(log.parent)
    command = [sys.executable, "-P", "-m", module, str(os.getpid()), "distill"]
    command += ["--recipe", f"{home}/cell.toml", "--runs-dir", home, "--resume", "auto"]
    assert seen == [command]


@pytest.mark.parametrize(
    ("device", "visible", "jobs", "given"),
    [
        ("auto", "", 2, ["0", "1", "0"]),
        ("cuda", "5,7", 2, ["5", "7", "5"]),
        ("auto", "", 1, [None, None, None]),
        ("cuda:1", "", 2, [None, None, None]),
        ("cpu", "", 2, [None, None, None]),
    ],
)
def test_cells_side_by_side_get_a_gpu_each(
    monkeypatch: pytest.MonkeyPatch, device: str, visible: str, jobs: int, given: list[str | None]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    cell = make_cell({"method.name": "kd"}, **{"training.device": device})
    found = [cell_environment(cell, slot, jobs).get("CUDA_VISIBLE_DEVICES") for slot in range(3)]
    assert found == given


def test_as_many_cells_at_once_as_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    free = make_cell({"method.name": "kd"}, **{"training.device": "auto"})
    bound = make_cell({"method.name": "kd"}, **{"training.device": "cpu"})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert default_jobs([free, free]) == 4
    assert default_jobs([free, bound]) == 1
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert default_jobs([free]) == 1


def test_no_cell_starts_once_a_stop_was_asked_for(tmp_path: Path) -> None:
    stop = StopRequest(lambda text: None)
    stop.signal = 15
    assert Launcher(tmp_path, 1, stop).run(make_cell({"method.name": "kd"})) == "not started"
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "cells").write_text("a file")
    launcher = Launcher(tmp_path, 1, StopRequest(lambda text: None))
    for _ in range(2):  # its slot was given back
        assert "can't be written" in launcher.run(make_cell({"method.name": "kd"}))


SAVES = """
import signal, sys, time
from pathlib import Path
def save(*rest):
    time.sleep(0.3)
    print("saved")
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
Path({ready!r}).touch()
while True:
    time.sleep(0.01)
"""


def test_a_stopped_cell_may_save_before_its_end_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready, stop = tmp_path / "ready", StopRequest(lambda text: None)
    stand_in(monkeypatch, SAVES.format(ready=str(ready)))
    with ThreadPoolExecutor(1) as pool:
        told = pool.submit(Launcher(tmp_path, 1, stop).run, make_cell({"method.name": "kd"}))
        while not ready.exists():
            assert not told.done(), told.result()
            time.sleep(0.01)
        stop.signal = signal.SIGTERM
        assert told.result().startswith("exit code 143: saved (see ")


def test_what_a_failed_cell_said_last_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, "for n in range(9): print(n)\nraise SystemExit(7)")
    launcher = Launcher(tmp_path, 1, StopRequest(lambda text: None))
    log = cell_folder(make_cell({"method.name": "kd"}), tmp_path) / "cell.log"
    assert launcher.run(make_cell({"method.name": "kd"})) == f"exit code 7: 6 / 7 / 8 (see {log})"


class RayError(Exception):
    """As ray.exceptions.RayError."""


class TaskCancelledError(RayError):
    """As ray.exceptions.TaskCancelledError."""


class FakeRay:
    """Tasks that end when `result` is set: a text to return or an error to raise."""

    exceptions = SimpleNamespace(RayError=RayError, TaskCancelledError=TaskCancelledError)

    def __init__(self) -> None:
        self.asked: list[dict[str, int]] = []
        self.calls: list[tuple[Any, ...]] = []
        self.cancelled: list[str] = []
        self.result: str | Exception | None = None
        self.on_wait: Callable[[], None] = lambda: None

    def remote(self, **wanted: int) -> Callable[[Any], SimpleNamespace]:
        self.asked.append(wanted)
        return lambda task: SimpleNamespace(remote=lambda *values: self._begin(task, values))

    def _begin(self, task: Any, values: tuple[Any, ...]) -> str:
        self.calls.append((task, *values))
        return f"task {len(self.calls)}"

    def wait(self, references: list[str], timeout: float) -> tuple[list[str], list[str]]:
        self.on_wait()
        return ([], references) if self.result is None else (references, [])

    def cancel(self, reference: str) -> None:
        self.cancelled.append(reference)

    def get(self, reference: str) -> str:
        if isinstance(self.result, Exception):
            raise self.result
        assert self.result is not None
        return self.result


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    monkeypatch.setattr(launchers, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(launchers, "SEEN_SECONDS", 0.0)
    return FakeRay()


@pytest.fixture
def cell() -> Cell:
    return Cell({"method.name": "kd"}, 0, make_config({"method.name": "kd"}))


@pytest.fixture
def stop() -> StopRequest:
    return StopRequest(lambda text: None)


def launcher(ray: FakeRay, folder: Path, stop: StopRequest, jobs: int | None = None) -> RayLauncher:
    return RayLauncher(folder, Cluster(ray, [{"CPU": 8.0}]), jobs, stop)


def finish(cell: Cell, folder: Path) -> None:
    run = create(cell_folder(cell, folder), "student", cell.config)
    run.update_status(state="finished", result=RESULT)


@pytest.mark.parametrize(
    ("machines", "device", "jobs", "wanted"),
    [
        ([{"CPU": 8.0}], "auto", None, {"num_cpus": 8}),
        ([{"CPU": 8.0}], "cpu", 3, {"num_cpus": 2}),
        ([{"CPU": 8.0}], "cpu", 20, {"num_cpus": 1}),
        ([{"CPU": 8.0}, {"CPU": 4.0}], "auto", None, {"num_cpus": 4}),
        ([{"CPU": 8.0}, {"CPU": 4.0}], "auto", 1, {"num_cpus": 4}),
        ([{"CPU": 8.0}, {"CPU": 4.0}], "auto", 6, {"num_cpus": 2}),
        ([{"CPU": 0.0}, {"CPU": 4.0}, {}], "auto", None, {"num_cpus": 4}),
        ([{"CPU": 16.0, "GPU": 4.0}], "auto", None, {"num_gpus": 1, "num_cpus": 4}),
        ([{"CPU": 16.0, "GPU": 4.0}], "cuda", 2, {"num_gpus": 1, "num_cpus": 4}),
        ([{"CPU": 16.0, "GPU": 4.0}], "cpu", 2, {"num_cpus": 8}),
        ([{"CPU": 64.0}, {"CPU": 6.0, "GPU": 4.0}], "auto", 9, {"num_gpus": 1, "num_cpus": 1}),
        ([{"CPU": 2.0, "GPU": 4.0}], "auto", None, {"num_gpus": 1, "num_cpus": 0}),
    ],
)
def test_what_a_cell_asks_for(
    machines: list[dict[str, float]], device: str, jobs: int | None, wanted: dict[str, int]
) -> None:
    assert share(machines, device, jobs) == wanted
    with pytest.raises(ConfigError, match="offers no cores"):
        share([{"CPU": 0.0}, {}], "cpu", None)


def test_a_cell_is_the_same_command_as_elsewhere(
    ray: FakeRay, cell: Cell, stop: StopRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    finish(cell, tmp_path / "out")
    ray.result = ""
    assert launcher(ray, Path("out"), stop, jobs=2).run(cell) == ""
    home = tmp_path / "out" / "cells" / "method=kd_s0"
    command = ["distill", "--recipe", str(home / "cell.toml"), "--runs-dir", str(home)]
    assert ray.calls == [
        (
            cell_process.run_in_folder,
            *([*command, "--resume", "auto"], str(home), "cell.log", str(tmp_path)),
        )
    ]
    assert ray.asked == [{"num_cpus": 4, "max_retries": 1}]
    assert (home / "cell.toml").is_file()


def test_what_went_wrong_is_told(
    ray: FakeRay, cell: Cell, stop: StopRequest, tmp_path: Path
) -> None:
    run = launcher(ray, tmp_path, stop).run
    ray.result = "exit code 1: it broke"
    assert run(cell) == "exit code 1: it broke"
    ray.result = RayError("the worker died.\nand more")
    assert run(cell) == "lost by Ray: the worker died"
    ray.result = RayError("")
    assert run(cell) == "lost by Ray: RayError"
    ray.result = TaskCancelledError()
    assert run(cell) == "not started"
    ray.result = ""
    assert "is the folder shared?" in run(cell)
    (tmp_path / "cells" / "method=kd_s0" / "cell.toml").unlink()
    (tmp_path / "cells" / "method=kd_s0").rmdir()
    (tmp_path / "cells").rmdir()
    (tmp_path / "cells").write_text("a file")
    assert "can't be written" in run(cell)


def test_a_stop_cancels_once_and_waits_for_the_end(
    ray: FakeRay, cell: Cell, stop: StopRequest, tmp_path: Path
) -> None:
    turns: list[int] = []

    def on_wait() -> None:
        turns.append(len(ray.cancelled))
        if len(turns) == 2:
            stop.signal = 15
        if len(turns) == 5:
            ray.result = "exit code 143: saved"

    ray.on_wait = on_wait
    assert launcher(ray, tmp_path, stop).run(cell) == "exit code 143: saved"
    assert turns == [0, 0, 1, 1, 1]
    assert ray.cancelled == ["task 1"]
    assert launcher(ray, tmp_path, stop).run(cell) == "not started"
    assert len(ray.calls) == 1


def test_a_worker_finds_plug_ins_from_the_folder_of_the_command(tmp_path: Path) -> None:
    here = tmp_path / "here"
    (here / "found_from_here").mkdir(parents=True)
    (here / "found_from_here" / "__init__.py").touch()
    own = ["methods", "--plugin", "found_from_here"]
    assert cell_process.run_in_folder(own, str(tmp_path), "cell.log", str(here)) == ""
    said = cell_process.run_in_folder(own, str(tmp_path), "cell.log", str(tmp_path / "gone"))
    assert "exit code 2" in said
    assert "no such module" in said
    said = cell_process.run_in_folder(own, str(tmp_path / "elsewhere"), "cell.log", "/")
    assert "on a path that all machines share" in said and socket.gethostname() in said


@pytest.mark.parametrize("address", ["there", "there:", ":1", "there:port", "there:99999"])
def test_an_address_is_auto_or_host_and_port(address: str) -> None:
    with pytest.raises(ConfigError, match="write auto or HOST:PORT"), connected(address):
        raise AssertionError


def test_nothing_at_the_address() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # taken, but nothing listens
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(ConfigError, match="no Ray cluster to use there") as error:
            launchers.check_address(address)
    assert error.value.exit_code == 2


def test_without_ray_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(ConfigError, match=r"install tser-cli\[ray\]") as error,
        connected("auto"),
    ):
        raise AssertionError
    assert error.value.exit_code == 2


def test_a_cluster_is_left_at_the_end_and_signals_stay_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[Any] = []

    def init(**options: Any) -> None:
        done.append(options["address"])
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as Ray takes it over

    nodes = [{"Alive": True, "Resources": {"CPU": 2.0}}, {"Alive": False, "Resources": {}}]
    fake = SimpleNamespace(init=init, nodes=lambda: nodes, shutdown=lambda: done.append("left"))
    monkeypatch.setitem(sys.modules, "ray", fake)
    before = signal.getsignal(signal.SIGTERM)
    with connected("auto") as cluster:
        assert signal.getsignal(signal.SIGTERM) is before
        assert cluster.machines == [{"CPU": 2.0}]
    assert done == ["auto", "left"]

    def refuse(**options: Any) -> None:
        raise RuntimeError("Version mismatch\nmore")

    fake.init = refuse
    with pytest.raises(ConfigError, match=r"there: Version mismatch\. Start"), connected("auto"):
        raise AssertionError


IN_A_CLUSTER = """
import subprocess, sys, time
from pathlib import Path
import ray
from tser_cli.engine.ablation import cell_process as bound

folder = sys.argv[1]
WAITS = (
    "import signal, sys, time; from pathlib import Path\\n"
    "def save(*rest): time.sleep(0.5); Path('saved').touch(); sys.exit(143)\\n"
    "signal.signal(signal.SIGTERM, save); Path('ready').touch()\\n"
    "while True: time.sleep(0.01)"
)

def waiting_cell():
    begin = subprocess.Popen
    def popen(command, **options):
        return begin([sys.executable, "-c", WAITS], **options)
    bound.subprocess.Popen = popen
    return bound.run_in_folder([], folder, "stopped.log", folder)

ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
task = ray.remote(num_cpus=1, max_retries=0)(bound.run_in_folder)
print([ray.get(task.remote(["--version"], folder, "right.log", folder))])
print([ray.get(task.remote(["--nonsense"], folder, "wrong.log", "/nowhere")).split(":")[0]])
own = ["methods", "--plugin", "mine_on_ray"]
print([ray.get(task.remote(own, folder, "plugin.log", folder))])
cell = ray.remote(num_cpus=1, max_retries=0)(waiting_cell).remote()
while not Path(folder, "ready").exists():
    assert not ray.wait([cell], timeout=0.1)[0], ray.get(cell)
ray.cancel(cell)
print([ray.get(cell).split(":")[0]], Path(folder, "saved").exists())
ray.shutdown()
"""


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
@pytest.mark.integration
def test_a_worker_of_ray_runs_cells_and_a_cancelled_one_saves_first(tmp_path: Path) -> None:
    (tmp_path / "mine_on_ray").mkdir()
    (tmp_path / "mine_on_ray" / "__init__.py").touch()
    program = [sys.executable, "-c", IN_A_CLUSTER, str(tmp_path)]
    # ray.init would leave a token in the home folder
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    said = subprocess.run(program, capture_output=True, text=True, env=environment)
    assert said.returncode == 0, said.stderr
    assert said.stdout.splitlines() == [
        "['']",
        "['exit code 2']",
        "['']",
        "['exit code 143'] True",
    ]
    assert (tmp_path / "right.log").read_text().startswith("tser ")
