"""Make a packaged student of a finished run: its weights in half precision, measured as stored.

    python recipes/make_student.py runs/student/digits/NAME digits/ms_resnet_tiny --chosen "..."

It writes recipes/digits/students/ms_resnet_tiny: the folder of a run, with a model card. Weights
and the norms' statistics are rounded to 16 bits; then the test images are shown to the network of
the rounded weights. All figures on the card are of that. --chosen says what selected the run: no
test image may. Paths and the machine of the training are left out. A cell of an ablation was begun
by no command that others can repeat: --command states the one on the card.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from tser_cli.base.files import write_json, write_text
from tser_cli.base.progress import Silent
from tser_cli.engine.commands.export import card_facts
from tser_cli.engine.runs import networks, record, teachers
from tser_cli.engine.runs.folder import MODEL_FILE, PACKAGED, Run
from tser_cli.engine.runs.opened import FinishedRun, keep_images, open_finished, select_run
from tser_cli.engine.training.run import finish, recording_end
from tser_cli.engine.training.task import Task, Trainee
from tser_cli.export import card
from tser_cli.losses.base import load_method
from tser_cli.models.base import parameter_count
from tser_cli.report.words import counted
from tser_cli.settings.config import FLOAT_BITS
from tser_cli.settings.wing_options import ExportRequest

RECIPES = Path(__file__).resolve().parent
LARGEST = 1_000_000  # bytes of the weights
OF_TRAINING = "metrics.csv"
KEPT = (
    *("config.toml", MODEL_FILE, "per_timestep.csv", "energy.csv", "energy.json", OF_TRAINING),
    *("environment.json", "status.json", "README.md", "split.json"),
)
OF_RESULT = ("best_validation_accuracy", "teacher_train_accuracy", "seconds")
OF_MACHINE = {"pid", "host", "updated"}  # in status.json
LEARNED = ("tser", "python", "packages", "seed", "threads", "command")  # in environment.json


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("name", help="DATASET/NAME")
    parser.add_argument("--chosen", required=True, help="what selected this run, in a sentence")
    parser.add_argument("--command", help="what trains it again, where the run's own would not")
    asked = parser.parse_args(arguments)
    dataset, student = asked.name.split("/")
    target = RECIPES / dataset / "students" / student
    with tempfile.TemporaryDirectory() as place:
        run = Run(Path(place) / "student" / dataset / f"packaged_{student}")
        run.folder.mkdir(parents=True)
        opened = open_finished(select_run(asked.run, Path("runs")), {}, Silent())
        if opened.config.model.weight_bits != FLOAT_BITS:
            parser.error("integer weights would not stay integers: name the run they came from")
        parameters = measure(opened, run)
        if run.model_file.stat().st_size > LARGEST:
            parser.error(
                f"the weights have {run.model_file.stat().st_size:,} bytes, not {LARGEST:,}"
            )
        describe(opened.run, run, {"name": asked.name, "parameters": parameters}, asked.command)
        if stated := [word for word in run.environment()["command"] if word.startswith("/")]:
            parser.error(f"{stated[0]} is on this machine alone: give --command")
        again = open_finished(run, {"data.dir": opened.config.data.dir}, Silent())
        write_text(run.folder / "README.md", readme(again, asked.name, asked.chosen, parameters))
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for name in KEPT:
            if (run.folder / name).exists():
                shutil.copyfile(run.folder / name, target / name)
    print(f"written: {target}")


def measure(opened: FinishedRun, run: Run) -> int:
    """Write the rounded network and its figures on test images into `run`; count parameters."""
    model, config, context = opened.loaded.model, opened.config, opened.context
    model.load_state_dict({name: halved(value) for name, value in model.state_dict().items()})

    def halve(module: Any, state: dict[str, torch.Tensor], prefix: str, metadata: Any) -> None:
        state.update({name: halved(value) for name, value in state.items()})

    model.register_state_dict_post_hook(halve)  # so that the file holds them as they are measured
    teacher = teachers.read_run_teacher(opened.run, context.dataset.spec)
    if teacher is not None:
        context.runtime.place(networks.freeze(teacher.model))
    teacher_name = teachers.teacher_name(opened.run) or config.model.teacher
    run.write_settings(config.updated({"data.dir": "", "model.teacher": teacher_name}))
    shutil.copyfile(opened.run.folder / "environment.json", run.folder / "environment.json")
    run.update_status(kind="student", started=opened.run.status()["started"])
    keep_images(run, context)
    made = Task(
        model,
        Trainee(model),
        load_method(config.method.name),
        config.method,
        config.model.timesteps,
    )
    with recording_end(run, context.runtime, context.progress) as stop:
        finish(run, context, made, [], teacher, stop)
    return parameter_count(model.requires_grad_(True))


def halved(value: torch.Tensor) -> torch.Tensor:
    """Return `value` in half precision; whole numbers, such as a norm's counter, stay."""
    return value.half() if value.is_floating_point() else value


def describe(before: Run, run: Run, packaged: dict[str, Any], command: str | None) -> None:
    """Leave what is true on any machine, and of the training, in the JSON files of `run`."""
    was, status = before.status(), run.status()
    learned = {key: was[record.RESULT][key] for key in OF_RESULT if key in was[record.RESULT]}
    status = {key: value for key, value in status.items() if key not in OF_MACHINE}
    status = {**status, "epoch": was["epoch"], "finished": was["finished"]}
    write_json(run.folder / "status.json", {**status, "result": {**status["result"], **learned}})
    environment = before.environment()
    kept = {key: environment[key] for key in LEARNED} | {PACKAGED: packaged}
    words = iter(environment["command"][1:])
    # where runs lie, and how much is said, changes no result
    stated = [word for word in words if not (word == "--runs-dir" and next(words))]
    kept["command"] = ["tser", *(word for word in stated if word not in ("--quiet", "-q"))]
    kept["command"] = shlex.split(command) if command else kept["command"]
    if taught := environment.get(teachers.TEACHER):
        kept[teachers.TEACHER] = {**taught, "source": ""}
    write_json(run.folder / "environment.json", kept)
    shutil.copyfile(before.folder / OF_TRAINING, run.folder / OF_TRAINING)


def readme(opened: FinishedRun, name: str, chosen: str, parameters: int) -> str:
    """Return the model card, as Markdown."""
    run = opened.run
    request = ExportRequest(output=Path(MODEL_FILE), format_name="safetensors")
    facts, result = card_facts(opened, request), record.find_result(run)
    assert result is not None, "it was just measured"
    environment, dataset = run.environment(), name.split("/")[0]
    command = shlex.join(environment["command"])
    taught = f"distilled from {facts.teacher}" if facts.teacher else "trained without a teacher"
    sections = {
        f"# {name}": [
            f"{facts.verdict}.",
            "",
            f"A spiking {opened.loaded.name} for {dataset}, {taught} by the method "
            f"`{facts.method}` ({facts.source}), T = {result.timesteps} time steps, "
            f"{parameters:,} parameters. Used by its name: `tser energy --run {name}`.",
            "",
            f"`{MODEL_FILE}` has {run.model_file.stat().st_size:,} bytes, SHA-256 "
            f"`{opened.loaded.sha256}`. Its weights and the statistics of its norms are stored in "
            "half precision, and computed with in single precision. All figures here are of the "
            "file as it is stored.",
        ],
        "## How it was made": [
            f"    {command}",
            "",
            f"seed {environment['seed']}, {counted(environment['threads'], 'thread')}, tser "
            f"{environment['tser']}, torch {environment['packages']['torch']}; the teacher is "
            "trained first where there is none. Other machines may round otherwise.",
            "",
            f"{chosen} No test image selected anything.",
        ],
        "## Accuracy": card.accuracy(facts.rows),
        "## Energy": card.energy(facts),
        "## Limits": [line.format(dataset=dataset) for line in card.LIMITS],
    }
    return "\n".join(line for title, lines in sections.items() for line in (title, "", *lines, ""))


if __name__ == "__main__":
    main()
