"""What each command takes: every option with its flag and its help, said here once.

The options of a command are one dataclass, the request that its function takes, from the command
line as from Python. A field with an `Option` is one at the command line too; the
others are for Python alone. The first paragraphs of a request's docstring are the command's help.
Nothing heavy is imported here: every `--help` reads this file. Annotations are types here, not
texts, which would cost each start some 25 ms.
"""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from tser_cli.base.errors import ConfigError
from tser_cli.base.progress import Progress, Silent
from tser_cli.settings import registry

# The panels of a help text, in their order; what has none stands before them.
NETWORKS, OWN_NETWORK, DATA = "Networks and method", "Your own network", "Data"
GRID, HOW = "What to compare", "How to run"
TRAINING, MACHINE, SETTINGS = "Training", "Machine", "Settings"
PLACES, OUTPUT = "Places", "Output"
PANELS = (GRID, NETWORKS, OWN_NETWORK, DATA, TRAINING, HOW, MACHINE, SETTINGS, PLACES, OUTPUT)
LISTS = ("methods", "models", "datasets", "recipes", "profiles", "students")
RESUME = ("auto", "must", "never")
# Wings, which may be taken off; one file is the way into both, and imports them together.
ANY_NETWORK = ("energy/any_network", "energy/conventions", "engine/commands/network_energy.py")


@dataclass(frozen=True)
class Option:
    """How a field of a request is given at the command line; without `flags` it is an argument.

    `sets`: the setting that it stands for, by dotted key. `complete`: what a shell offers for it.
    `shown`: what its help says of the default, where that is not the field's own value. `needs`:
    the files and folders of the package without which it is not offered. `first`: it may also be
    given without its flag, before the options.
    """

    flags: str = ""
    help: str = ""
    panel: str = ""
    sets: str = ""
    metavar: str | None = None
    shown: str = ""
    least: int | None = None
    complete: str = ""
    variable: str | None = None
    needs: tuple[str, ...] = ()
    first: bool = False


def stated(option: Option, default: Any = None) -> Any:
    """Return a field of a request that is given by `option`."""
    return field(default=default, metadata={"option": option})


def option(*said: Any, default: Any = None, **more: Any) -> Any:
    """Return a field that is given by an option of its own; see `Option`."""
    return stated(Option(*said, **more), default)


def switch(*said: Any, **more: Any) -> Any:
    """Return a field that is true where its flag was given; see `Option`."""
    return option(*said, default=False, **more)


@dataclass(frozen=True)
class Stated:
    """A field of a request with its type and its `Option`; `default` may be REQUIRED."""

    name: str
    hint: Any
    default: Any
    option: Option


def options_of(request: Any) -> list[Stated]:
    """Return the options of a request, or of a class of them, in their order."""
    return [
        Stated(one.name, one.type, one.default, one.metadata["option"])
        for one in fields(request)
        if "option" in one.metadata
    ]


# What several groups of options have: an option's words stand once, its field in each group.
REQUIRED = MISSING
DATA_DIR = Option(
    "--data-dir", "Where data sets are, or are downloaded to (a cache folder).", DATA, "data.dir"
)
RUNS_DIR = Option("--runs-dir", "Where run folders are.", PLACES, variable="TSER_RUNS_DIR")
DEVICE = Option("--device", "auto, cpu, cuda or cuda:N.", MACHINE, "training.device")
PRECISION = Option("--precision", "auto, fp32, bf16 or fp16.", MACHINE, "training.precision")
RUN = Option(
    "--run",
    "A run: its folder, name, an unambiguous beginning of it, or latest. Default: the newest "
    "finished student.",
    PLACES,
    metavar="RUN",
    complete="run",
)
PLUGINS = Option(
    "--plugin",
    "A module or file that adds methods, models or data sets. Repeatable; TSER_PLUGIN.",
    SETTINGS,
    complete="plugin",
)
DATASETS = ", ".join(registry.DATASETS)
METHODS = ", ".join(registry.METHODS)


@dataclass(frozen=True, kw_only=True)
class CommonRequest:
    """What every command takes that works on data: who hears of its progress, and settings.

    `settings`: any others by dotted key, for Python; at the command line there is --set.
    """

    # no options: the command line shows progress always, and has --set for any setting
    progress: Progress = field(default_factory=Silent)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def changes(self) -> dict[str, Any]:
        """Return the settings that were given, by dotted key."""
        # None, and nothing else, is "not given": an empty text or 0 is somebody's mistake to name
        found = {one.option.sets: getattr(self, one.name) for one in options_of(self)}
        return {**{k: v for k, v in found.items() if k and v is not None}, **self.settings}

    @property
    def flags_by_setting(self) -> dict[str, str]:
        """Return the flags that were given of settings, by dotted key."""
        given = [one for one in options_of(self) if one.option.sets in self.changes]
        return {one.option.sets: one.option.flags.split()[0] for one in given if one.option.sets}

    def flags_of(self, *names: str) -> list[str]:
        """Return the flags of those of the named fields that were given."""
        # given as the default is as good as not given: it mixes nothing up
        return [
            one.option.flags.split()[0]
            for one in options_of(self)
            if one.name in names and getattr(self, one.name) != one.default
        ]


@dataclass(frozen=True, kw_only=True)
class DataRequest(CommonRequest):
    """Where runs and data are, and plug-ins, which the command line imports beforehand."""

    runs_dir: Path = stated(RUNS_DIR, Path("runs"))
    data_dir: str | None = stated(DATA_DIR)
    # for the library: by the time the command line has a request, they are imported
    plugin: tuple[str, ...] = stated(PLUGINS, ())


@dataclass(frozen=True, kw_only=True)
class TrainingRequest(DataRequest):
    """What every training takes; `resume` and where runs are change no result."""

    dataset: str | None = option(
        "--dataset", f"One of {DATASETS}.", DATA, "data.name", complete="dataset"
    )
    epochs: int | None = option(
        "--epochs", "Passes over the training images.", TRAINING, "training.epochs"
    )
    # a text, since "auto" is one of its values
    batch_size: str | None = option(
        "--batch-size",
        "Images per step, over all processes; auto: what fits, at most a 16th of the images.",
        TRAINING,
        "training.batch_size",
        "INTEGER|auto",
    )
    accumulate: int | None = option(
        "--accumulate",
        "Compute a batch in N parts, one after the other; takes less memory.",
        TRAINING,
        "training.accumulate",
    )
    lr: float | None = option("--lr", "Peak learning rate.", TRAINING, "optimizer.lr")
    seed: int | None = option(
        "--seed", "Seeds weights, order and augmentation.", TRAINING, "training.seed"
    )
    checkpoint_every: str | None = option(
        "--checkpoint-every", "5min, 1epoch or 200steps.", TRAINING, "training.checkpoint_every"
    )
    resume: str = option(
        "--resume", "auto, must or never resume an unfinished run.", TRAINING, default="auto"
    )
    device: str | None = stated(DEVICE)
    precision: str | None = stated(PRECISION)
    deterministic: bool | None = option(
        "--deterministic/--no-deterministic",
        "Only kernels that give the same result bit for bit.",
        MACHINE,
        "training.deterministic",
    )
    recipe: str | None = option(
        "--recipe",
        "A TOML file, a run, or a packaged recipe, as cifar100/resnet18_tser.",
        SETTINGS,
        complete="recipe",
    )
    assignments: tuple[str, ...] = option(
        "--set", "Any setting: --set optimizer.lr=0.05. Repeatable.", SETTINGS, default=()
    )
    dry_run: bool = switch(
        "--dry-run",
        "Show settings, size and time; write nothing.",
        SETTINGS,
        needs=("engine/commands/dry_run.py",),
    )

    def __post_init__(self) -> None:
        # not a setting, so that no recipe's check would find it
        if self.resume not in RESUME:
            raise ConfigError(f'--resume "{self.resume}": use one of {", ".join(RESUME)}')


@dataclass(frozen=True)
class TeacherRequest(TrainingRequest):
    """Train an ANN to teach from, in a run folder of its own."""

    model: str | None = option(
        help="The architecture, as resnet34.", sets="model.teacher", complete="model"
    )


@dataclass(frozen=True, kw_only=True)
class DistillRequest(TrainingRequest):
    """Distil a teacher into a spiking student, and evaluate it at every time step.

    Exit code 4: done, but the energy budget is not kept.
    """

    teacher: str | None = option(
        "--teacher",
        "An architecture (its newest run, or one is trained first), a run, a model file, "
        "MODULE:NAME or FILE.py:NAME.",
        NETWORKS,
        "model.teacher",
        complete="model",
    )
    teacher_weights: str | None = option(
        "--teacher-weights",
        "Weights of --teacher MODULE:FUNCTION: safetensors or a state dict.",
        NETWORKS,
        "model.teacher_weights",
    )
    student: str | None = option(
        "--student",
        "The architecture of the SNN, as resnet18, or MODULE:NAME or FILE.py:NAME, which makes it.",
        NETWORKS,
        "model.student",
        complete="model",
    )
    timesteps: int | None = option(
        "-T --timesteps", "Time steps of the student.", NETWORKS, "model.timesteps"
    )
    method: str | None = option(
        "--method", f"One of {METHODS}.", NETWORKS, "method.name", complete="method"
    )
    energy_budget: str | None = option(
        "--energy-budget",
        "The mean energy that an image may cost: 4uJ, or 25% of the ANN of the same shape.",
        NETWORKS,
        "energy.budget",
        "4uJ|25%",
    )
    temperature: float | None = option(
        "--temperature", "Softens the distillation terms.", NETWORKS, "method.temperature"
    )


@dataclass(frozen=True, kw_only=True)
class RunRequest(DataRequest):
    """Which finished run is worked on."""

    run: Path | None = stated(replace(RUN, first=True))


@dataclass(frozen=True, kw_only=True)
class DeviceRequest(RunRequest):
    """The same, and the device that it is measured on."""

    device: str | None = stated(DEVICE)


@dataclass(frozen=True, kw_only=True)
class PassRequest(DeviceRequest):
    """The same, and how a pass over the images is computed."""

    batch_size: int | None = option(
        "--batch-size", "Images per forward pass.", MACHINE, "training.eval_batch_size", least=1
    )
    precision: str | None = stated(PRECISION)


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest(PassRequest):
    """Measure a finished run at every time step; every image of the split counts once."""

    per_timestep: bool = switch("--per-timestep", "Show the accuracy at every time step.")
    # a text, since it may be a range
    timesteps: str = option(
        "-T --timesteps",
        "Time steps, also other ones than in training: 4, 1-6 or 1,2,4.",
        shown="as trained",
        default="",
    )
    split: str = option("--split", "test, validation or train.", default="test")
    output: Path | None = option(
        "--output", "Where the CSV goes.", shown="per_timestep.csv of the run"
    )
    plot: bool = switch("--plot", "Draw accuracy at each t into the run's figures/.")
    early_exit: str = option(
        "--early-exit", "Stop an image once its confidence reaches this: 0.8,0.9,0.99.", default=""
    )
    early_exit_entropy: str = option(
        "--early-exit-entropy",
        "Stop an image once its entropy, in nats, is at most this: 0.5,0.1.",
        default="",
    )
    energy_budget: str = option(
        "--energy-budget",
        "Keep 3uJ, or 25% of the ANN's energy, by early exit; the threshold is chosen on held-out "
        "images. Exit code 4 where the test images need more.",
        default="",
    )
    profile: str = option(
        "--profile",
        "The cost profile of early exit, as in tser energy.",
        shown="by the weights' bits",
        default="",
    )


@dataclass(frozen=True, kw_only=True)
class NetworkRequest(CommonRequest):
    """A network from elsewhere, and what it is fed with: a data set, an array or random numbers.

    `images` 0: all; `timesteps` 0: as many as the network makes.
    """

    network: str = option(
        "--network",
        "A function or class that makes an nn.Module, or such a module, found from here.",
        OWN_NETWORK,
        metavar="MODULE:NAME|FILE.py:NAME",
        default="",
    )
    arguments: tuple[str, ...] = option(
        "--arg", "An argument of that function: --arg depth=4. Repeatable.", OWN_NETWORK, default=()
    )
    weights: Path | None = option(
        "--weights",
        "Its weights: safetensors or a state dict; FILE::KEY for a part of a checkpoint.",
        OWN_NETWORK,
    )
    dataset: str | None = option(
        "--dataset", f"Feed it the test images of {DATASETS}.", OWN_NETWORK, "data.name"
    )
    data: Path | None = option(
        "--data", "Feed it an array [N, ...], as it is.", OWN_NETWORK, metavar="FILE.npy"
    )
    time_axis: int | None = option(
        "--time-axis",
        "The axis of --data with the time steps, as 1 of [N, T, ...]; each step gets its input.",
        OWN_NETWORK,
        least=0,
    )
    input_shape: str = option(
        "--input", "Feed it random numbers from 0 to 1.", OWN_NETWORK, metavar="3,32,32", default=""
    )
    timesteps: int = option("-T --timesteps", "Its time steps.", OWN_NETWORK, least=1, default=0)
    layout: str = option(
        "--layout",
        "auto, time-first [T, N, ...], folded [T*N, ...], stepwise (T calls), inside.",
        OWN_NETWORK,
        default="auto",
    )
    seed: int = option(
        "--seed",
        "Seeds the function's weights, random inputs, and chance in the network.",
        OWN_NETWORK,
        least=0,
        default=0,
    )
    # options of some commands only, with words of their own
    images: int = 0
    batch_size: int | None = None

    def check_fit(self, *of_runs: str) -> None:
        """Raise ConfigError where options of networks and `of_runs` are mixed, or it is not fed."""
        fed, axis = self.flags_of("dataset", "data", "input_shape"), self.flags_of("time_axis")
        if self.network:
            mixed, why = self.flags_of(*of_runs), "not with --network"
        else:
            mixed = [
                *fed,
                *axis,
                *self.flags_of("arguments", "weights", "timesteps", "layout", "seed"),
            ]
            why = "only with --network"
        if mixed:
            raise ConfigError(f"{', '.join(mixed)}: {why}")
        # a network says nothing of its inputs, and random ones by default would look like a result
        if self.network and not fed:
            raise ConfigError("--network: say what feeds it: --dataset, --data or --input 3,32,32")
        if self.network and len(fed) > 1:
            raise ConfigError(f"{' and '.join(fed)}: feed the network with one of them")
        if axis and self.data is None:
            raise ConfigError(f"{axis[0]}: only with --data, whose array has an axis of time")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What `tser energy` tells beyond one table."""

    conventions: bool = switch(
        "--conventions", "Also count as spikingjelly, NeuroBench and papers do.", needs=ANY_NETWORK
    )
    match: str = option(
        "--match",
        "Name the conventions that give this figure.",
        metavar="1.38mJ",
        needs=ANY_NETWORK,
        default="",
    )
    fair_rival: bool = switch(
        "--fair-rival",
        "Compare with the ANN of ceil(log2(T + 1)) bits, with and without memory.",
        needs=ANY_NETWORK,
    )
    assume_int8: bool = switch("--assume-int8", "Price weights of more bits as if they had 8.")

    @property
    def any(self) -> bool:
        """Return whether anything of it takes more than the plain counts."""
        return self.conventions or bool(self.match) or self.fair_rival


@dataclass(frozen=True, kw_only=True)
class EnergyRequest(PassRequest, NetworkRequest, Wanted):
    """Count the synaptic operations of a student, or of any network, exactly, and price them."""

    run: Path | None = stated(RUN)  # its first argument is the table
    output: Path | None = option(help="Where the table goes, as report.csv; without, only shown.")
    images: int = option(
        "--images", "Test images to count.", shown="all of them", least=1, default=0
    )
    profile: str = option(
        "--profile",
        "horowitz-45nm-fp32, -fp16 or -int8 (whole names), loihi, lemaire-2022, or a TOML file.",
        shown="horowitz-45nm-fp32; -int8 for a student with integer weights",
        default="",
    )
    per_image: Path | None = option(
        "--per-image", "A second CSV: right or wrong and energy of each image at each t."
    )
    figures: bool = switch("--figures", "Also figures, as PNG and SVG beside the table.")
    memory: bool = switch("--memory", "Also the traffic of weights and neuron state.")
    long: bool = switch("--long", "One row per layer and step, without rows of sums.")
    wide: bool = switch("--wide", "One row per layer, one column per step, without rows of sums.")

    def __post_init__(self) -> None:
        if self.long and self.wide:
            raise ConfigError("--long and --wide are two forms of one table: give one of them")
        of_files = self.flags_of("figures", "long", "wide")
        if self.output is None and of_files:
            raise ConfigError(f"{', '.join(of_files)}: say where the table goes, as report.csv")
        self.check_fit("run", "per_image", "precision")

    @property
    def form(self) -> str:
        """Return the form of the table."""
        return "long" if self.long else "wide" if self.wide else "sums"


@dataclass(frozen=True)
class ListRequest:
    """List what there is to choose from, names that plug-ins add among it."""

    what: str = option(
        help=f"One of {', '.join(LISTS)}.",
        metavar="|".join(LISTS),
        complete="list",
        default=REQUIRED,
    )
    plugin: tuple[str, ...] = stated(PLUGINS, ())


@dataclass(frozen=True)
class MethodsRequest(ListRequest):
    """List the training methods: what each does, where it comes from, the weights it reads."""

    what: str = "methods"
