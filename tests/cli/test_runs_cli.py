"""`tser runs` and `tser compare` at the command line, on runs from anybody too."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.command import Invoke
from tser_cli.cli import completion, layers


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
    make("a")
    make("b", result={"accuracy": 0.25})
    code, out, err = tser("runs", "--sort", "accuracy")
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines() if line.strip()]
    assert [line[0] for line in lines[2:]] == ["b", "a"]
    assert "25.00" in lines[2]
    assert tser("runs", "run=c")[1] == "no such run under runs\n"


def test_into_a_pipe_nothing_is_left_out(tser: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    make("a" * 50)
    _, out, _ = tser("runs")
    assert "size" in out and "no room" not in out and "a" * 50 in out


def test_the_list_as_json(tser: Invoke) -> None:
    make("a")
    make("\x1b[31mred\n", state="running", host="there")
    code, out, _ = tser("runs", "--json")
    found = {entry["name"]: entry for entry in json.loads(out)}
    first, other = found["a"], found["\x1b[31mred\n"]
    assert code == 0
    assert (first["name"], first["accuracy"], first["state"]) == ("a", 0.5, "finished")
    assert first["folder"] == str(Path("runs/student/digits/a"))
    assert other["state"] == "running"
    assert "\x1b" not in out  # written as an escape


@pytest.mark.parametrize("word", ["methd=x", "kd", "--sort=x"])
def test_bad_filters_are_one_message(tser: Invoke, word: str) -> None:
    code, out, err = tser("runs", word)
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """`terminal("y")`: somebody types that."""

    def typed(answer: str) -> None:
        stdin = SimpleNamespace(isatty=lambda: True, readline=lambda: f"{answer}\n")
        monkeypatch.setattr(sys, "stdin", stdin)

    yield typed


def test_removing_asks_first(tser: Invoke, terminal: Callable[[str], None]) -> None:
    folder = make("a")
    for answer in ("n", "", "yes, please"):
        terminal(answer)
        code, out, err = tser("runs", "remove", "a")
        assert (code, out) == (1, "")
        assert err.splitlines()[0].startswith(f"  {folder} (finished, ")
        assert err.splitlines()[1:] == [
            "Remove this run with all files? [y/N]",
            "nothing was removed",
        ]
        assert folder.is_dir()
    terminal("y")
    code, _, err = tser("runs", "remove", "latest")
    assert code == 0
    assert err.splitlines()[-1] == f"removed: {folder}"
    assert not folder.exists()


def test_nobody_to_ask(tser: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: False))
    first, second = make("a"), make("b")
    code, _, err = tser("runs", "remove", "a", "b")
    assert code == 2
    assert "Remove these 2 runs with all files? There is nobody to ask; say --yes" in err
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


def test_seeds_side_by_side(tser: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    for seed in range(2):
        make(
            f"a{seed}", config=f"[training]\nseed = {seed}\n", result={"accuracy": 0.5 + seed / 10}
        )
    _, out, _ = tser("compare", "a0", "a1")
    assert "55.00 ± 7.07" in out
    assert "One run each" not in out


def test_a_run_is_meant_by_its_beginning_everywhere(tser: Invoke) -> None:
    make("resnet18_a")
    make("resnet18_b")
    verbs = (
        *("evaluate", "energy x.csv", "audit", "quantize", "predict x.png"),
        "export --format onnx --output x.onnx",
    )
    for verb in verbs:
        code, _, err = tser(*verb.split(), "--run", "resnet18")
        assert code == 2
        assert '"resnet18" may mean 2 runs:' in err, verb
    code, _, err = tser("distill", "--teacher", "resnet18_")
    assert code == 2 and "--teacher: unknown model" in err  # those two are no teachers
    code, _, err = tser("distill", "--recipe", "resnet18_")
    assert code == 2 and "may mean 2 runs" in err


def completions(incomplete: str, **values: Any) -> list[str]:
    context = SimpleNamespace(params=values)
    return completion.complete_run(context, incomplete)  # type: ignore[arg-type]


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
    assert layers.teacher_meant("vgg11", Path("runs")) == "vgg11"  # an architecture
    assert layers.teacher_meant("vgg11_:x", Path("runs")) == "vgg11_:x"  # a function
    Path("vgg11_").write_text("")
    assert layers.teacher_meant("vgg11_", Path("runs")) == "vgg11_"  # a file


def test_names_of_runs_are_completed(tser: Invoke) -> None:
    make("resnet18_a")
    make("vgg11")
    assert completions("") == ["latest", "resnet18_a", "vgg11"]
    assert completions("res") == ["resnet18_a"]
    assert completions("", runs_dir="elsewhere") == ["latest"]
    assert completion.complete_recipe("digits/resnet34") == ["digits/resnet34_teacher"]


@pytest.mark.parametrize(
    "name", ["x; touch ran", "$(touch ran)", "x\ntouch ran", "`x`", "x y", "é"]
)
def test_a_name_that_a_shell_acts_on_is_not_completed(tser: Invoke, name: str) -> None:
    make(name)
    make("fine")
    assert completions("") == ["latest", "fine"]


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
