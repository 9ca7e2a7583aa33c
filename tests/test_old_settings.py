"""Settings files that version 0.1 wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tomli_w

from tser_cli.base.errors import ConfigError
from tser_cli.settings import recipe
from tser_cli.settings.config import Config
from tser_cli.settings.fields import split
from tser_cli.settings.old_settings import of_today


def config_toml(folder: Path, method: dict[str, Any], smoothing: float = 0.0) -> recipe.Layer:
    """config.toml of a run of version 0.1, which held the weights of all methods."""
    weights = {"temperature": 2.0, "ce_weight": 1.0, "kd_weight": 1.0, "entropy_weight": 0.0}
    weights |= {"feature_weight": 0.0, "alpha": 0.0, "beta": 0.0, "lam": 0.0, "target": "correct"}
    flat = {k: v for k, v in Config().flat().items() if not k.startswith("method.")}
    sections = split(flat) | {"method": weights | method}
    sections["training"]["label_smoothing"] = smoothing
    (folder / "config.toml").write_text(tomli_w.dumps(sections))
    return recipe.read(str(folder))


@pytest.mark.parametrize(
    ("method", "same"),
    [
        ({"name": "kd"}, {"name": "kd"}),
        ({"name": "tser", "entropy_weight": 0.05}, {"name": "tser"}),
        ({"name": "kd", "alpha": 0.7}, {"name": "kd"}),  # which kd never read
        ({"name": "ts", "entropy_weight": 0.2}, {"name": "ts", "entropy_weight": 0.2}),
        (
            {"name": "tsd", "temperature": 3.0, "alpha": 0.2, "beta": 0.5},
            {"name": "tsd", "no_right_step": "skip"},
        ),
        (
            {"name": "dkd", "temperature": 4.0, "alpha": 1.0, "beta": 8.0},
            {"name": "dkd", "kd_warmup_epochs": 0.0},
        ),
        ({"name": "tet", "lam": 0.05}, {"name": "tet", "lam": 0.05}),
    ],
    ids=lambda method: "-".join(str(value) for value in method.values()),
)
def test_a_run_s_settings_mean_what_they_meant(
    tmp_path: Path, method: dict[str, Any], same: dict[str, Any]
) -> None:
    today = Config().updated({f"method.{key}": value for key, value in same.items()})
    assert recipe.resolve([config_toml(tmp_path, method)]) == today


def test_label_smoothing_has_become_the_method_s(tmp_path: Path) -> None:
    read = recipe.resolve([config_toml(tmp_path, {"name": "kd"}, smoothing=0.1)])
    assert read.method.label_smoothing == 0.1
    assert of_today({"training.label_smoothing": 0.2, "training.epochs": 3}) == {
        "method.label_smoothing": 0.2,
        "training.epochs": 3,
    }


def test_a_recipe_by_hand_is_not_touched(tmp_path: Path) -> None:
    stated = {"method.name": "kd", "method.alpha": 0.5}
    assert of_today(stated) == stated
    (tmp_path / "mine.toml").write_text('[method]\nname = "kd"\nalpha = 0.5\n')
    with pytest.raises(ConfigError, match=r"method\.alpha: kd does not read it"):
        recipe.resolve([recipe.read(str(tmp_path / "mine.toml"))])


def test_settings_of_today_stay_as_they_are() -> None:
    for name in ("tsd", "dkd", "kd"):
        flat = Config().updated({"method.name": name}).flat()
        assert of_today(flat) == flat
    assert of_today({"method.name": "no such method"}) == {"method.name": "no such method"}
