"""What can be made to go wrong inside a run; `zygote.py` installs it before the run begins.

{"at": "write", "number": 3, "do": "SIGKILL"}: send a signal at the third such moment; to the whole
process group with "group": true, and "later": seconds after it. Moments:
    step, evaluate, teach    the start of a training step; a batch of an evaluation, which counts
                             operations too; one of the teacher's logits where they are kept
    write, fsync, rename, prune    in the folder of checkpoints; a write stops half way
    model.safetensors, metrics.csv, ...    the rename of a new file to this name
{"nan": "loss" or "gradient", "step": 3}: not a number at that step.
{"limit": bytes}: no file may grow beyond (RLIMIT_FSIZE).
{"closed": folder, "uid": n}: from the first step on, go on as that user, who may not write there.
{"sleep": seconds}: every training step takes as long.
{"float64": true}: train in double precision, norms in eval mode, and print the loss of each step.
{"watch": true}: write the resident memory and the number of open files at every training step.
{"lost_image": true}: the second batch of images can't be read.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHECKPOINTS = "checkpoints"
TRAINED, TESTED = 162, 41  # images: nine steps an epoch, and a test set that nothing divides


class Moments:
    """Counts moments by name, and sends this process (or its group) a signal at the chosen ones."""

    def __init__(self, faults: list[dict[str, Any]]) -> None:
        self.counts: Counter[str] = Counter()
        self.faults = {(f["at"], f["number"]): f for f in faults if "at" in f}

    def due(self, name: str) -> Callable[[], None] | None:
        """What to call now, if this moment was chosen."""
        self.counts[name] += 1
        fault = self.faults.get((name, self.counts[name]))
        return None if fault is None else lambda: self.strike(fault)

    def strike(self, fault: dict[str, Any]) -> None:
        number = getattr(signal, fault["do"])
        send, target = (os.killpg, 0) if fault.get("group") else (os.kill, os.getpid())
        if "later" in fault:
            timer = threading.Timer(fault["later"], send, (target, number))
            timer.daemon = True
            timer.start()
        else:
            send(target, number)

    def pass_by(self, name: str) -> None:
        if act := self.due(name):
            act()


class HalfWritten:
    """A stream whose next write stops half way, at a signal."""

    def __init__(self, stream: Any, act: Callable[[], None]) -> None:
        self.stream, self.act = stream, act

    def __enter__(self) -> HalfWritten:
        return self

    def __exit__(self, *error: object) -> None:
        self.stream.close()

    def write(self, content: bytes) -> None:
        self.stream.write(content[: len(content) // 2])
        self.stream.flush()
        self.act()
        self.stream.write(content[len(content) // 2 :])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def break_disk(moments: Moments) -> None:
    """Let the moments of a save come by."""
    path_open, path_replace, path_unlink, fsync = Path.open, Path.replace, Path.unlink, os.fsync

    def opened(self: Path, mode: str = "r", *args: Any, **more: Any) -> Any:
        stream = path_open(self, mode, *args, **more)
        writes = mode == "xb" and self.parent.name == CHECKPOINTS
        act = moments.due("write") if writes else None
        return HalfWritten(stream, act) if act else stream

    def replaced(self: Path, target: Any) -> Any:
        if self.parent.name == CHECKPOINTS:
            moments.pass_by("rename")
        elif self.suffix == ".part":
            moments.pass_by(Path(target).name)
        return path_replace(self, target)

    def unlinked(self: Path, missing_ok: bool = False) -> None:
        if self.parent.name == CHECKPOINTS and self.name.startswith("step-"):
            moments.pass_by("prune")
        path_unlink(self, missing_ok)

    def synced(handle: int) -> None:
        if CHECKPOINTS in str(Path(f"/proc/self/fd/{handle}").readlink()):
            moments.pass_by("fsync")
        fsync(handle)

    Path.open, Path.replace, Path.unlink = opened, replaced, unlinked  # type: ignore[method-assign, assignment]
    os.fsync = synced  # type: ignore[assignment]


def before(module: Any, name: str, act: Callable[..., None]) -> None:
    """Call `act` with the arguments of `module.name` before each of its calls."""
    original = getattr(module, name)

    def wrapped(*args: Any, **more: Any) -> Any:
        act(*args, **more)
        return original(*args, **more)

    setattr(module, name, wrapped)


def inject_nan(fault: dict[str, Any]) -> None:
    """Spoil the loss, or the gradient of one layer, of one training step of one process."""
    import math

    from tser_cli.engine.training import loop

    steps = Counter[str]()

    def spoil(job: Any, *args: Any) -> None:
        steps["done"] += 1
        if steps["done"] != fault["step"]:
            return
        if fault["nan"] == "gradient":
            parameter = dict(job.task.named_parameters())["layer2.0.conv1.weight"]
            parameter.register_hook(lambda gradient: gradient * math.nan)
        else:
            method = job.task.method
            job.task.method = lambda *inputs: {
                name: term * math.nan for name, term in method(*inputs).items()
            }

    before(loop, "train_step", spoil)


def in_double_precision() -> None:
    import torch

    from tser_cli.data import transforms
    from tser_cli.engine.runs import networks
    from tser_cli.engine.training import loop

    build, read = networks.build, networks.read
    step, normalise = loop.train_step, transforms.normalise

    def built(*args: Any, **more: Any) -> Any:
        model = build(*args, **more).double()
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.train = lambda mode=True, module=module: module  # type: ignore[method-assign, misc]
                module.training = False
        return model

    def loaded(*args: Any, **more: Any) -> Any:
        found = read(*args, **more)
        found.model.double()
        return found

    def stepped(job: Any, *args: Any) -> Any:
        values = step(job, *args)
        total = job.runtime.sum(values["loss"].detach().double())
        if job.runtime.is_main:
            sys.stdout.write(f"loss {float(total) / job.runtime.world!r}\n")
        return values

    networks.build, networks.read, loop.train_step = built, loaded, stepped
    transforms.normalise = lambda *args: normalise(*args).double()
    torch.set_default_dtype(torch.float64)  # of the zeros that a new network is tried on
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]


def hurry() -> None:
    """Let a run have few images, and leave out the drawing of figures."""
    from matplotlib.figure import Figure

    from tser_cli.data.base import Dataset, TensorSource
    from tser_cli.engine.runs import opened

    load = opened.load_dataset

    def first(source: Any, images: int) -> Any:
        return TensorSource(source.images_MCHW[:images], source.labels[:images])

    def loaded(config: Any) -> Any:
        found = load(config)
        if found.spec.name != "digits":
            return found
        return Dataset(found.spec, first(found.train, TRAINED), first(found.test, TESTED))

    opened.load_dataset = loaded
    Figure.savefig = (  # type: ignore[method-assign]
        lambda self, stream, **more: stream.write(b'<svg xmlns="http://www.w3.org/2000/svg"/>')
    )


def watch(*step: Any) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    files = len(list(Path("/proc/self/fd").iterdir()))
    sys.stdout.write(f"at step: {pages * resource.getpagesize()} bytes, {files} files\n")


def lose(moments: Moments) -> None:
    from tser_cli.base.errors import DataError

    moments.counts["images"] += 1
    if moments.counts["images"] == 2:
        raise DataError("the image is lost")


def close(folder: Path, uid: int) -> None:
    """Take away all rights to write below `folder`, and root's right to do so all the same."""
    if (folder.stat().st_mode & 0o777) == 0o555:
        return
    for path in (*folder.rglob("*"), folder):
        if path.is_dir():
            path.chmod(0o555)
    if os.getuid() != uid:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)


def install(faults: list[dict[str, Any]]) -> None:
    """Prepare everything that is to go wrong in this process."""
    from tser_cli.data import transforms
    from tser_cli.engine.evaluation import evaluate
    from tser_cli.engine.training import loop, run

    hurry()
    moments = Moments(faults)
    break_disk(moments)
    before(loop, "train_step", lambda *args: moments.pass_by("step"))
    before(evaluate, "answers_of", lambda *args: moments.pass_by("evaluate"))
    before(run, "teach", lambda *args: moments.pass_by("teach"))
    for fault in faults:
        if "nan" in fault:
            inject_nan(fault)
        if "sleep" in fault:
            before(loop, "train_step", lambda *args, s=fault["sleep"]: time.sleep(s))
        if "float64" in fault:
            in_double_precision()
        if "watch" in fault:
            before(loop, "train_step", watch)
        if "lost_image" in fault:
            before(transforms.Pipeline, "__call__", lambda *args: lose(moments))
        if "limit" in fault:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (fault["limit"], fault["limit"]))
        if "closed" in fault:
            before(loop, "train_step", lambda *args, f=fault: close(Path(f["closed"]), f["uid"]))
