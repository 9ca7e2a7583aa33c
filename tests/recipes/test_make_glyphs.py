"""The script that draws the glyphs, on the few fonts that matplotlib brings."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType

import matplotlib
import numpy as np
import pytest

from tser_cli.data.own import npz
from tser_cli.settings.config import DataConfig

SCRIPT = Path(__file__).resolve().parents[2] / "recipes/glyphs/make_glyphs.py"
FONTS = Path(matplotlib.get_data_path()) / "fonts/ttf"
CHARACTERS = 94


@pytest.fixture(scope="module")
def glyphs() -> ModuleType:
    """The script as a module; the test is skipped where there is no checkout or no font."""
    if not (SCRIPT.is_file() and FONTS.is_dir()):
        pytest.skip("the script or the fonts are not here")
    spec = importlib.util.spec_from_file_location("make_glyphs", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_glyphs"] = module  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    return module


def font(glyphs: ModuleType, name: str, images_CHW: np.ndarray) -> object:
    return glyphs.Font(name, images_CHW)


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (CHARACTERS, 28, 28), dtype=np.uint8)


def test_characters_are_in_the_middle_and_on_one_scale(glyphs: ModuleType) -> None:
    drawn = glyphs.draw(FONTS / "DejaVuSans.ttf")
    assert (drawn.images_CHW.shape, drawn.images_CHW.dtype) == ((CHARACTERS, 28, 28), np.uint8)
    heights = {}
    for character, image in zip(glyphs.CHARACTERS, drawn.images_CHW, strict=True):
        for ink in (image.any(axis=1), image.any(axis=0)):
            first, last = np.flatnonzero(ink)[[0, -1]]
            assert abs((first + last) / 2 - 13.5) <= 1, character
        heights[character] = int(image.any(axis=1).sum())
    assert heights["."] < heights["o"] < heights["O"] < heights["|"]
    assert max(heights.values()) >= 25
    assert (drawn.family, glyphs.is_legible(drawn)) == ("dejavu", True)


def test_what_is_no_font_of_these_characters_falls_out(glyphs: ModuleType, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.ttf"
    damaged.write_bytes((FONTS / "DejaVuSans.ttf").read_bytes()[:2000])
    assert glyphs.draw(damaged) is None
    assert glyphs.draw(FONTS / "STIXSizFiveSymReg.ttf") is None  # a font of large brackets
    alike = noise(0)
    alike[:9] = alike[9]
    assert not glyphs.is_legible(font(glyphs, "alike", alike))
    fonts = [font(glyphs, "a", noise(1)), font(glyphs, "b", noise(1)), font(glyphs, "c", noise(1))]
    dingbats = font(glyphs, "dingbats", np.roll(noise(1), 1, axis=0))
    assert glyphs.known_characters([*fonts, dingbats]).tolist() == [1.0, 1.0, 1.0, 0.0]


def test_copies_crowds_and_near_copies_leave(glyphs: ModuleType) -> None:
    fonts = [font(glyphs, name, noise(n)) for n, name in enumerate(["a one", "b", "c", "a two"])]
    copy = font(glyphs, "z", fonts[0].images_CHW)
    assert glyphs.without_copies([*fonts, copy]) == fonts
    crowd = [font(glyphs, f"a {n}", noise(n)) for n in range(6)]
    assert len(glyphs.without_crowds([*crowd, fonts[1]], 0)) == glyphs.MOST_OF_A_FAMILY + 1
    many = [font(glyphs, f"{chr(97 + n)} regular", noise(n)) for n in range(26)]
    train, test = glyphs.split(many, 0)
    assert len(train) + len(test) == 26 and train and test
    twin = font(glyphs, train[0].name + " twin", test[0].images_CHW)
    assert twin.family == train[0].family
    assert glyphs.split([*many, twin], 0) == (train, test)


def test_the_file_is_read_and_is_the_same_again(
    glyphs: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "fonts").mkdir()
    for name in ("DejaVuSans", "DejaVuSansMono-Bold", "STIXGeneral", "cmr10"):
        shutil.copy(FONTS / f"{name}.ttf", tmp_path / "fonts")
    # four fonts are three families: a share at which there are some on both sides
    monkeypatch.setattr(glyphs, "TEST_SHARE", 0.6)
    hashes = []
    for name in ("one.npz", "two.npz"):
        line = ["make_glyphs", str(tmp_path / name), "--fonts", str(tmp_path / "fonts")]
        monkeypatch.setattr(sys, "argv", line)
        glyphs.main()
        hashes.append(capsys.readouterr().out.split()[0])
    assert hashes[0] == hashes[1]
    dataset = npz(DataConfig(name="npz", dir=str(tmp_path / "one.npz")))
    assert (dataset.spec.num_classes, dataset.spec.height) == (CHARACTERS, 28)
    with np.load(tmp_path / "one.npz") as arrays:
        names = {
            part: {str(n).split()[0] for n in arrays[f"{part}_fonts"]} for part in ("train", "test")
        }
        assert len(dataset.train) == CHARACTERS * len(arrays["train_fonts"])
    assert names["train"] and names["test"] and not names["train"] & names["test"]
