"""Attacks by number: the same number is always the same attack on the same ground.

Each is one command line in this process, after something near it was made odd: an argument, a run
folder, an image, a network, the environment.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import re
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import numpy as np
import pytest
import torch

from tser_cli.cli import app

LIMIT = 20  # seconds
SMALL = ("--set", "model.student=resnet20", "--set", "model.timesteps=1")
CODES = (0, 1, 2, 3, 4)  # 4: what audit found
VERBS = (
    *("evaluate", "energy", "audit", "predict", "report"),
    *("distill", "train-teacher", "ablate", "methods", "runs", "compare", "list"),
)
ODD = (
    *("", ".", "..", "/", "[/x]", "[/red]x", "$x_{$", "\x1b[2J", "\udcff", "x" * 300, "é" * 200),
    *("-1", "0", "1e999", "nan", "9" * 400, "0.5", "1,2", "{}", "[[", "/dev/null", "/dev/full"),
    *("x" * 9000, "a=b", "a\nb", "\u202ex", "~nobody", "digits", "resnet20", "tser", "--", "%s"),
)
FLAGS = {
    "evaluate": (
        *("--run", "-T", "--split", "--output"),
        *("--early-exit", "--early-exit-entropy", "--energy-budget"),
    ),
    "energy": ("--run", "--profile", "--output", "--runs-dir", "--device", "--precision"),
    "audit": ("--run", "--runs-dir"),
    "predict": ("--run", "--device", "--output", "--runs-dir", "--early-exit"),
    "distill": (
        "--teacher",
        "--student",
        "-T",
        "--epochs",
        "--lr",
        "--set",
        "--recipe",
        "--resume",
    ),
    "train-teacher": ("--dataset", "--data-dir", "--batch-size", "--set", "--recipe", "--seed"),
    "ablate": (
        *("--vary", "--seeds", "--jobs", "--output", "--baseline", "--set", "--teacher"),
        "--accuracy-margin",
    ),
    "methods": ("--plugin",),
    "runs": ("--sort", "--runs-dir", "--reverse", "remove", "--json", "method=", "seed="),
    "compare": ("--runs-dir", "latest", "run", "runs/student/digits/run"),
    "list": ("--plugin", "recipes", "models", "--json"),
    "report": ("--output", "--images", "--device", "--data-dir", "--runs-dir", "--no-measure"),
}
VARIABLES = {
    "COLUMNS": ("0", "1", "20", "x", "99999"),
    "TERM": ("dumb", "", "nonsense"),
    "MPLBACKEND": ("bogus", "", "Agg"),
    "WORLD_SIZE": ("abc", "1", "-1"),
    "LOCAL_RANK": ("0", "x"),
    "TSER_OPTIMIZER_LR": ("x", "nan", "1e-3", "\udcff"),
    "TSER_NONSENSE": ("1",),
    "TSER_RUNS_DIR": ("\udcff", "x" * 300, "[/x]", "/dev/null"),
    "NO_COLOR": ("1",),
    "FORCE_COLOR": ("1",),
}
JSON = (
    *("[" * 200_000, "{", "[]", "null", '{"state": NaN}', '{"state": ["finished"]}', "\0", ""),
    *('{"kind": "student", "state": "finished", "result": {"accuracy": "x"}}', '{"a": 1e999}'),
    *('{"state": "\\ud800"}', '{"sha256": 1}', '{"checkpoints": [{"file": "../../x"}]}'),
    *('{"plugins": [1, {"adds": 3}]}', '{"teacher": {"source": "/dev/zero"}}'),
)


SUFFIXES = ("safetensors", "nir", "onnx")
MARKUP = "<script>alert(1)</script>"  # what a run says of itself, as it may reach a card
# One network each, found in odd.py; all but the first fail in their own way.
NETWORKS = """
import sys
import torch
from torch import nn

sound = lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 3))


class Odd(nn.Module):
    def __init__(self, act=None):
        super().__init__()
        self.layer, self.act = nn.Linear(8, 3), act

    def forward(self, x):
        return self.act(self.layer(x))


class Mute(Exception):
    def __str__(self):
        raise ValueError("no word")


def fails(error):
    def act(x):
        raise error
    return Odd(act)


def itself():
    network = Odd(torch.relu)
    network.layer.inside = network
    return network


def sparse():
    network = sound()
    network[1].weight = nn.Parameter(network[1].weight.detach().to_sparse())
    return network


made = {
    "sound": sound, "leaves": lambda: fails(SystemExit(0)), "mute": lambda: fails(Mute()),
    "interrupted": lambda: fails(EOFError()), "deep": lambda: Odd(lambda x: made["deep"]()(x)),
    "meta": lambda: sound().to("meta"), "itself": itself, "sparse": sparse,
    "gone": lambda: sys.exit("gone"), "none": lambda: Odd(lambda x: None), "number": lambda: 3,
    "memory": lambda: Odd(lambda x: torch.empty(2**60)), "nan": lambda: Odd(lambda x: x / 0),
    "text": lambda: Odd(lambda x: "x"), "half": lambda: sound().half(),
    "long": lambda: fails(ValueError("x" * 10**6)), "escape": lambda: fails(OSError("\\x1b[2J")),
}
globals().update(made)
"""
NAMES = (
    *("sound",) * 16,
    *("leaves", "mute", "interrupted", "deep", "meta", "itself", "sparse", "gone", "none"),
    *("number", "memory", "nan", "text", "half", "long", "escape", "missing"),
)


TOML = (
    *("a = " + "[" * 100_000, "a." * 100_000 + "b = 1", "[a", "", "name = 3", "\0"),
    *("ac_pj = nan", "ac_pj = 1e999\nname = 'x'", "a = " + "9" * 10_000),
)


class Bomb:
    """A pickle that leaves a file behind where its code is run."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.proof,))


@dataclass(frozen=True)
class Ground:
    """Where attacks happen: a finished run to copy, and an empty folder beside a file to keep."""

    run: Path
    folder: Path

    @property
    def kept(self) -> Path:
        """A file that no attack may change, outside the folder that a command works in."""
        return self.folder.parent / "kept"

    @property
    def proof(self) -> Path:
        """A file that is there once code of an attack was run."""
        return self.folder.parent / "ran"


@dataclass(frozen=True)
class Finding:
    """What an attack brought about: its exit code, and what was wrong ("" where nothing was)."""

    kind: str
    code: int
    wrong: str
    argv: tuple[str, ...] = ()


def attack(number: int, ground: Ground) -> Finding:
    """Carry out an attack on a fresh copy of the run."""
    draw = random.Random(number)
    work = ground.folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    target = work / "runs" / "student" / "digits" / "run"
    shutil.copytree(ground.run, target)
    ground.kept.write_text("kept")
    kinds: dict[str, Callable[..., list[str]]] = {
        "command line": odd_arguments,
        "run folder": damaged_run,
        "image": odd_image,
        "environment": odd_environment,
        "network": odd_network,
    }
    kind, make = list(kinds.items())[number % len(kinds)]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        argv = make(draw, target, ground, patch)
        code, text, wrong = call(argv)
    return Finding(kind, code, wrong or judged(code, text, ground), tuple(argv))


def judged(code: int, text: str, ground: Ground) -> str:
    """Say what is wrong with how a command ended, "" where nothing is."""
    if code not in CODES:
        return f"exit code {code}: {text[-2000:]}"
    if "Traceback" in text:
        return text[-3000:]
    if code and not text.strip():
        return f"exit code {code} without a word"
    if "\x1b[2J" in text:
        return "an escape code reached the terminal"
    if max(map(len, text.splitlines()), default=0) > 10_000 or len(text) > 50_000:
        return f"{len(text)} characters were printed"
    if ground.proof.exists():
        return "code was run"
    if ground.kept.read_text() != "kept":
        return "a file outside was changed"
    if {path.name for path in ground.folder.parent.iterdir()} - {"kept", ground.folder.name}:
        return f"files outside: {sorted(ground.folder.parent.iterdir())}"
    return wrong_export(ground.folder / "work")


def wrong_export(work: Path) -> str:
    """Say what is wrong with the exports in a folder, "" where nothing is."""
    found = {path.name for path in work.glob("out.*")}
    for name in {f"out.{suffix}" for suffix in SUFFIXES} & found:
        if {f"{name}.md", f"{name}.verified.json"} - found:
            return f"{name} has no card"
        raw = re.findall(
            "<script|<img|<b>|javascript:|[\x1b\u202e]", (work / f"{name}.md").read_text()
        )
        if raw:
            return f"raw markup in the card of {name}: {raw}"
    return ""


class Hang(BaseException):
    """The command took longer than the limit."""


def call(argv: list[str]) -> tuple[int, str, str]:
    """Run `tser *argv` here; return the exit code, what it wrote, and an error that escaped."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict", write_through=True)
    code, wrong = 0, ""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(out):
        patch.setattr(sys, "argv", ["tser", *argv])
        try:
            with limited():
                app.main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except Hang:
            wrong = f"not done after {LIMIT} s: {traceback.format_exc()[-2000:]}"
        except BaseException:
            wrong = traceback.format_exc()[-3000:]
    buffer = out.buffer
    assert isinstance(buffer, io.BytesIO)
    return code, buffer.getvalue().decode(errors="replace"), wrong


@contextmanager
def limited() -> Iterator[None]:
    """Raise Hang inside once the limit is over, counted by the processor's time of this process."""

    def raise_hang(number: int, frame: FrameType | None) -> NoReturn:
        raise Hang

    def waited(number: int, frame: FrameType | None) -> None:
        # a pipe that nobody writes to takes no time of the processor
        if time.monotonic() - began > 10 * LIMIT:
            raise Hang

    began = time.monotonic()
    before = signal.signal(signal.SIGPROF, raise_hang), signal.signal(signal.SIGALRM, waited)
    signal.setitimer(signal.ITIMER_PROF, LIMIT)
    signal.setitimer(signal.ITIMER_REAL, LIMIT, LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGPROF, before[0])
        signal.signal(signal.SIGALRM, before[1])


Patch = pytest.MonkeyPatch


def odd_arguments(draw: random.Random, run: Path, ground: Ground, patch: Patch) -> list[str]:
    """A verb with odd values for some of its flags; nothing is trained."""
    verb = draw.choice(VERBS)
    argv = [verb, *(["--dry-run"] if verb in ("distill", "train-teacher", "ablate") else [])]
    for _ in range(draw.randint(0, 3)):
        value = draw.choice(ODD)
        argv += [
            draw.choice(FLAGS[verb]),
            f"optimizer.lr={value}" if draw.random() < 0.2 else value,
        ]
    if draw.random() < 0.3:
        argv.append(draw.choice(ODD))
    return [part.replace("\0", "") for part in argv]


def using(draw: random.Random, run: Path, ground: Ground) -> list[str]:
    """A command that reads the run at `run`."""
    return draw.choice(
        (
            ["evaluate", "--run", str(run)],
            ["evaluate"],
            ["energy", "--run", str(run)],
            ["audit", "--run", str(run)],
            ["predict", "--run", str(run), str(run / "figures")],
            ["report", str(run), "--output", "page.html"],
            ["quantize", "--run", str(run), "--images", "8"],
            ["export", str(run), f"out.{draw.choice(SUFFIXES)}", "--no-verify"],
            ["distill", "--dry-run", "--teacher", str(run), *SMALL],
            ["ablate", "--dry-run", "--vary", "method=ce", "--seeds", "1", *SMALL],
            ["distill", "--resume", "must", "--dry-run", *SMALL],
            ["runs"],
            ["runs", "--json", "method=*"],
            ["compare", str(run), str(ground.run)],
        )
    )


def damaged_run(draw: random.Random, run: Path, ground: Ground, patch: Patch) -> list[str]:
    """One or two files of the run are damaged, or stand for something else."""
    for _ in range(draw.randint(1, 2)):
        files = sorted(path for path in run.rglob("*") if path.is_file() and not path.is_symlink())
        damage(draw, draw.choice(files), ground)
    if draw.random() < 0.2:
        odd = run.with_name(draw.choice(("[red]x", "$x_{$", "\x1b[2J", "\udcff", "é" * 100)))
        run = run.rename(odd)
    return using(draw, run, ground)


def damage(draw: random.Random, path: Path, ground: Ground) -> None:
    """Change one file of a run in one way."""
    content = path.read_bytes()
    kinds: dict[str, Callable[[], Any]] = {
        "cut": lambda: path.write_bytes(content[: draw.randrange(len(content) + 1)]),
        "flip": lambda: path.write_bytes(flipped(draw, content)),
        "json": lambda: path.write_text(draw.choice(JSON)),
        "value": lambda: changed_value(draw, path, content),
        "noise": lambda: path.write_bytes(draw.randbytes(200)),
        "pickle": lambda: path.write_bytes(pickle.dumps(Bomb(ground.proof))),
        "tensors": lambda: path.write_bytes(torch_file(Bomb(ground.proof))),
        "gone": path.unlink,
        "folder": lambda: (path.unlink(), path.mkdir()),
        "pipe": lambda: (path.unlink(), os.mkfifo(path)),
        "link": lambda: (path.unlink(), path.symlink_to(ground.kept)),
    }
    kinds[draw.choice(sorted(kinds))]()


def torch_file(content: Any) -> bytes:
    """A file as torch.save writes it."""
    buffer = io.BytesIO()
    torch.save({"model": content}, buffer)
    return buffer.getvalue()


def flipped(draw: random.Random, content: bytes) -> bytes:
    """`content` with one bit changed."""
    changed = bytearray(content or b"\0")
    changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def changed_value(draw: random.Random, path: Path, content: bytes) -> None:
    """One value of a JSON object becomes another; other files get a line more."""
    document: Any = None
    with suppress(ValueError):
        document = json.loads(content)
    if not isinstance(document, dict) or not document:
        path.write_bytes(content + b"\n\xff,nan,,[x\n")
        return
    values = (None, -1, 1e300, "x", [], {}, True, "\0", "[/x]", 10**400, float("nan"), "\ud800")
    place, key = document, draw.choice(sorted(document))
    while isinstance(place[key], dict) and place[key] and draw.random() < 0.8:
        place = place[key]
        key = draw.choice(sorted(place))
    place[key] = draw.choice((*values, MARKUP, MARKUP))
    path.write_text(json.dumps(document))


def odd_image(draw: random.Random, run: Path, ground: Ground, patch: Patch) -> list[str]:
    """Odd files under the names of images are classified, or are a data set."""
    folder = Path("images")
    for split in ("train/a", "train/b", "test/a", "test/b"):
        (folder / split).mkdir(parents=True)
        for number in range(2):
            write_image(draw, folder / split / f"{number}.png", ground)
    if draw.random() < 0.5:
        return ["predict", "--run", str(run), str(folder / "train" / "a")]
    return ["train-teacher", "--dry-run", "--dataset", "imagefolder", "--data-dir", str(folder)]


def write_image(draw: random.Random, path: Path, ground: Ground) -> None:
    """An image of odd size, mode or content, or no image at all."""
    from PIL import Image

    sound = io.BytesIO()
    size = draw.choice(((8, 8), (1, 1), (2000, 1), (1, 2000), (33, 17)))
    Image.new(draw.choice(("L", "RGB", "RGBA", "P", "1", "I;16")), size).save(sound, "PNG")
    content = sound.getvalue()
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n"
    made = draw.choice(
        (content, content, content[:40], flipped(draw, content), eps, b"", b"GIF89a")
    )
    kind = draw.random()
    if kind < 0.85:
        path.write_bytes(made)
    elif kind < 0.9:
        os.mkfifo(path)
    elif kind < 0.95:
        path.symlink_to(path.parent)
    else:
        path.write_bytes(pickle.dumps(Bomb(ground.proof)))


def odd_network(draw: random.Random, run: Path, ground: Ground, patch: Patch) -> list[str]:
    """A network from elsewhere, sound or not, and odd files for it to read."""
    Path("odd.py").write_text(NETWORKS)
    np.save("x.npy", np.zeros((2, 8, 8), np.float32))
    np.savez("x.npz", a=np.zeros(3))
    torch.save({"weight": torch.zeros(3, 3).to_sparse()}, "x.pt")
    Path("x.toml").write_text(draw.choice(TOML))
    for name in draw.sample(("x.npy", "x.npz", "x.pt", "x.toml", "odd.py"), draw.randint(0, 2)):
        damage(draw, Path(name), ground)
    argv = [draw.choice(("energy", "audit")), "--network", f"odd.py:{draw.choice(NAMES)}"]
    fed = draw.choice((*["8,8"] * 6, "9" * 30, "0", "100000,100000", "x.npy", "x.npz", "x.pt"))
    argv += ["--data" if fed.startswith("x") else "--input", fed]
    argv += ["-T", "2"] * (draw.random() < 0.25)
    if draw.random() < 0.4:
        flag = draw.choice(("--weights", "--plugin", "--profile", "--dataset"))
        if flag != "--profile" or argv[0] == "energy":
            argv += [flag, draw.choice(("x.toml", "x.pt", "x.npy", "odd.py", *ODD[:10]))]
    return argv


def odd_environment(draw: random.Random, run: Path, ground: Ground, patch: Patch) -> list[str]:
    """Odd variables, and a command that is sound else."""
    for name in draw.sample(sorted(VARIABLES), draw.randint(1, 3)):
        value = draw.choice(VARIABLES[name])
        patch.setenv(name, value)
    return draw.choice(
        (["methods"], using(draw, run, ground), ["distill", "--dry-run", "--method", "ce", *SMALL])
    )
