"""The code of docs/deployment.md, run as it stands."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tser_cli.export import formats

PAGE = Path(__file__).parents[2] / "docs" / "deployment.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
LIBRARIES = {
    "snntorch": ("import snntorch", 1e-10),
    "spikingjelly": ("import_from_nir", 1e-10),
    "onnxruntime": ("student.onnx", 1e-5),
    "onnxruntime, stepwise": ("step.onnx", 1e-5),
}


def test_every_block_is_tried() -> None:
    assert len(BLOCKS) == len(LIBRARIES)


@pytest.mark.parametrize(("part", "tolerance"), LIBRARIES.values(), ids=LIBRARIES)
def test_the_page_s_code_gives_the_student_s_logits(
    sew: Any, part: str, tolerance: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (program,) = [block for block in BLOCKS if part in block]
    monkeypatch.chdir(tmp_path)
    for name, stateful in (("student.nir", False), ("student.onnx", False), ("step.onnx", True)):
        content = formats.content(sew.graph, name.split(".")[1], stateful)
        (tmp_path / name).write_bytes(content)
    np.save(tmp_path / "images.npy", sew.images_NCHW.numpy())
    (tmp_path / "program.py").write_text(program)
    logits_TNK = np.asarray(runpy.run_path("program.py")["logits_TNK"])
    scale = max(1.0, float(np.abs(sew.truth.logits_TNK).max()))
    assert float(np.abs(logits_TNK - sew.truth.logits_TNK).max()) < tolerance * scale
