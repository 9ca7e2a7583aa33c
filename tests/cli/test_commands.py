"""Settings from flags and recipes, ablations, runs from anybody, and networks from elsewhere."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.command import Invoke, call
from tser_cli.cli import commands, options
from tser_cli.engine.ablation.folder import AblationFolder
from tser_cli.engine.ablation.grid import Request
from tser_cli.engine.commands import ablate as ablate_command
from tser_cli.engine.commands.ablate import AblationResult
from tser_cli.engine.runs import students
from tser_cli.report.comparison import CellStatistics
from tser_cli.settings import registry
from tser_cli.settings.options import DistillRequest

RECIPE = '[method]\nname = "tser"\nentropy_weight = 0.1\n'


def test_weights_that_are_left_out_are_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(RECIPE)
    expected = f"recipe {file}: method.entropy_weight = 0.1: tser's, left out for ce\n"
    for rank, said in (("", expected), ("0", expected), ("1", "")):
        monkeypatch.delenv("RANK", raising=False)
        if rank:
            monkeypatch.setenv("RANK", rank)
        config = commands.training_config("student", DistillRequest(method="ce", recipe=str(file)))
        assert config.method.entropy_weight == 0.0
        assert capsys.readouterr() == ("", said)
    # a teacher is trained by cross-entropy, whatever the method
    commands.training_config("teacher", DistillRequest(method="ce", recipe=str(file)))
    assert capsys.readouterr() == ("", "")


CELL = CellStatistics({"method.name": "ce"}, "accuracy", 1, 0.5, None, is_baseline=True)


@pytest.mark.parametrize(
    ("failures", "code"), [((), 0), (("method=ce, seed 1: exit code 1: it broke",), 1)]
)
def test_failed_cells_are_an_error_after_the_table(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    failures: tuple[str, ...],
    code: int,
) -> None:
    def run(request: Request, place: AblationFolder, progress: Any) -> AblationResult:
        return AblationResult(place.folder, request, [CELL], (), failures)

    monkeypatch.setattr(ablate_command, "ablate", run)
    words = ["--vary", "method=ce,kd", "--seeds", "2", "--output", tmp_path / "ablation"]
    assert call("ablate", *words) == code
    captured = capsys.readouterr()
    assert "ablation: accuracy" in captured.out
    assert "written: " in captured.out
    told = "1 of 4 runs failed; the same command tries them again:\nmethod=ce, seed 1: exit code 1"
    assert (told in captured.err) == bool(failures)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `tser ablate --dry-run` would have planned."""
    found: list[Any] = []

    def plan(request: Request, place: AblationFolder, options: Any) -> Any:
        found.append(request)
        raise SystemExit(0)

    monkeypatch.setattr(ablate_command, "plan_ablation", plan)
    return found


def test_every_option_of_a_training_reaches_the_cells(tser: Invoke, asked: list[Any]) -> None:
    line = (
        "ablate --dry-run --vary ce_weight=1,2 --seeds 2 -T 3 --student resnet20 --method kd --lr "
        "0.5 --temperature 3 --batch-size 8 --accumulate 2 --precision fp32 --energy-budget 50% "
        "--checkpoint-every 1epoch --deterministic --recipe digits/resnet18_tser --device cpu"
    )
    assert tser(*line.split())[0] == 0
    request = asked[0]
    assert [cell.seed for cell in request.cells] == [0, 0, 1, 1]
    assert [cell.config.method.ce_weight for cell in request.cells] == [1, 2, 1, 2]
    for cell in request.cells:
        flat = cell.config.flat()
        assert (flat["model.timesteps"], flat["model.student"]) == (3, "resnet20")
        assert (flat["method.name"], flat["method.temperature"]) == ("kd", 3)
        assert (flat["optimizer.lr"], flat["training.batch_size"]) == (0.5, 8)
        assert (flat["training.accumulate"], flat["training.precision"]) == (2, "fp32")
        assert (flat["energy.budget"], flat["training.deterministic"]) == ("50%", True)
    assert tser("ablate", "--dry-run", "--vary", "method=ce,kd", "--seed", "7")[0] == 0
    assert [cell.seed for cell in asked[1].cells] == [7, 7]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--vary temperature=1,2 --temperature 3", "--temperature and --vary temperature: "),
        ("--vary T=1,2 -T 3", "-T and --vary timesteps: "),
        ("ablations/digits_rivals --method kd", "--method and [ablation] vary method: "),
        ("--vary method=ce,kd --seed 1 --seeds 2", "--seed and --seeds: give one of them"),
        ("x --recipe y --vary method=ce,kd", "the recipe before the options and --recipe: "),
        ("--vary method=ce,kd --resume must", "--resume must: in runs/ablations/digits_"),
    ],
)
def test_what_is_varied_is_not_given_too(tser: Invoke, line: str, said: str) -> None:
    code, out, err = tser("ablate", "--dry-run", *line.split())
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {said}")


def make(name: str, config: str = "[training]\nseed = 0\n", **status: Any) -> Path:
    folder = Path("runs", "student", "digits", name)
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(config)
    result = {"accuracy": 0.5, "images": 100, "method": "tser"}
    stated = {"kind": "student", "state": "finished", "finished": "2025-01-01T00:00:00+00:00"}
    (folder / "status.json").write_text(json.dumps({**stated, "result": result, **status}))
    return folder


def test_the_list(tser: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    assert tser("runs") == (0, "no such run under runs\n", "")
    make("a", data={"events": "simulated from x"})
    make("b", result={"accuracy": 0.25})
    code, out, err = tser("runs", "--sort", "accuracy")
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines() if line.strip()]
    assert [line[0] for line in lines[2:]] == ["b", "a"]
    assert "25.00" in lines[2] and "simulated" in lines[3]
    assert tser("runs", "run=c")[1] == "no such run under runs\n"
    # into a pipe nothing is left out
    monkeypatch.delenv("COLUMNS")
    make("a" * 50)
    _, out, _ = tser("runs")
    assert "size" in out and "no room" not in out and "a" * 50 in out


def test_the_list_as_json(tser: Invoke) -> None:
    make("a")
    make("\x1b[31mred\n", state="running", host="there")
    code, out, _ = tser("runs", "--json")
    found = {entry["name"]: entry for entry in json.loads(out)}
    assert code == 0
    assert (found["a"]["accuracy"], found["a"]["state"]) == (0.5, "finished")
    assert found["a"]["folder"] == str(Path("runs/student/digits/a"))
    assert found["\x1b[31mred\n"]["state"] == "running"
    assert "\x1b" not in out  # written as an escape


@pytest.mark.parametrize("word", ["methd=x", "kd", "--sort=x"])
def test_bad_filters_are_one_message(tser: Invoke, word: str) -> None:
    code, out, err = tser("runs", word)
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1


def test_removing_asks_first(tser: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    def typed(answer: str) -> None:
        stdin = SimpleNamespace(isatty=lambda: True, readline=lambda: f"{answer}\n")
        monkeypatch.setattr(sys, "stdin", stdin)

    folder = make("a")
    for answer in ("n", "", "yes, please"):
        typed(answer)
        code, out, err = tser("runs", "remove", "a")
        assert (code, out) == (1, "")
        assert err.splitlines()[0].startswith(f"  {folder} (finished, ")
        assert err.splitlines()[1:] == [
            "Remove this run with all files? [y/N]",
            "nothing was removed",
        ]
        assert folder.is_dir()
    typed("y")
    code, _, err = tser("runs", "remove", "latest")
    assert code == 0
    assert err.splitlines()[-1] == f"removed: {folder}"
    assert not folder.exists()


def test_nobody_to_ask(tser: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: False))
    first, second = make("a"), make("b")
    code, _, err = tser("runs", "remove", "a", "b")
    assert code == 2
    assert "Remove these 2 runs with all files? There is no terminal to ask in; add --yes" in err
    assert first.is_dir() and second.is_dir()
    assert tser("runs", "remove", "a", "b", "--yes")[0] == 0
    assert not first.exists() and not second.exists()


@pytest.mark.parametrize("names", [(), ("nothing",), ("../..",)])
def test_nothing_to_remove(tser: Invoke, names: tuple[str, ...]) -> None:
    make("a")
    code, _, err = tser("runs", "remove", *names, "--yes")
    assert code == 2
    assert err.startswith("error: ")
    assert Path("runs/student/digits/a").is_dir()


def test_two_runs_side_by_side(tser: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    first = make("a")
    make("b", config="[training]\nseed = 1\n[optimizer]\nlr = 0.5\n")
    code, out, err = tser("compare", str(first), "b")
    assert (code, err) == (0, "")
    assert "A  runs/student/digits/a" in out and "B  runs/student/digits/b" in out
    assert ["optimizer.lr", "0.1", "0.5"] in [line.split() for line in out.splitlines()]
    document = json.loads(tser("compare", "a", "b", "--json")[1])
    assert document["settings"] == [["optimizer.lr", [0.1, 0.5]], ["training.seed", [0, 1]]]
    assert document["runs"][1]["difference"] == 0.0


def test_a_run_is_meant_by_its_beginning_everywhere(tser: Invoke) -> None:
    make("resnet18_a")
    make("resnet18_b")
    Path("x.png").touch()
    verbs = ("evaluate", "energy x.csv", "audit", "quantize", "predict x.png")
    for verb in (*verbs, "export --format onnx --output x.onnx"):
        code, _, err = tser(*verb.split(), "--run", "resnet18")
        assert code == 2
        assert '"resnet18" may mean 2 runs:' in err, verb
    code, _, err = tser("distill", "--teacher", "resnet18_")
    assert code == 2 and "--teacher: unknown model" in err  # those two are no teachers
    code, _, err = tser("distill", "--recipe", "resnet18_")
    assert code == 2 and "may mean 2 runs" in err


def completions(incomplete: str, **values: Any) -> list[str]:
    context = SimpleNamespace(params=values)
    return options.complete_run(context, incomplete)  # type: ignore[arg-type]


def test_a_teacher_is_meant_by_its_beginning(tser: Invoke) -> None:
    folder = Path("runs", "teacher", "digits", "vgg11_s0")
    make("x").rename(Path("moved"))
    folder.parent.mkdir(parents=True)
    Path("moved").rename(folder)
    (folder / "status.json").write_text('{"kind": "teacher", "state": "stopped"}')
    for name in ("vgg11_", "vgg11_s0"):
        code, _, err = tser("distill", "--teacher", name, "--dry-run")
        assert code == 2
        assert f"run {folder.resolve()} is stopped, not finished" in err
    code, _, err = tser("distill", "--teacher", "latest")
    assert code == 2 and "there is no finished teacher under runs" in err
    Path("vgg11_").write_text("")
    for name in ("vgg11", "vgg11_:x", "vgg11_"):  # an architecture, a function, a file
        assert commands.meant(name, Path("runs"), registry.MODELS, "teacher") == name


def test_names_of_runs_are_completed(tser: Invoke) -> None:
    make("resnet18_a")
    make("vgg11")
    assert completions("") == ["latest", "resnet18_a", "vgg11", *students.available()]
    assert completions("digits/") == ["digits/sdt_tiny"]
    assert completions("res") == ["resnet18_a"]
    assert completions("", runs_dir="elsewhere") == ["latest", *students.available()]
    assert options.complete_recipe("digits/resnet34") == ["digits/resnet34_teacher"]


def test_a_name_that_a_shell_acts_on_is_not_completed(tser: Invoke) -> None:
    for name in ("x; touch ran", "$(touch ran)", "x\ntouch ran", "`x`", "x y", "é", "fine"):
        make(name)
    assert completions("") == ["latest", "fine", *students.available()]


EVIL = (
    'plugins = ["evil.py"]\n[model]\nteacher = "evil:build"\ntimesteps = 99999999\n'
    '[method]\nname = "\\u001b]0;owned\\u0007"\n[data]\nname = "[red]\\n\\n\\tx"\n'
)
ODD_NAMES = ("[/red]x", "\x1b[2Jx", "a\nb", "\u202egnp.exe", "-rf", "x" * 200, "\udcff", "latest")


@pytest.fixture
def stranger(tser: Invoke) -> Path:
    """A runs folder of hostile runs, one broken in each way, and a good one; evil.py beside it."""
    Path("evil.py").write_text("import pathlib\npathlib.Path('ran').touch()\n")
    Path("runs").mkdir()
    for name in ODD_NAMES:
        make(name, config=EVIL, model="[bold]\x1b[31m", dataset="\n" * 50, host="\x1b[2J")
    make(
        "huge",
        result={"accuracy": 1e308, "energy_pj": 1e308, "images": 2**62, "teacher": "x" * 10**6},
    )
    make("wrong", result={"accuracy": "1", "energy_pj": [], "per_timestep": {}, "images": True})
    for name, content in (("deep", "[" * 200_000), ("none", ""), ("nan", '{"state": NaN}')):
        (make(name) / "status.json").write_text(content)
    (make("toml") / "config.toml").write_text("a = " + "[" * 100_000)
    pipe = make("pipe") / "environment.json"
    os.mkfifo(pipe)
    folder = make("linked")
    (folder / "status.json").unlink()
    (folder / "status.json").symlink_to("/dev/zero")
    (folder / "loop").symlink_to(folder.resolve())
    (Path("runs") / "student" / "self").symlink_to(Path("runs/student").resolve())
    return make("good")


def test_hostile_runs_are_listed_and_run_nothing(
    tser: Invoke, stranger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    code, out, err = tser("runs")
    assert code == 0
    assert not any(c in out + err for c in "\x1b\x07\u202e")
    (good,) = [line.split() for line in out.splitlines() if line.startswith("  good ")]
    assert good[good.index("finished") :][:3] == ["finished", "50.00", "%"]
    assert sum("damaged" in line for line in out.splitlines()) == 6
    assert all(line.startswith("warning: ") for line in err.splitlines() if "is damaged" in line)
    assert not Path("ran").exists()


def test_hostile_runs_are_compared_and_run_nothing(
    tser: Invoke, stranger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    folders = [
        f"runs/student/digits/{name}" for name in (*ODD_NAMES, "huge", "wrong", "deep", "toml")
    ]
    code, out, err = tser("compare", str(stranger), *folders)
    assert code == 0, err
    assert not any(c in out + err for c in "\x1b\x07\u202e")
    assert json.loads(tser("compare", str(stranger), *folders, "--json")[1])["settings"]
    assert not Path("ran").exists()


def test_a_hostile_run_is_measured_by_no_code_of_its_own(tser: Invoke, stranger: Path) -> None:
    for name in ("[/red]x", "huge", "wrong", "toml", "pipe"):
        code, _, err = tser("evaluate", "--run", f"runs/student/digits/{name}")
        assert code == 2
        assert "Traceback" not in err
    assert not Path("ran").exists()


MODULE = """
from torch import nn
from spikingjelly.activation_based import layer, neuron

class Net(nn.Module):
    def __init__(self, pool):
        super().__init__()
        self.conv1 = layer.Conv2d(1, 4, 3, step_mode="m")
        self.act1 = neuron.IFNode(0.1, step_mode="m")
        self.pool = layer.AvgPool2d(2, step_mode="m") if pool else nn.Identity()
        self.conv2 = layer.Conv2d(4, 4, 3, step_mode="m")
        self.act2 = neuron.IFNode(0.01, step_mode="m")
        self.fc = layer.Linear(4 if pool else 64, 3, step_mode="m")

    def forward(self, x):
        return self.fc(self.act2(self.conv2(self.pool(self.act1(self.conv1(x))))).flatten(2))

def build(pool=False):
    import torch
    torch.manual_seed(0)
    return Net(pool)
"""


@pytest.fixture
def theirs(tser: Invoke, tmp_path: Path, nothing_added: None) -> Invoke:
    """Call the command line in a folder with a module: (exit code, output, messages)."""
    (tmp_path / "theirs.py").write_text(MODULE)
    return tser


NETWORK = ("--network", "theirs:build", "--input", "1,8,8", "-T", "3")


def test_energy_tells_what_feeds_what_and_what_is_not_counted(
    theirs: Invoke, tmp_path: Path
) -> None:
    arguments = ("--conventions", "--fair-rival", "--arg", "pool=True", "--match", "1mJ")
    code, out, _ = theirs("energy", "r.csv", *NETWORK, *arguments)
    assert code == 0
    assert "layout: time-first, T = 3; fed with random numbers of 1,8,8" in out
    assert "fed with real: conv1, conv2" in out
    assert "fed with spikes: fc" in out
    assert "not counted, of the dense FLOP: avg_pool2d" in out
    assert "spikingjelly" in out
    assert "1mJ: no convention comes within 5 % of it" in out
    assert "arithmetic alone: " in out and "with memory (Lemaire et al. 2022): " in out
    assert "activations of 2 bits" in out
    assert {path.name for path in tmp_path.glob("r*")} == {"r.csv", "r.json", "r_conventions.csv"}


def test_energy_of_a_network_writes_what_was_asked_for(theirs: Invoke, tmp_path: Path) -> None:
    before = set(tmp_path.iterdir())
    code, out, err = theirs("energy", *NETWORK, "--conventions")
    assert (code, "spikingjelly" in out, "written:" in out) == (0, True, False), err
    assert {path for path in set(tmp_path.iterdir()) - before if path.suffix} == set()
    assert theirs("energy", "r.csv", *NETWORK, "--figures")[0] == 0
    drawn = {"r.csv", "r.json", "r_by_layer.png", "r_by_layer.svg"}
    assert {path.name for path in tmp_path.glob("r*")} == drawn


def test_audit_ends_with_4_where_something_is_wrong(theirs: Invoke) -> None:
    code, out, _ = theirs("audit", *NETWORK, "--arg", "pool=True")
    assert code == 4
    assert any("conv2 1 of 1 " in " ".join(line.split()) for line in out.splitlines())
    code, out, _ = theirs("audit", *NETWORK)
    assert code == 0
    assert "theirs:build: clean" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("audit", "-T", "4"), "-T: only with --network"),
        (("energy", "r.csv", *NETWORK, "--data", "x.npy"), "with one of them"),
        (("energy", "r.txt", *NETWORK), "call it r.csv"),
        (("energy", "r.csv", *NETWORK, "--match", "many"), "is no energy"),
        (("energy", "r.csv", *NETWORK, "--profile", "horowitz-45nm-int8"), "--assume-int8"),
    ],
)
def test_what_does_not_fit_is_one_message(
    theirs: Invoke, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    code, out, err = theirs(*arguments)
    assert code == 2
    assert message in err
    assert out == ""
    assert "Traceback" not in err
    assert not list(tmp_path.glob("r.*"))
