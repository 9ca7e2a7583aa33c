"""What the commands of the wings take; a request goes with its wing. See `options`."""

from dataclasses import dataclass
from pathlib import Path

from tser_cli.base.errors import ConfigError
from tser_cli.settings import options
from tser_cli.settings.options import GRID, HOW, PLACES, REQUIRED, RUNS_DIR, option, stated, switch

EXPORTS = ("nir", "onnx", "safetensors")  # formats, and suffixes that tell them


@dataclass(frozen=True, kw_only=True)
class AblateRequest(options.DistillRequest):
    """Compare settings over seeds: paired differences with 95 % intervals, CSVs and figures.

    All options of a training hold for every cell; what is varied can't be one of them too.
    """

    ablation: str | None = option(
        help="A recipe, as ablations/digits_rivals; it may say what to vary.",
        metavar="RECIPE",
        shown="the data set's own",
        complete="recipe",
    )
    vary: tuple[str, ...] = option(
        "--vary", "key=value,value: method=ce,kd,ts,tser. Repeatable.", GRID, default=()
    )
    seeds: int | None = option("--seeds", "Seeds 0..N-1 of each cell.", GRID, shown="3")
    baseline: str | None = option(
        "--baseline", "The cell to compare with: method=kd.", GRID, shown="the first"
    )
    accuracy_margin: float | None = option(
        "--accuracy-margin",
        "Compare energies with early exit at this many points below the baseline's accuracy.",
        GRID,
        shown="0.5",
    )
    jobs: int | None = option(
        "--jobs", "Cells side by side.", HOW, shown="as many as GPUs", least=1
    )
    address: str | None = option(
        "--address",
        "Run the cells on this Ray cluster: auto or HOST:PORT.",
        HOW,
        shown="this machine",
    )
    output: Path | None = option(
        "--output", "The ablation's folder.", PLACES, shown="ablations/NAME in the runs"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        # the recipe came first on the line before there was --recipe; both spellings stay
        for one, other in (("ablation", "recipe"), ("seed", "seeds")):
            if getattr(self, one) is not None and getattr(self, other) is not None:
                name = "the recipe before the options" if one == "ablation" else f"--{one}"
                raise ConfigError(f"{name} and --{other}: give one of them")


@dataclass(frozen=True, kw_only=True)
class AuditRequest(options.DeviceRequest, options.NetworkRequest):
    """Find what is wrong with a spiking network: resets, mixed images, real inputs, dead neurons.

    Exit code 0: clean; 4: something was found.
    """

    images: int = option("--images", "Images to check.", least=2, default=16)

    def __post_init__(self) -> None:
        self.check_fit("run")


@dataclass(frozen=True)
class CompareRequest:
    """Set runs side by side: the settings that differ, and results with their intervals.

    Runs that differ in the seed alone are taken together: mean, standard deviation, and the paired
    difference to the group of the first run.
    """

    runs: tuple[Path, ...] = option(
        help="Two or more runs: paths, names, unambiguous beginnings, or latest.",
        metavar="RUN RUN ...",
        complete="run",
        default=REQUIRED,
    )
    runs_dir: Path = stated(RUNS_DIR, Path("runs"))


@dataclass(frozen=True, kw_only=True)
class ReportRequest(options.RunRequest):
    """Make one web page of finished runs and ablations, to look at and to send.

    The page is one file that needs no network: accuracy at each time step, energy beside other
    networks, layers, mistakes with their images, training, settings, the command. Several runs
    stand side by side. What a run lacks, the page says.
    """

    run: Path | None = stated(options.RUN)
    subjects: tuple[Path, ...] = option(
        help="Runs: paths, names, unambiguous beginnings, or latest; folders of ablations.",
        metavar="[RUN|ABLATION]...",
        shown="the newest finished student",
        complete="run",
        default=(),
    )
    # in the current folder, not in a run's: a page may be of several
    output: Path = option("--output", "Where the page goes.", default=Path("report.html"))
    measure: bool = option(
        "--measure/--no-measure",
        "Run the networks over the test images, for early exit and pictures.",
        default=True,
    )
    images: int = option("--images", "How many test images; 0: all.", least=0, default=0)
    device: str | None = stated(options.DEVICE)

    def __post_init__(self) -> None:
        if self.run is not None:
            object.__setattr__(self, "subjects", (*self.subjects, self.run))
            object.__setattr__(self, "run", None)


@dataclass(frozen=True, kw_only=True)
class PredictRequest(options.DeviceRequest):
    """Classify image files with a finished student: class, confidence at each t, operations.

    Images of other sizes are resized to the shorter side and cropped to their middle; colours
    become grey, or grey becomes RGB, as the network takes it. One that was trained on events takes
    files of events. Exit code 1 where one can't be read.
    """

    images: tuple[str, ...] = option(
        help="Image files, folders of them, or - for a list on standard input; a run before them "
        "is the one to use.",
        metavar="[RUN] IMAGE...",
        default=REQUIRED,
    )
    run: Path | None = stated(options.RUN)
    threshold: float = option(
        "--threshold", "The confidence at which an image would stop.", default=0.9
    )
    output: Path | None = option("--output", "A CSV file for the answers.")


@dataclass(frozen=True, kw_only=True)
class QuantizeRequest(options.DeviceRequest):
    """Round the weights of a finished student to integers; a new run, which names its parent.

    No training: for that, distil with --set model.weight_bits=8.
    """

    bits: int = option("--bits", "Bits per weight: 8 or 4.", default=8)
    images: int = option("--images", "Training images that calibrate the norms.", default=1024)


@dataclass(frozen=True, kw_only=True)
class ExportRequest(options.RunRequest):
    """Write a finished student as a file for other programs, and prove that they agree.

    Beside the file: FILE.verified.json and a model card, FILE.md. Exit code 4, and no file, where a
    program gives other spikes.
    """

    run: Path | None = stated(options.RUN)
    names: tuple[Path, ...] = option(
        help="Where the file goes, as student.onnx; a run before it is the one to use.",
        metavar="[RUN] FILE",
        default=(),
    )
    format_name: str = option(
        "--format", "nir, onnx or safetensors.", shown="by the file's suffix", default=""
    )
    output: Path = option("--output", "Where the file goes, instead of the argument FILE.")
    stateful: bool = switch(
        "--stateful", "ONNX: one time step, membrane potentials as inputs and outputs."
    )
    potentials: str = option(
        "--potentials",
        "float, or integer: ONNX with membranes of 32-bit integers, for integer weights.",
        default="float",
    )
    verify: bool = option(
        "--verify/--no-verify",
        "Load the file in other programs and compare every spike.",
        default=True,
    )
    images: int = option("--images", "Test images for the check.", default=16)

    def __post_init__(self) -> None:
        # what was given without a flag is put where its flag would have put it
        named = [*self.names, self.output] if self.output else [*self.names]
        if not named or len(named) + (self.run is not None) > 2:
            raise ConfigError("name a file, and before it or by --run a run: RUN student.onnx")
        for name, value in (("names", ()), ("output", named.pop()), ("run", (*named, self.run)[0])):
            object.__setattr__(self, name, value)
        if not self.format_name:
            # only as it is called: which program will read the file is nothing to guess
            suffix = self.output.suffix.lower().removeprefix(".")
            if suffix not in EXPORTS:
                raise ConfigError(f"{self.output}: give --format, one of {', '.join(EXPORTS)}")
            object.__setattr__(self, "format_name", suffix)


@dataclass(frozen=True)
class RunsRequest:
    """List the runs, or remove some."""

    runs_dir: Path = stated(RUNS_DIR, Path("runs"))
    filters: tuple[str, ...] = option(
        help="Filters, as method=tser T=1,2 student='resnet*': columns and any settings. Or: "
        "remove, and the runs to delete.",
        metavar="KEY=VALUE | remove RUN",
        complete="run",
        default=(),
    )
    # the same words as the columns, so that what is shown can be asked for
    sort: str = option(
        "--sort", "A column, as accuracy or energy; the newest come first.", default="age"
    )
    reverse: bool = switch("--reverse", "Largest first.")
    yes: bool = switch("--yes", "remove: don't ask.")


@dataclass(frozen=True)
class DoctorRequest(options.CommonRequest):
    """Look at this machine: versions, devices, load, data, room; what to do about faults.

    Exit code 0: all is well, notes aside; 4: something is wrong.
    """

    runs_dir: Path = stated(RUNS_DIR, Path("runs"))
    data_dir: str | None = stated(options.DATA_DIR)
    quick: bool = switch("--quick", "Skip torch.compile.")
