"""The cells of an ablation: which there are, in which order, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from tser_cli.base.errors import ConfigError
from tser_cli.engine.ablation.grid import Request, choose_baseline, expand, make_request, parse_vary
from tser_cli.settings import recipe, registry
from tser_cli.settings.recipe import Layer

BASE = [Layer("recipe base.toml", {"data.name": "digits", "optimizer.lr": 0.05})]


def request(**changes: Any) -> Request:
    section = {"vary": ["method=ce,kd", "timesteps=1,2"], "seeds": 2}
    return make_request(BASE, section | changes)


def refused(message: str, **section: Any) -> None:
    with pytest.raises(ConfigError, match=message):
        make_request(BASE, {"vary": ["method=ce,kd"], "seeds": 1, **section})


def test_every_combination_once_seed_by_seed() -> None:
    cells = request().cells
    assert request().baseline == cells[0].varied  # where none is named
    assert {cell.seed for cell in make_request(BASE, {"vary": ["method=ce"]}).cells} == {0, 1, 2}
    assert [(c.seed, *c.varied.values()) for c in cells] == [
        *[(0, "ce", 1), (0, "ce", 2), (0, "kd", 1), (0, "kd", 2)],
        *[(1, "ce", 1), (1, "ce", 2), (1, "kd", 1), (1, "kd", 2)],
    ]
    assert [c.title for c in cells[2:4]] == [
        "method=kd, timesteps=1, seed 0",
        "method=kd, timesteps=2, seed 0",
    ]


def test_cells_differ_in_what_is_varied_alone() -> None:
    cells = request().cells
    for cell in cells:
        config = cell.config
        assert config.training.seed == cell.seed
        assert (config.method.name, config.model.timesteps) == tuple(cell.varied.values())
    changed = {"method.name": "ce", "model.timesteps": 1, "training.seed": 0}
    assert {cell.config.updated(changed).model_dump_json() for cell in cells} == {
        cells[0].config.model_dump_json()
    }


def test_each_method_comes_with_its_own_weights() -> None:
    cells = make_request(BASE, {}, ["method=tser,tsd,kd"], 1).cells
    assert [c.config.method for c in cells] == [
        registry.METHODS[name].settings() for name in ("tser", "tsd", "kd")
    ]


EACH = {"kd": {"kd_weight": 4.0, "temperature": 2.0}, "ts": {"kd_weight": 0.5}}


def test_each_method_may_have_weights_of_its_own() -> None:
    vary = ["method=ce,kd,ts"]
    base = [Layer("recipe base.toml", {"method.name": "kd", "method.kd_weight": 9.0}, True)]
    ce, kd, ts = (
        c.config.method for c in make_request(base, {"each": EACH, "vary": vary}, None, 1).cells
    )
    usual = registry.METHODS["ts"].settings()
    assert ce == registry.METHODS["ce"].settings()
    assert (kd.kd_weight, kd.temperature) == (4.0, 2.0)
    assert (ts.kd_weight, ts.temperature) == (0.5, usual.temperature)
    # a flag is for all of them; what --vary leaves out has no part
    flag = Layer("--set", {"method.kd_weight": 7.0})
    of_flags = make_request([*base, flag], {"each": EACH}, ["method=ce,kd"], 1).cells
    with pytest.raises(ConfigError, match="names no method kdd"):  # a slip, whatever is varied
        make_request(base, {"each": {"kdd": {}}}, ["method=ce,kd"], 1)
    assert of_flags[1].config.method == kd.model_copy(update={"kd_weight": 7.0})


@pytest.mark.parametrize(
    ("message", "each"),
    [
        ("vary names no method ts", EACH),
        ("each must have sections", {"kd": 3}),
        ("states what is varied", {"kd": {"name": "ce"}}),
        (r"\[ablation.each.kd\].*kd_weigth", {"kd": {"kd_weigth": 1.0}}),
    ],
)
def test_weights_of_single_methods_that_can_t_be_are_refused(message: str, each: Any) -> None:
    refused(message, each=each)


def test_a_recipe_s_weights_reach_its_own_method_alone() -> None:
    values = {"method.name": "tser", "method.entropy_weight": 0.1, "method.temperature": 4.0}
    base = [Layer("recipe base.toml", values, is_recipe=True)]
    made = make_request(base, {}, ["method=ce,tser"], 2)
    assert [c.config.method.entropy_weight for c in made.cells] == [0.0, 0.1] * 2
    weights = "method.entropy_weight = 0.1, method.temperature = 4.0"
    assert made.notes == (f"recipe base.toml: {weights}: tser's, left out for ce",)
    assert make_request(base, {}, ["T=1,2"], 1).notes == ()


def test_cells_that_would_differ_in_more_than_their_method() -> None:
    base = [Layer("recipe base.toml", {"method.temperature": 4.0}, is_recipe=True)]
    with pytest.raises(ConfigError) as error:
        make_request(base, {}, ["method=ce,kd,tser"], 2)
    assert str(error.value) == (
        "recipe base.toml: method.temperature = 4.0 is for tser, and kd has 2.0: the cells would "
        "differ in more than what is varied. State it for all: --set method.temperature=4.0"
    )
    stated = [*base, Layer("--set", {"method.temperature": 4.0})]
    made = make_request(stated, {}, ["method=ce,kd,tser"], 1)
    assert [c.config.flat().get("method.temperature") for c in made.cells] == [None, 4.0, 4.0]
    assert len(make_request(base, {}, ["method=kd,tser", "temperature=2,4"], 1).cells) == 4
    assert len(make_request(base, {}, ["method=ce,kd"], 1).cells) == 2


def test_a_stated_weight_reaches_the_methods_that_read_it() -> None:
    stated = [*BASE, Layer("--set", {"method.temperature": 2.0})]
    made = make_request(stated, {}, ["method=tsd,kd,ce"], 1)
    assert [c.config.method.temperature for c in made.cells[:2]] == [2.0, 2.0]
    assert made.cells[2].config.method == registry.METHODS["ce"].settings()
    (note,) = made.notes
    assert note.startswith("--set: method.temperature: ce does not read it; it is read by kd,")
    assert note.endswith("; its cells go without")


def test_a_stated_weight_that_no_cell_reads() -> None:
    with pytest.raises(ConfigError, match=r"--vary: method\.temperature: ce does not read it"):
        make_request(BASE, {}, ["method=ce,kd", "temperature=2,4"], 1)
    stated = [*BASE, Layer("--set", {"method.lam": 0.1})]
    with pytest.raises(ConfigError) as error:
        make_request(stated, {}, ["method=kd,ce"], 1)
    assert [line.split(";")[0] for line in str(error.value).splitlines()] == [
        "--set: method.lam: kd does not read it",
        "--set: method.lam: ce does not read it",
    ]


def test_entropy_that_is_added_shows_in_the_cells_names() -> None:
    stated = [*BASE, Layer("--set", {"method.entropy_weight": 0.1})]
    made = make_request(stated, {}, ["method=tser,kd"], 1, "method=kd")
    assert [cell.label for cell in made.cells] == ["method=tser", "method=kd+entropy"]
    assert made.baseline == {"method.name": "kd+entropy"}
    assert [cell.config.method.name for cell in made.cells] == ["tser", "kd"]
    varied = make_request(BASE, {}, ["method=kd", "entropy_weight=0,0.1"], 1)
    assert [cell.varied["method.name"] for cell in varied.cells] == ["kd", "kd"]
    stated = [*BASE, Layer("--set", {"method.rate_weight": 0.5})]
    labels = [cell.label for cell in make_request(stated, {}, ["method=tser,ce"], 1).cells]
    assert labels == ["method=tser+rate", "method=ce+rate"]


def test_energy_budgets_are_varied_by_their_short_name() -> None:
    made = make_request(BASE, {}, ["energy_budget=none,4uJ,25%"], 1)
    assert [cell.label for cell in made.cells] == [
        *("energy_budget=none", "energy_budget=4uJ", "energy_budget=25%")
    ]
    assert [cell.config.energy.budget for cell in made.cells] == ["none", "4uJ", "25%"]
    assert made.names == ["energy_budget"]
    with pytest.raises(ConfigError, match=r"energy\.budget = '4': \"4\" is no energy"):
        make_request(BASE, {}, ["energy_budget=4"], 1)


def test_values_have_the_type_of_their_key() -> None:
    assert parse_vary(["T=1, 2", "lr=1e-3,0.1", "training.deterministic=true,false"]) == {
        "model.timesteps": [1, 2],
        "optimizer.lr": [1e-3, 0.1],
        "training.deterministic": [True, False],
    }
    # one number has one name, and so one folder
    same = parse_vary(["temperature=2.0,-0.0,1e3,1e30"])["method.temperature"]
    assert [str(value) for value in same] == ["2", "0", "1000", "1e+30"]
    # a folder may be called 2024
    assert parse_vary(["teacher=2024,resnet18"]) == {"model.teacher": ["2024", "resnet18"]}


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["methd=ce"], r'--vary methd=ce: unknown key "methd" \(did you mean "method"\?\)'),
        (["method.nam=ce"], r'did you mean "method\.name"'),
        (["method"], "--vary method: write key=value,value"),
        (["method=ce,,kd"], "write key=value,value"),
        (["method="], "write key=value,value"),
        (["timesteps=1", "T=2"], "--vary T=2: timesteps is varied twice"),
        (["timesteps=1,2,1"], "1 stands there twice"),
        (["lr=1,1.0"], "1.0 stands there twice"),
        (["training.seed=1,2"], "seeds are counted by --seeds"),
        (["seed=1,2"], "seeds are counted by --seeds"),
        (["tau=2,4"], '--vary tau=2,4: "tau" may mean method.temperature or neuron.tau: write'),
    ],
)
def test_what_can_t_be_varied(texts: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_vary(texts)


def test_all_bad_values_are_told_at_once_and_once() -> None:
    with pytest.raises(ConfigError) as error:
        parse_vary(["methd=ce", "lrr=1", "T=1"])
    told = [line.split(":")[0] for line in str(error.value).splitlines()]
    assert told == ["--vary methd=ce", "--vary lrr=1"]
    with pytest.raises(ConfigError) as error:
        make_request(BASE, {}, ["method=ce,kdd", "timesteps=0,1"], 3)
    lines = str(error.value).splitlines()
    assert len(lines) == 2
    assert sum('unknown method "kdd" (did you mean "kd"?)' in line for line in lines) == 1
    assert sum("model.timesteps = 0" in line for line in lines) == 1


def test_flags_stand_above_the_section() -> None:
    made = make_request(
        BASE,
        {"vary": ["T=1,2"], "seeds": 5, "baseline": "T=2"},
        vary=["method=ce,kd"],
        seeds=1,
    )
    assert made.axes == ["method.name"]
    assert made.names == ["method"]
    assert len(made.cells) == 2
    assert made.baseline == {"method.name": "ce"}  # the section's belongs to what it varies


def test_problems_of_a_section() -> None:
    refused("must be a list", vary="method=ce,kd")
    refused("must be a list", vary=["method=ce", 3])
    refused("seeds = True must be a whole number", seeds=True)
    refused("seeds = 2.5 must be a whole number", seeds=2.5)
    refused("baseline must be a text", baseline=3)
    refused('measure = "speed" must be one of accuracy, best_validation_accuracy', measure="speed")
    for margin in (-1, 100, True, "low"):
        refused(r"accuracy_margin = .* must be points of percent", accuracy_margin=margin)
    refused(r'unknown key "seed" \(did you mean "seeds"\?\)', seed=3)
    refused(r"\[ablation\] vary methd=ce: unknown key", vary=["methd=ce"])
    with pytest.raises(ConfigError) as error:
        make_request(BASE, {"vary": 1, "seeds": "x", "sed": 1})
    assert len(str(error.value).splitlines()) == 3


def test_the_margin_of_the_accuracy_at_which_energies_are_compared() -> None:
    assert request().accuracy_margin == 0.005
    assert request(accuracy_margin=1).accuracy_margin == 0.01
    section = {"vary": ["method=ce"], "accuracy_margin": 1.0}
    assert make_request(BASE, section, margin=0.0).accuracy_margin == 0.0
    for margin in (-0.1, float("nan"), 100.0):
        with pytest.raises(ConfigError, match=r"--accuracy-margin .* points of percent"):
            make_request(BASE, section, margin=margin)


# a recipe may still use the older name
def test_a_validation_accuracy_needs_validation_images() -> None:
    name = "best_validation_accuracy"
    refused("data.validation_fraction", measure=name)
    section = {"vary": ["method=ce"], "measure": name}
    split = [*BASE, Layer("--set", {"data.validation_fraction": 0.1})]
    assert make_request(split, section).measure == "best_validation_accuracy"
    assert request().measure == "accuracy"


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("method=kd", {"method.name": "kd"}),
        ("T=2", {"model.timesteps": 2}),
        ("method=kd, timesteps=2", {"method.name": "kd", "model.timesteps": 2}),
        ("method=kd;T=2", {"method.name": "kd", "model.timesteps": 2}),
    ],
)
def test_a_baseline_that_is_named(text: str, chosen: dict[str, Any]) -> None:
    assert choose_baseline(request().cells, text) == chosen
    assert make_request(BASE, {}, ["method=ce,kd", "T=1,2"], 1, text).baseline == chosen


@pytest.mark.parametrize("text", ["method=ts", "lr=0.05", "method=kd,T=4"])
def test_a_baseline_that_is_no_cell(text: str) -> None:
    with pytest.raises(ConfigError, match=r"no such cell. Cells: method=ce, timesteps=1; .*=2$"):
        choose_baseline(request().cells, text)
    with pytest.raises(ConfigError, match="--baseline methd=kd: unknown key"):
        choose_baseline(request().cells, "methd=kd")


LADDER = "ablations/fashion-mnist_ladder"
PACKAGED = [name for name in recipe.available() if name.startswith("ablations/")]


@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_ablations_are_whole(name: str) -> None:
    made = make_request([recipe.read(name)], recipe.read_ablation(name))
    dataset, _, subject = name.removeprefix("ablations/").partition("_")
    # the glyphs are a file that is made, and no data set of the package
    stated = "npz" if dataset == "glyphs" else dataset
    assert {cell.config.data.name for cell in made.cells} == {stated}
    # where a run takes a minute or two there are more
    ten = dataset == "glyphs" or name in ("ablations/digits_rivals", LADDER)
    seeds = 10 if ten else 5
    assert {cell.seed for cell in made.cells} == set(range(seeds))
    chooses_a_default = subject in ("entropy_weight", "temperature")
    assert made.measure == ("best_validation_accuracy" if chooses_a_default else "accuracy")
    assert subject in made.names or made.names[0] == "method"
    text = recipe.find(name).read_text(encoding="utf-8")
    assert text.startswith(f"# command: tser ablate {name}")


def test_every_data_set_has_the_same_packaged_ablations() -> None:
    subjects = ("components", "entropy_weight", "temperature", "timesteps", "rivals")
    datasets = ("digits", "fashion-mnist", "cifar100")
    # a budget in joules rests on what a free student costs, which was measured on two of them
    budgets = {"ablations/digits_energy_budget", "ablations/fashion-mnist_energy_budget"}
    others = budgets | {"ablations/glyphs_components", "ablations/glyphs_each_at_its_best"}
    others |= {"ablations/n-mnist_events", "ablations/n-mnist_digits", LADDER}
    others |= {f"ablations/fashion-mnist_{student}" for student in ("qkformer", "sew_resnet20")}
    assert set(PACKAGED) == others | {f"ablations/{d}_{s}" for d in datasets for s in subjects}


def test_the_packaged_ablations_compare_every_method() -> None:
    compared = {
        str(cell.varied["method.name"])
        for subject in ("components", "rivals")
        for cell in make_request(
            [recipe.read(f"ablations/digits_{subject}")],
            recipe.read_ablation(f"ablations/digits_{subject}"),
        ).cells
    }
    assert compared == registry.METHODS.keys()


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        *((n, "at most 10,000 are taken") for n in (10**17, 10**4000, 5001)),
        *((n, f"--seeds {n}: at least one") for n in (0, -1)),
    ],
    ids=range(5),
)
def test_too_many_runs_and_none_are_refused_at_once(seeds: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        expand([Layer("tests", {})], {"model.timesteps": [1, 2]}, seeds)
    with pytest.raises(ConfigError, match="nothing is varied"):
        make_request(BASE, {})
