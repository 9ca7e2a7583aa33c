"""Sources of settings: precedence, messages, any text at all; and every recipe that ships."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import tomli_w
import torch
from hypothesis import given
from hypothesis import strategies as st

from tser_cli.base.errors import ConfigError
from tser_cli.models.base import build_model
from tser_cli.settings import config, recipe, registry
from tser_cli.settings.config import Config
from tser_cli.settings.fields import flatten
from tser_cli.settings.recipe import (
    Layer,
    from_assignments,
    from_environment,
    from_flags,
    left_out,
    resolve,
)

# Text that looks like settings meets more of the code than text at large.
VALUES = st.one_of(
    st.text(),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(["true", "[1, 2]", "{a = 1}", "1979-05-27", '"x"', "[" * 4000, "9" * 5000]),
    st.sampled_from(["0x" + "f" * 5000, "1\nother = 2", "'", '"\\u0000"', "\udc80", "inf", "nan"]),
)
KEYS = st.one_of(st.text(), st.sampled_from(sorted(config.keys())))


def write(folder: Path, text: str, name: str = "mine.toml") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def problems(*layers: Layer) -> list[str]:
    with pytest.raises(ConfigError) as error:
        resolve(layers)
    return str(error.value).splitlines()


def test_precedence_rises_from_recipe_over_environment_to_flags(tmp_path: Path) -> None:
    file = write(tmp_path, "[training]\nepochs = 11\nseed = 12\nbatch_size = 13\n")
    layers = [
        recipe.read(file),
        from_environment({"TSER_TRAINING_SEED": "22", "TSER_TRAINING_BATCH_SIZE": "23"}),
        from_flags({"training.batch_size": 33, "training.epochs": None, "data.workers": 0}),
        from_assignments(["training.eval_batch_size=43", "training.eval_batch_size=44"]),
    ]
    assert resolve([]) == Config()
    assert resolve(layers).data.workers == 0
    training = resolve(layers).training
    assert (training.epochs, training.seed, training.batch_size) == (11, 22, 33)
    assert (training.eval_batch_size, training.accumulate) == (44, 1)


def test_a_wrong_value_that_is_overridden_does_no_harm(tmp_path: Path) -> None:
    file = recipe.read(write(tmp_path, '[training]\nepochs = "many"\n'))
    assert resolve([file, from_flags({"training.epochs": 3})]).training.epochs == 3


def test_every_problem_is_told_at_once_with_its_source(tmp_path: Path) -> None:
    file = write(tmp_path, 'lr = 1\n[optimizer]\nlearning_rate = 0.1\n[model]\nstudent = "vgg12"\n')
    told = problems(
        recipe.read(file),
        from_environment({"TSER_TRAINING_EPOCH": "3", "TSER_RUNS_DIR": "/elsewhere"}),
        from_assignments(["method.temprature=2", "optimizer.lr=-1"]),
        from_flags({"model.timesteps": 0}),
    )
    assert len(told) == 7
    assert told[0].startswith(f'recipe {file}: unknown key "lr"')
    assert told[1].startswith(f'recipe {file}: unknown key "optimizer.learning_rate"')
    nearest = 'unknown key "training.epoch" (did you mean "training.epochs"?)'
    assert told[2] == f"environment variables TSER_*: {nearest}"
    assert told[3].endswith('"method.temprature" (did you mean "method.temperature"?)')
    rest = "\n".join(told[4:])
    assert f'recipe {file}: model.student: unknown model "vgg12" (did you mean "vgg1' in rest
    assert "--set: optimizer.lr = -1: Input should be greater than 0" in rest
    assert "command line: model.timesteps = 0: Input should be greater than or equal to 1" in rest


def test_a_rule_over_a_section_names_the_source_that_broke_it(tmp_path: Path) -> None:
    file = recipe.read(write(tmp_path, "[optimizer]\nnesterov = true\n"))
    told = problems(file, from_assignments(["optimizer.momentum=0"]))
    assert told == ["--set: optimizer.nesterov needs a momentum above 0"]


def test_long_values_are_cut_in_messages() -> None:
    for value in ("9" * 400, "0x" + "f" * 5000):
        (told,) = problems(from_assignments([f"training.epochs={value}"]))
        assert told.startswith("--set: training.epochs = ") and len(told) < 250


def test_parse_value_reads_toml_or_keeps_the_text() -> None:
    toml = {"3": 3, "0.05": 0.05, "5e-4": 5e-4, "true": True, "[30, 60]": [30, 60], '"3"': "3"}
    texts = ["resnet18", "/a/b c", "", "1\nother = 2", "9" * 5000, "[" * 4000]
    for text, value in {**toml, **dict(zip(texts, texts, strict=True))}.items():
        parsed = recipe.parse_value(text)
        assert parsed == value and type(parsed) is type(value)


def test_assignments_are_split_at_the_first_equals_sign() -> None:
    layer = from_assignments(["data.dir = /a=b ", "schedule.milestones=[1, 2.5]"])
    assert layer.values == {"data.dir": "/a=b", "schedule.milestones": [1, 2.5]}
    assert resolve([layer]).schedule.milestones == (1.0, 2.5)
    with pytest.raises(ConfigError, match=r"--set optimizer\.lr: write --set section"):
        from_assignments(["optimizer.lr"])


def test_a_key_of_text_takes_text_as_typed() -> None:
    for folder in ("2024", "2024-05-01", "true", "0.10"):
        assert resolve([from_assignments([f"data.dir={folder}"])]).data.dir == folder
        assert resolve([from_environment({"TSER_DATA_DIR": folder})]).data.dir == folder


def test_variables_name_the_section_first() -> None:
    known = {"TSER_MODEL_TEACHER_RECIPE": "digits/x", "TSER_OPTIMIZER_LR": "0.5", "TSER_LR": "1"}
    layer = from_environment({**known, "TSER_RUNS_DIR": "/elsewhere", "PATH": "/bin"})
    assert layer.values == {"model.teacher_recipe": "digits/x", "optimizer.lr": 0.5, "lr": 1}


def test_find_takes_a_file_a_run_folder_or_a_packaged_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packaged, run = tmp_path / "packaged", tmp_path / "run"
    (packaged / "digits").mkdir(parents=True)
    run.mkdir()
    monkeypatch.setattr(recipe, "recipes_dir", lambda: packaged)
    shipped = write(packaged / "digits", "", "vgg11_ts.toml")
    settings = write(run, "", "config.toml")
    assert recipe.available() == ["digits/vgg11_ts"]
    assert recipe.find(settings) == Path(settings)
    assert recipe.find(str(run)) == Path(settings)
    assert recipe.find("digits/vgg11_ts") == Path(shipped)
    assert recipe.find("digits/vgg11_ts.toml") == Path(shipped)
    with pytest.raises(ConfigError, match=r'no recipe "digits/vgg11_tz" \(did you mean "digits/'):
        recipe.find("digits/vgg11_tz")


@pytest.mark.parametrize("name", ["", "~no-such-user/x", "x" * 5000, "a\0b", "no/such/recipe"])
def test_what_is_no_recipe_is_told_as_that(name: str) -> None:
    with pytest.raises(ConfigError, match="no recipe"):
        recipe.find(name)


@pytest.mark.parametrize(
    "content",
    [b"[training\n", b"a = 1\na = 2\n", b"\xff\xfe", b"a = " + b"9" * 5000, b"a = " + b"[" * 9000],
    ids=["syntax", "twice", "encoding", "number", "nesting"],
)
def test_bad_toml_is_told_with_its_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"recipe .*bad\.toml can't be read"):
        recipe.read(str(path))


def test_a_config_written_and_read_back_is_the_same(tmp_path: Path) -> None:
    before = resolve(
        [from_assignments(["schedule.milestones=[1, 2.5]", "optimizer.lr=0.1", 'data.dir="ä\\n"'])]
    )
    file = write(tmp_path, tomli_w.dumps(before.model_dump(mode="json")), "config.toml")
    assert resolve([recipe.read(str(tmp_path))]) == before
    assert tomllib.loads(Path(file).read_text(encoding="utf-8"))["data"]["dir"] == "ä\n"


@pytest.mark.parametrize("key", ["data.name", "data.dir", "training.device", "training.epochs"])
def test_bytes_that_are_no_text_are_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=f"--set: {key} = .*: it is not UTF-8"):
        resolve([from_assignments([f"{key}=\udc80"])])


@given(KEYS, VALUES)
def test_any_assignment_gives_a_config_or_a_config_error(key: str, text: str) -> None:
    try:
        config = resolve([from_assignments([f"{key}={text}"])])
    except ConfigError:
        return
    assert isinstance(config, Config)
    if "\udc80" not in text:
        written = tomllib.loads(tomli_w.dumps(config.model_dump(mode="json")))
        assert resolve([Layer("x", flatten(written))]) == config


@given(KEYS, VALUES)
def test_any_variable_gives_a_config_or_a_config_error(key: str, text: str) -> None:
    name = f"TSER_{key.upper().replace('.', '_')}"
    try:
        assert isinstance(resolve([from_environment({name: text})]), Config)
    except ConfigError as error:
        assert str(error)


@given(
    st.one_of(
        st.binary(),
        st.text().map(lambda text: text.encode(errors="replace")),
        st.tuples(KEYS, VALUES).map(lambda pair: " = ".join(pair).encode(errors="replace")),
    )
)
def test_any_file_gives_a_config_or_a_config_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(content)
    try:
        assert isinstance(resolve([recipe.read(str(path))]), Config)
    except ConfigError as error:
        assert str(error)


@given(st.text())
def test_any_name_is_found_or_not(name: str) -> None:
    try:
        assert recipe.find(name).is_file()
    except ConfigError as error:
        assert "no recipe" in str(error)


WITH_ENTROPY = '[method]\nname = "tser"\nentropy_weight = 0.1\ntemperature = 4.0\n'


def test_the_weights_of_a_recipe_belong_to_its_method(tmp_path: Path) -> None:
    layers = [recipe.read(write(tmp_path, WITH_ENTROPY)), from_flags({"method.name": "ce"})]
    assert resolve(layers).method == registry.METHODS["ce"].settings()
    (line,) = left_out(layers)
    stated = "method.entropy_weight = 0.1, method.temperature = 4.0"
    assert line == f"{layers[0].source}: {stated}: tser's, left out for ce"
    for kept in ([layers[0]], [layers[0], from_flags({"method.name": "tser"})]):
        assert resolve(kept).method.entropy_weight == 0.1
        assert left_out(kept) == []


def test_weights_without_a_method_are_the_default_one_s(tmp_path: Path) -> None:
    layer = recipe.read(write(tmp_path, "[method]\nentropy_weight = 0.1\n"))
    assert resolve([layer]).method.entropy_weight == 0.1
    assert resolve([layer, from_flags({"method.name": "ts"})]).method.entropy_weight == 0.0


def test_what_the_user_states_holds_for_the_method_that_is_chosen(tmp_path: Path) -> None:
    layers = [
        recipe.read(write(tmp_path, WITH_ENTROPY)),
        from_environment({"TSER_METHOD_NAME": "ts", "TSER_METHOD_TEMPERATURE": "3"}),
        from_assignments(["method.entropy_weight=0.2"]),
        from_flags({"method.name": "kd"}),
    ]
    found = resolve(layers)
    assert (found.method.name, found.method.temperature) == ("kd", 3.0)
    assert found.method.entropy_weight == 0.2
    assert config.method_label(found) == "kd+entropy"


def test_a_run_s_own_defaults_are_no_news(tmp_path: Path) -> None:
    made = resolve([from_assignments(["method.name=tsd", "method.beta=0.25"])])
    layers = [
        recipe.read(write(tmp_path, tomli_w.dumps(made.model_dump(mode="json")))),
        from_flags({"method.name": "kd"}),
    ]
    assert left_out(layers) == [f"{layers[0].source}: method.beta = 0.25: tsd's, left out for kd"]
    again = from_flags({"method.name": "tsd"})
    assert resolve([layers[0], again]) == made


def test_a_weight_that_the_method_does_not_read(tmp_path: Path) -> None:
    layer = recipe.read(write(tmp_path, '[method]\nname = "kd"\nlam = 0.1\n'))
    message = "method.lam: kd does not read it; it is read by tet"
    assert problems(layer) == [f"{layer.source}: {message}"]
    told = problems(from_flags({"method.name": "ce", "method.temperature": 4.0}))
    assert told[0].startswith("command line: method.temperature: ce does not read it; it is read ")
    (told,) = problems(from_assignments(["method.entropy_wieght=0.1"]))
    assert '"method.entropy_wieght" (did you mean "method.entropy_weight"?)' in told
    (told,) = problems(from_assignments(["method.name=tsre", "method.temperature=3"]))
    assert '--set: method.name: unknown method "tsre" (did you mean "tser"?)' in told


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("lrr", ' (did you mean "optimizer.lr"?)'),
        ("learning_rate", ' (did you mean "optimizer.lr"?)'),
        ("optimizer.learning_rate", ' (did you mean "optimizer.lr"?)'),
        ("optimizer.batch_size", ' (did you mean "training.batch_size"?)'),
        ("datasett", ' (did you mean "data.name"?)'),
        ("training.epoch", ' (did you mean "training.epochs"?)'),
        ("tau", ": it may mean method.temperature or neuron.tau"),
    ],
)
def test_an_unknown_key_brings_what_may_be_meant(key: str, hint: str) -> None:
    assert problems(Layer("x", {key: 1})) == [f'x: unknown key "{key}"{hint}']


def test_of_very_many_problems_the_first_are_told_and_the_rest_counted(tmp_path: Path) -> None:
    path = tmp_path / "many.toml"
    path.write_text("".join(f"unknown_{n} = 1\n" for n in range(20_000)) + "x" * 5000 + " = 1\n")
    with pytest.raises(ConfigError, match="and 19,981 more problems") as told:
        recipe.resolve([recipe.read(str(path))])
    lines = str(told.value).splitlines()
    assert len(lines) == 21
    assert max(map(len, lines)) < 300


def test_packaged_recipes_are_what_their_names_say() -> None:
    apart = ("ablations/", "students/")  # the latter name neither a data set nor a network
    for name in (name for name in recipe.available() if not name.startswith(apart)):
        found = resolve([recipe.read(name)])
        is_teacher = name.endswith("_teacher")
        network = found.model.teacher if is_teacher else found.model.student
        method = "teacher" if is_teacher else found.method.name
        # the glyphs are a file of your own
        dataset = "glyphs" if found.data.name == "npz" else found.data.name
        # simulated events of digits are read as n-mnist, and need a longer training
        assert name.replace("_digits", "") == f"{dataset}/{network}_{method}"


def test_recipes_of_others_settings_say_whose_they_are() -> None:
    """Training alone, with `ce`: nothing of it was run here."""
    others = [name for name in recipe.available() if name.endswith("_ce")]
    assert len(others) == 10
    for name in others:
        head = recipe.find(name).read_text(encoding="utf-8").split("[data]")[0].replace("\n# ", " ")
        assert "Not run by us" in head and "github.com/" in head and "commit " in head
        found = resolve([recipe.read(name)])
        ends_at = found.optimizer.lr * found.schedule.final_factor
        transformer = found.model.student != "ms_resnet18"
        assert ends_at == pytest.approx(1e-5 if transformer else 0.0)
        assert found.augment.mixes(0) is transformer


def test_packaged_recipes_build_their_networks() -> None:
    shape = {"channels": 3, "height": 32, "width": 32, "num_classes": 10}
    every = [resolve([recipe.read(name)]) for name in recipe.available()]
    students = {(of.model.student, of.neuron.model_dump_json()): of for of in every}
    teachers = {of.model.teacher for of in every} & registry.MODELS.keys()
    with torch.device("meta"):
        for made in students.values():
            student = build_model(made.model.student, neuron=made.neuron, **shape)
            assert student(torch.empty(2, 3, 32, 32), timesteps=2).shape == (2, 2, 10)
        for name in sorted(teachers):
            assert build_model(name, **shape)(torch.empty(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(
    ("stated", "both"),
    [
        ([{"data.frames": 6}], 6),
        ([{"data.frames": 6}, {"model.timesteps": 10}], 10),
        ([{"data.frames": 6, "model.timesteps": 10}, {"data.frames": 4}], 4),
        ([{"data.frames": 6, "model.timesteps": 10}], 10),
    ],
)
def test_frames_are_the_time_steps_whichever_is_stated_last(
    stated: list[dict[str, int]], both: int
) -> None:
    config = resolve([Layer("", {"data.name": "n-mnist"}), *(Layer("", one) for one in stated)])
    assert (config.data.frames, config.model.timesteps) == (both, both)
    images = resolve([Layer("", {"model.timesteps": 3})])
    assert (images.data.frames, images.model.timesteps) == (0, 3)
