"""All cells of an ablation have one precision."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tser_cli.base.progress import Silent
from tser_cli.engine.ablation.folder import AblationFolder, checked_plan, write_plan
from tser_cli.engine.ablation.grid import Request
from tser_cli.engine.commands import ablate

Ask = Callable[..., Request]


def test_one_precision_is_chosen_for_all_cells_and_kept(
    ask: Ask, place: AblationFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, asked = ask(["method=ce,kd"], 2, {"training.precision": "auto"}), list[str]()

    def found(precision: str) -> set[str]:
        monkeypatch.setattr(ablate, "prepare", lambda config, progress: config)
        monkeypatch.setattr(
            ablate, "choose_precision", lambda kind, context: asked.append(kind) or precision
        )
        settled = ablate.with_one_precision(request, place, Silent())
        write_plan(place, checked_plan(settled, place))
        return {cell.config.training.precision for cell in settled.cells}

    assert found("bf16") == {"bf16"}
    assert asked == ["student"]
    assert found("fp32") == {"bf16"}  # the plan's


def test_a_precision_that_is_varied_stands(ask: Ask, place: AblationFolder) -> None:
    request = ask(["precision=fp32,bf16"])
    assert ablate.with_one_precision(request, place, Silent()) is request
