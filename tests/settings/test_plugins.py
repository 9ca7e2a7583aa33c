"""Plug-ins: found, imported, registered, kept in a run, and asked for when one is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from tser_cli.base.errors import ConfigError, RunError
from tser_cli.base.files import sha256
from tser_cli.cli import commands
from tser_cli.cli.options import names_in
from tser_cli.settings import fields, names, plugins, recipe, registry
from tser_cli.settings.options import TrainingRequest

METHOD = """
from tser_cli import add_method
from tser_cli.losses.base import Supervised, mean_cross_entropy
from tser_cli.settings.fields import NonNegative

class Settings(Supervised):
    summary = "an example"
    name: str = "mine"
    consistency_weight: NonNegative = 0.1

@add_method(Settings)
def loss(outputs, settings):
    ce = mean_cross_entropy(outputs, settings)
    return {"loss": ce, "ce": ce}
"""


@pytest.fixture(autouse=True)
def _in_an_empty_folder(
    nothing_added: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(plugins.VARIABLE, raising=False)
    # Tests of networks import files of these names too.
    for name in ("mine", "net", "nets", "helper"):
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def make(text: str = METHOD, name: str = "example_plugin.py") -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    return make


def refused(name: str) -> str:
    with pytest.raises(ConfigError) as error:
        plugins.load([name])
    return str(error.value)


@pytest.mark.parametrize("name", ["example_plugin", "example_plugin.py", "./example_plugin.py"])
def test_a_module_or_a_file_is_found_from_the_current_folder(
    write: Callable[..., Path], name: str
) -> None:
    file = write()
    plugins.load([name])
    plugins.load([name, "example_plugin"])
    assert plugins.stated() == [str(file)]
    settings = recipe.resolve([recipe.from_assignments(["method.name=mine"])]).method
    assert settings.model_dump()["consistency_weight"] == 0.1
    assert registry.METHODS["mine"].needs_teacher


def test_the_weights_of_a_plug_in_are_settings_like_all_others(write: Callable[..., Path]) -> None:
    write()
    plugins.load(["example_plugin"])
    assert names.full_key("consistency_weight") == "method.consistency_weight"
    assert names.short_name("method.consistency_weight") == "consistency_weight"
    own = recipe.from_assignments(["method.name=mine", "method.consistency_weight=-1"])
    with pytest.raises(ConfigError, match=r"method\.consistency_weight = -1: Input should be gre"):
        recipe.resolve([own])
    with pytest.raises(ConfigError, match="kd does not read it; it is read by mine"):
        recipe.resolve([recipe.from_flags({"method.name": "kd", "method.consistency_weight": 1})])
    with pytest.raises(ConfigError, match=r'unknown method "mone" \(did you mean "mine"\?\)'):
        recipe.resolve([recipe.from_flags({"method.name": "mone"})])


PACKAGE = {
    "__init__.py": "from . import part",
    "part.py": METHOD.replace(
        "from tser_cli.settings.fields", "from .deep import used\nfrom tser_cli.settings.fields"
    ),
    "deep/__init__.py": "",
    "deep/used.py": "weight = 1",
    "notes.txt": "of mine",
    ".hidden": "no",
    "__pycache__/part.pyc": "no",
}


@pytest.fixture
def package(write: Callable[..., Path]) -> Path:
    """A package of which one module registers a method and imports another."""
    for name, text in PACKAGE.items():
        write(text, f"example_package/{name}")
    return Path("example_package").resolve()


@pytest.mark.parametrize(
    ("name", "stated", "module"),
    [
        ("example_package", "", "example_package"),
        ("./example_package/", "", "example_package"),
        ("example_package.part", "part.py", "example_package.part"),
        ("example_package/part.py", "part.py", "example_package.part"),
    ],
)
def test_a_package_or_a_part_of_one_is_stated_so_that_any_folder_finds_it(
    package: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    stated: str,
    module: str,
) -> None:
    plugins.load([name])
    found = str(package / stated)
    assert plugins.stated() == [found]
    assert registry.METHODS["mine"].target == "example_package.part"
    assert sys.modules[module].__name__ == module
    assert plugins.is_loaded(found)
    assert plugins.is_loaded(f"/elsewhere/{Path(found).relative_to(tmp_path)}")
    assert not plugins.is_loaded("/elsewhere/part.py/other.py")
    for loaded in [known for known in sys.modules if known.startswith("example_package")]:
        del sys.modules[loaded]
    plugins._loaded.clear()
    del registry.METHODS["mine"]
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    sys.path.remove(str(tmp_path))
    plugins.load([found])
    assert "mine" in registry.METHODS


def test_a_run_keeps_a_package_whole(package: Path, tmp_path: Path) -> None:
    (package / "weights.bin").write_bytes(bytes(plugins.LARGE_BYTES + 1))
    plugins.load(["example_package"])
    # what is kept is what was imported
    (package / "part.py").write_text("changed")
    (record,) = plugins.keep(tmp_path / "run", {"method mine": "example_package.part"})
    kept = {f"example_package/{n}" for n in PACKAGE if n not in (".hidden", "__pycache__/part.pyc")}
    assert record["copy"] == "code/example_package"
    assert set(record["files"]) == kept
    assert record["left_out"] == ["example_package/weights.bin"]
    for name, digest in record["files"].items():
        assert sha256((tmp_path / "run" / "code" / name).read_bytes()) == digest
    assert (tmp_path / "run" / "code" / "example_package" / "part.py").read_text() != "changed"
    assert plugins.changes([record]) == []
    plugins._loaded.clear()
    (package / "deep" / "used.py").write_text("weight = 2")
    plugins.load(["example_package.deep"])
    assert plugins.changes([record]) == [
        f"plug-in {package}: example_package/deep/used.py, example_package/part.py have changed "
        "since"
    ]
    plugins._loaded.clear()
    del registry.METHODS["mine"]
    # the part, since the package itself need not import it
    copy = tmp_path / "run" / "code" / "example_package" / "deep" / "__init__.py"
    record["module"] = "example_package.part"
    with pytest.raises(
        RunError, match=f"--plugin {package}, or --plugin {copy.parents[1]}/part.py"
    ):
        plugins.check_loaded([record], ["method mine"], tmp_path / "run")


def test_a_package_too_large_to_keep(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for bound in ("MOST_FILES", "MOST_BYTES"):
        with monkeypatch.context() as patch:
            patch.setattr(plugins, bound, 3)
            assert "keeps a copy of its plug-ins: move what is no code" in refused(package.name)


def test_a_folder_that_is_no_package(write: Callable[..., Path]) -> None:
    write(METHOD, "bare/part.py")
    for name in ("bare", "./bare"):
        assert "it is a folder without __init__.py; name a " in refused(name)
    plugins.load(["bare.part"])
    assert plugins.stated() == ["bare.part"]


def test_what_a_plug_in_imports_from_beside_it_is_found_last_and_kept(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    write(METHOD.replace("0.1", "helper.weight") + "\nimport helper", "there/example_plugin.py")
    Path("there/example_plugin.py").write_text("import helper, json\n" + METHOD)
    write("def late():\n    import parts.deep.late\nweight = 2\nimport bare.one", "there/helper.py")
    for name in ("parts/__init__", "parts/deep/__init__", "parts/deep/late", "bare/one", "unused"):
        write("", f"there/{name}.py")
    plugins.load(["there/example_plugin.py"])
    assert sys.path[-1] == str(tmp_path / "there")
    (record,) = plugins.keep(tmp_path / "run", {})
    kept = {str(p.relative_to("there")) for p in Path("there").rglob("*.py")} - {"unused.py"}
    assert set(record["files"]) == kept
    assert {str(p.relative_to("run/code")) for p in Path("run/code").rglob("*.py")} == kept
    # the copy runs by itself, and a change of what is imported is one of the plug-in
    code = "import sys; from tser_cli.settings import plugins; plugins.load(sys.argv[1:])"
    copy = str(tmp_path / "run" / record["copy"])
    subprocess.run([sys.executable, "-c", code, copy], check=True, cwd="/")
    assert plugins.changes([record]) == []
    plugins._loaded.clear()
    del registry.METHODS["mine"], sys.modules["example_plugin"]
    write("weight = 3", "there/bare/one.py")
    plugins.load(["there/example_plugin.py"])
    (line,) = plugins.changes([record])
    assert line.endswith("example_plugin.py: bare/one.py has changed since")


def test_a_module_beside_a_plug_in_that_another_one_hides(write: Callable[..., Path]) -> None:
    write("import json", "there/mine.py")
    hiding = write("", "there/json.py")
    assert refused("there/mine.py").endswith(f"rename {hiding}")
    # two plug-ins whose helpers have one name: the second would get the first one's
    for name in ("one", "two"):
        write("", f"{name}/helper.py")
        write("import helper", f"{name}/plugin_{name}.py")
    plugins.load(["one/plugin_one.py"])
    assert "there is another module helper (" in refused("two/plugin_two.py")


LOOP = """
from tser_cli import add_model
for width in (4, 64):
    @add_model(f"net{width}")
    """


@pytest.mark.parametrize(
    ("text", "widths"),
    [
        ("def build(b, width=width): return width", (4, 64)),
        ("def build(b, *, width=width): return width", (4, 64)),
        (
            "class Net:\n        width = width\n        def __new__(cls, b): return cls.width",
            (4, 64),
        ),
        ("def build(b): return width", None),
        ("class Net:\n        def __new__(cls, b): return width", None),
    ],
    ids=["default", "keyword", "class", "late", "late class"],
)
def test_what_a_loop_registers_is_each_its_own(
    write: Callable[..., Path], text: str, widths: tuple[int, ...] | None
) -> None:
    write(LOOP + text)
    if widths is None:
        assert "registers net4 and net64 by functions that build the same" in refused(
            "example_plugin"
        )
        return
    plugins.load(["example_plugin"])
    assert tuple(registry.load(registry.MODELS[f"net{w}"].target)(None) for w in (4, 64)) == widths


def test_functions_of_a_function_methods_of_a_loop_and_aliases(write: Callable[..., Path]) -> None:
    write(
        """
from functools import partial
from tser_cli import add_dataset, add_method, add_model
from tser_cli.losses.base import Supervised

def build(b, width): return width
def maker(width):
    def made(b): return width
    return made
for width in (4, 64):
    add_model(f"made{width}")(maker(width))
    add_model(f"part{width}")(partial(build, width=width))
    add_dataset(f"data{width}")(lambda config: config)
    class Settings(Supervised):
        name: str = f"method{width}"
        weight: float = width
    add_method(Settings, lambda student, teacher, width=width: width)(
        lambda outputs, settings, width=width: width
    )
add_model("alias")(build)
add_model("other")(build)
"""
    )
    plugins.load(["example_plugin"])
    for width in (4, 64):
        method = registry.METHODS[f"method{width}"]
        assert method.settings().model_dump()["weight"] == width
        assert method.loss(0, 0) == method.make_adapters(0, 0) == width
        for name in (f"made{width}", f"part{width}"):
            assert registry.load(registry.MODELS[name].target)(None) == width


def test_a_network_by_its_file_is_a_plug_in(write: Callable[..., Path], tmp_path: Path) -> None:
    file = write("def build(): return 3", "example_net.py")
    layers = [recipe.from_flags({"model.student": f"./{file.name}:build"})]
    settings = recipe.resolve(recipe.with_plugins(layers))
    assert (settings.model.student, settings.plugins) == ("example_net:build", (str(file),))
    (record,) = plugins.keep(tmp_path / "run", registry.targets_of(settings.flat()))
    assert record["adds"] == ["model example_net:build"]
    plugins._loaded.clear()
    del registry.MODELS["example_net:build"]
    with pytest.raises(RunError, match=f"for the model example_net:build: --plugin {file}, or"):
        plugins.check_loaded([record], record["adds"], tmp_path / "run")
    plugins.load([str(file)])
    plugins.check_loaded([record], record["adds"], tmp_path / "run")
    assert registry.MODELS["example_net:build"].own
    with pytest.raises(ConfigError, match=r'has no biuld \(did you mean "build"\?\)'):
        plugins.add_network("example_net:biuld")
    assert plugins.add_network("resnet18") == "resnet18"


OLD_NAMES = """
from tser_cli.config import NeuronConfig
from tser_cli.fields import NonNegative
from tser_cli.losses.base import Supervised
from tser_cli.registry import add_dataset, add_method, add_model

class Settings(Supervised):
    name: str = "mine"
    tau: NonNegative = NeuronConfig().tau

@add_method(Settings)
def loss(outputs, settings): return {"loss": outputs}

@add_model("net", spiking_only=True)
def build(build): return build

@add_dataset("pictures", own_images=True)
def load(config): return config
"""


def test_the_module_names_that_old_plug_ins_import_still_work(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    write(OLD_NAMES)
    plugins.load(["example_plugin"])
    (record,) = plugins.keep(tmp_path / "run", {})
    assert record["adds"] == ["data set pictures", "method mine", "model net"]
    assert sys.modules["tser_cli.fields"] is fields
    assert registry.load(registry.MODELS["net"].target)(3) == 3
    assert registry.MODELS["net"].spiking_only
    entry = registry.DATASETS["pictures"]
    assert entry.own_images and entry.student_recipe in recipe.available()
    # a run's own copy, in a process that knows no old name yet
    code = "import sys; from tser_cli.settings import plugins; plugins.load(sys.argv[1:])"
    command = [sys.executable, "-c", code, str(tmp_path / "run" / record["copy"])]
    subprocess.run(command, check=True, cwd="/")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import no_such_module_at_all", r"can't be imported: ModuleNotFoundError: .*py, line 1\)"),
        ("\nx = 1 / 0", r"can't be imported: ZeroDivisionError: .*example_plugin\.py, line 2\)"),
        ("def f(:", r"can't be imported: SyntaxError: .*example_plugin\.py, line 1\)"),
        ("import sys\nsys.exit()", r"can't be imported: SystemExit"),
        ("import os\nos.chdir('/')", "plug-in example_plugin: it changes the current folder"),
        (
            "import torch\ntorch.set_default_dtype(torch.float64)",
            r"changes torch's default type to torch\.float64; all networks are float32",
        ),
        (METHOD * 2, 'plug-in example_plugin: it registers the method "mine", which there is alre'),
        (METHOD.replace("mine", "kd"), 'it registers the method "kd", which there is already'),
        (METHOD.replace("mine", "my method"), '"my method" is no name for a method'),
    ],
    ids=["missing", "error", "syntax", "exit", "folder", "type", "twice", "taken", "name"],
)
def test_a_plug_in_that_can_t_be_used(write: Callable[..., Path], text: str, said: str) -> None:
    write(text)
    with pytest.raises(ConfigError, match=said):
        plugins.load(["example_plugin"])
    assert plugins.stated() == []


def test_a_plug_in_that_is_not_there(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(write().with_name("pipe.py"))
    assert refused("pipe.py").count("pipe.py") == 1  # it is not its own nearest
    assert 'no such module (did you mean "example_plugin"?)' in refused("example_plugim")
    assert 'no such file (did you mean "example_plugin.py"?)' in refused("example_plugim.py")
    monkeypatch.setattr(plugins, "MOST_BYTES", 10)
    assert "and is no module" in refused("example_plugin.py")


def test_a_file_that_would_hide_another_module(write: Callable[..., Path]) -> None:
    write(METHOD, "json.py")
    write(METHOD, "xmlrpc.py")
    for name in ("json", "xmlrpc"):
        assert f"there is another module {name} (" in refused(f"{name}.py")
    assert sys.modules["json"] is json


def test_names_come_from_the_variable_and_the_flags(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert plugins.asked_for(None) == []
    assert plugins.keep(tmp_path, {"method dkd": "tser_cli.losses.dkd"}) == []  # none is loaded
    assert not (tmp_path / "code").exists()
    monkeypatch.setenv(plugins.VARIABLE, "one:two.py")
    assert plugins.asked_for(["three"]) == ["one", "two.py", "three"]
    assert recipe.from_environment({plugins.VARIABLE: "one"}).values == {}


def test_a_recipe_names_its_plug_ins(write: Callable[..., Path]) -> None:
    file = write()
    write('plugins = ["example_plugin"]\n[method]\nname = "mine"\n', "mine.toml")
    made = commands.training_config("student", TrainingRequest(recipe="mine.toml"))
    assert (made.method.name, made.plugins) == ("mine", (str(file),))
    # what was written is read back, and a flag may say that the file is elsewhere now
    moved = write(METHOD, "moved/example_plugin.py")
    plugins._loaded.clear()
    del registry.METHODS["mine"], sys.modules["example_plugin"]
    plugins.load([str(moved)])
    again = commands.training_config("student", TrainingRequest(recipe="mine.toml"))
    assert again.plugins == (str(moved),)


def test_an_installed_package_is_not_imported_before_it_is_used(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write("raise SystemExit('imported')", "example_installed.py")
    points = [
        metadata.EntryPoint("theirs", "example_installed", "tser.methods"),
        metadata.EntryPoint("net", "example_installed:build", "tser.models"),
        metadata.EntryPoint("pictures", "example_installed:load", "tser.datasets"),
    ]
    monkeypatch.setattr(
        metadata, "entry_points", lambda group: [p for p in points if p.group == group]
    )
    plugins.add_entry_points()
    plugins.add_entry_points()
    assert {"method theirs", "model net", "data set pictures"} <= set(registry.names())
    complete = names_in(registry.METHODS)
    assert complete(type("Context", (), {"params": {}})(), "th") == ["theirs"]
    points.append(metadata.EntryPoint("kd", "example_installed", "tser.methods"))
    with pytest.raises(ConfigError, match="package example_installed: it registers the method"):
        plugins.add_entry_points()


def test_a_run_keeps_its_plug_ins_and_tells_what_it_needs(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    file = write()
    plugins.load(["example_plugin"])
    folder = tmp_path / "run"
    (record,) = plugins.keep(folder, {"method dkd": "tser_cli.losses.dkd"})
    assert record["copy"] == "code/example_plugin.py"
    assert (folder / record["copy"]).read_text() == METHOD
    assert record["adds"] == ["method mine"]
    assert plugins.changes([record]) == []
    plugins.check_loaded([record], ["method mine"], folder)
    plugins._loaded.clear()
    del registry.METHODS["mine"], sys.modules["example_plugin"]
    plugins.check_loaded([record], ["method kd"], folder)
    with pytest.raises(RunError) as error:
        plugins.check_loaded([record], ["method mine", "model resnet18"], folder)
    copy = folder / "code" / "example_plugin.py"
    wanted = f"needs a plug-in for the method mine: --plugin {file}, or --plugin {copy} (kept in"
    assert wanted in str(error.value)
    file.rename("moved.py")
    with pytest.raises(RunError, match=f"method mine: --plugin {copy} .kept in the run, as it was"):
        plugins.check_loaded([record], ["method mine"], folder)
    Path("moved.py").rename(file)
    file.write_text(f"{METHOD}\n# changed\n")
    plugins.load(["example_plugin"])
    assert plugins.changes([record]) == [f"plug-in {file}: its file has changed since"]


def test_an_installed_method_that_a_run_uses_is_kept(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write()
    monkeypatch.syspath_prepend(tmp_path)
    used = {"method mine": "example_plugin", "model resnet18": "tser_cli.models.resnet:resnet18"}
    (record,) = plugins.keep(tmp_path / "run", used)
    assert (record["name"], record["adds"]) == ("example_plugin", ["method mine"])
    del registry.METHODS["mine"]
    with pytest.raises(RunError, match="for the method mine: install the package that offers it"):
        plugins.check_loaded([record], ["method mine"], tmp_path / "run")
    assert (tmp_path / "run" / "code" / "example_plugin.py").read_text() == METHOD
