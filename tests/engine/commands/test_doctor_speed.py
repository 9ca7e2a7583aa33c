"""The speed check: what is measured, and what is kept."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from tser_cli.engine.commands import doctor
from tser_cli.engine.commands.doctor import Record, Speed, best_known, best_seconds, keep_best

CPU = torch.device("cpu")


def test_the_shortest_repetition_counts() -> None:
    # a clock that moves by 1, 2, 3 ... with each look
    ticks = itertools.accumulate(itertools.count(1))
    done = []
    assert best_seconds(lambda: done.append(1), lambda: float(next(ticks))) == 3.0
    assert len(done) == 1 + doctor.FEWEST


def test_the_operations_are_those_of_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "SIDE", 8)
    _, flop = doctor.matrices(CPU)
    assert flop == 8 * 8 * (8 + 8)  # a product is 8 x 8 sums of 8 products
    _, flop = doctor.convolution(CPU)
    # 32 images of 32 x 32 pixels and 64 channels, each a sum of 9 x 64 products
    assert flop == 32 * 32 * 32 * 64 * (9 * 64 * 2)


def test_a_measurement_restores_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "SIDE", 8)
    monkeypatch.setattr(doctor, "IMAGES", 1)
    ticks = itertools.count()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    chosen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    found = doctor.measure(CPU, lambda: float(next(ticks)))
    assert chosen == [1, 2]
    assert found.matmul == found.one_thread == pytest.approx(2 * 8**3 / 1e9)


def test_the_best_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "speed.json"
    assert best_known(path, "a") is None
    keep_best(path, "a", Speed(10.0, 5.0, 4.0), "2025-01-01")
    keep_best(path, "a", Speed(9.0, 6.0, 4.0), "2025-01-02")
    keep_best(path, "b", Speed(1.0, 1.0, 1.0), "2025-01-03")
    assert best_known(path, "a") == Record(Speed(10.0, 5.0, 4.0), "2025-01-01")
    keep_best(path, "a", Speed(11.0, 4.0, 4.0), "2025-01-04")
    assert best_known(path, "a") == Record(Speed(11.0, 4.0, 4.0), "2025-01-04")
    assert best_known(path, "b") == Record(Speed(1.0, 1.0, 1.0), "2025-01-03")


@pytest.mark.parametrize(
    "content",
    [
        "{",
        '{"a": 3}',
        '{"a": {"speed": 1, "day": "x"}}',
        '{"a": {"speed": {"matmul": "x"}, "day": "x"}}',
        '{"a": {"speed": {"matmul": "x", "convolution": 1, "one_thread": 1}, "day": "x"}}',
        '{"a": {"speed": {"matmul": 0, "convolution": 1, "one_thread": 1}, "day": "x"}}',
    ],
)
def test_records_that_are_damaged_are_none(tmp_path: Path, content: str) -> None:
    path = tmp_path / "speed.json"
    path.write_text(content)
    assert best_known(path, "a") is None
    keep_best(path, "a", Speed(1.0, 1.0, 1.0), "2025-01-01")
    assert best_known(path, "a") == Record(Speed(1.0, 1.0, 1.0), "2025-01-01")


def test_a_place_that_can_t_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    keep_best(tmp_path / "file" / "speed.json", "a", Speed(1.0, 1.0, 1.0), "2025-01-01")


def test_what_is_compared_is_the_same_machine() -> None:
    name = doctor.key(CPU)
    assert f"torch {torch.__version__}" in name
    assert name.endswith(f"{torch.get_num_threads()} threads")
