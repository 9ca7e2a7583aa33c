"""Image files of other sizes and modes, and what is told of those that can't be read."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tser_cli.base.errors import DataError
from tser_cli.data.image_files import fitted_picture, picture_files, thumbnail

GREY = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def test_folders_are_searched_to_their_depth_in_order(tmp_path: Path) -> None:
    for name in ("b.png", "a/z.PNG", "a/b/c.bmp", ".hidden.png"):
        save(tmp_path / name, GREY)
    (tmp_path / "notes.txt").write_text("no image")
    named = picture_files([str(tmp_path), "elsewhere.png"])
    found = [path.relative_to(tmp_path).as_posix() for path in named[:-1]]
    assert found == ["a/b/c.bmp", "a/z.PNG", "b.png"]
    assert named[-1] == Path("elsewhere.png")


def test_a_folder_without_images_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no images"):
        picture_files([str(tmp_path)])


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_of_the_network_s_size_keeps_its_pixels(tmp_path: Path, channels: int) -> None:
    path = save(tmp_path / "grey.png", GREY)
    expected = torch.from_numpy(GREY).expand(channels, -1, -1)
    assert torch.equal(fitted_picture(path, (channels, 6, 8)), expected)


def test_colours_become_grey_and_transparency_is_dropped(tmp_path: Path) -> None:
    pixels = np.zeros((2, 2, 4), dtype=np.uint8)
    pixels[..., 0] = 200  # red, wholly transparent
    path = save(tmp_path / "red.png", pixels)
    assert fitted_picture(path, (3, 2, 2))[:, 0, 0].tolist() == [200, 0, 0]
    # 0.299 of red (ITU-R 601)
    assert fitted_picture(path, (1, 2, 2))[0, 0, 0] == 60


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_no_image_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"broken\.png can't be read"):
        fitted_picture(path, (1, 8, 8))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.png"):
        fitted_picture(tmp_path / "gone.png", (1, 8, 8))


def test_a_network_of_other_channels_takes_no_pictures(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 channels"):
        fitted_picture(save(tmp_path / "grey.png", GREY), (2, 8, 8))


@pytest.mark.parametrize(("side", "sizes"), [(8, (16, 24)), (96, (300, 200)), (96, (20, 30))])
def test_other_sizes_are_resized_and_cropped(
    tmp_path: Path, side: int, sizes: tuple[int, int]
) -> None:
    path = save(tmp_path / "other.png", np.full(sizes, 90, dtype=np.uint8))
    assert torch.equal(
        fitted_picture(path, (1, side, side)), torch.full((1, side, side), 90, dtype=torch.uint8)
    )


def test_the_middle_is_kept(tmp_path: Path) -> None:
    pixels = np.zeros((8, 24), dtype=np.uint8)
    pixels[:, 8:16] = 255
    path = save(tmp_path / "wide.png", pixels)
    assert bool((fitted_picture(path, (1, 8, 8)) == 255).all())
    # twice as large before the crop, only the inner half of that is left
    assert bool((fitted_picture(path, (1, 8, 8), shorter=16) == 255).all())


@pytest.mark.parametrize(
    ("shape", "size", "mode"),
    [((1, 8, 8), (8, 8), "L"), ((3, 100, 200), (64, 32), "RGB"), ((1, 1, 300), (64, 1), "L")],
)
def test_a_thumbnail_is_a_small_png(
    shape: tuple[int, int, int], size: tuple[int, int], mode: str
) -> None:
    pixels_CHW = torch.randint(0, 256, shape, dtype=torch.uint8)
    with Image.open(io.BytesIO(thumbnail(pixels_CHW, 64))) as image:
        assert (image.size, image.mode, image.format) == (size, mode, "PNG")
        if size == shape[:0:-1]:  # nothing was scaled
            assert list(image.tobytes()) == pixels_CHW.permute(1, 2, 0).flatten().tolist()


def test_two_channels_are_no_picture() -> None:
    with pytest.raises(DataError, match="2 channels"):
        thumbnail(torch.zeros(2, 8, 8, dtype=torch.uint8), 64)
