"""Image files that are not what their names say, and those of other sizes and modes."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tser_cli.base.errors import DataError
from tser_cli.data.image_files import (
    fitted_picture,
    picture_files,
    read_image,
    side_by_side,
    thumbnail,
)


def chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def test_no_program_is_started_for_postscript(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proof, folder = tmp_path / "proof", tmp_path / "bin"
    folder.mkdir()
    (folder / "gs").write_text(f"#!/bin/sh\ntouch {proof}\n")
    (folder / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    path = tmp_path / "x.png"
    path.write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\nshowpage\n"
    )
    with pytest.raises(DataError, match="it is none of JPEG, PNG"):
        read_image(path)
    assert not proof.exists()


@pytest.mark.parametrize("suffix", ["PNG", "TIFF", "PPM"])
def test_of_16_bits_the_upper_8_count(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 255, 256], [40_000, 65_279, 65_535]], np.uint16)
    path = tmp_path / f"x.{suffix.lower()}"
    Image.fromarray(values).save(path, suffix)
    expected = [[0, 0, 1], [156, 254, 255]]
    assert read_image(path, 1).tolist() == [expected]
    assert read_image(path, 3).tolist() == [expected] * 3
    path.write_bytes(png(1, 1, 16, 2, b"\0" + struct.pack(">3H", 255, 40_000, 65_535)))
    assert read_image(path).flatten().tolist() == [0, 156, 255]


@pytest.mark.parametrize("values", [np.int32([[70_000]]), np.float32([[0.5]])])
def test_values_of_no_known_range_are_refused(tmp_path: Path, values: np.ndarray) -> None:
    path = tmp_path / "x.tiff"
    Image.fromarray(values).save(path)
    with pytest.raises(DataError, match=r"x\.tiff can't be read as an image: .* 32 bits"):
        read_image(path)


@pytest.mark.parametrize("size", [(20_000, 1), (1, 20_000), (101, 1)])
def test_a_line_is_no_image(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "x.png"
    Image.new("L", size).save(path)
    with pytest.raises(DataError, match="pixels are more than 100 to 1"):
        read_image(path)


@pytest.mark.parametrize("side", [9_500, 20_000, 2**31 - 1])
def test_a_decompression_bomb_is_not_unpacked(tmp_path: Path, side: int) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(png(side, side, 8, 0, bytes(1000)))
    with pytest.raises(DataError, match="decompression bomb"):
        read_image(path)


def test_what_is_no_regular_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    for path in (tmp_path / "x.png", tmp_path, Path("/dev/zero"), tmp_path / ("x" * 300)):
        with pytest.raises(DataError, match="is no regular file"):
            read_image(path)


@pytest.mark.parametrize("suffix", ["PNG", "JPEG", "TIFF", "BMP", "WEBP", "PPM"])
def test_damage_anywhere_is_told_or_harmless(tmp_path: Path, suffix: str) -> None:
    rng = np.random.default_rng(0)
    whole = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (12, 9, 3), dtype=np.uint8)).save(whole, suffix)
    path = tmp_path / "x.png"
    for _ in range(150):
        content = bytearray(whole.getvalue())
        for _ in range(rng.integers(1, 4)):
            content[rng.integers(len(content))] = rng.integers(256)
        path.write_bytes(content[: rng.integers(1, len(content) + 1)])
        try:
            assert read_image(path).shape[0] == 3
        except DataError as error:
            assert str(error).startswith(f"{path} can't be read as an image: ")


@pytest.mark.parametrize("suffix", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_images_come_upright(tmp_path: Path, suffix: str) -> None:
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:, :12] = 220
    upright[:8, 12:] = 100
    # what undoes each of EXIF's orientations: rows of pixels as the camera has written them
    stored = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    for orientation, method in stored.items():
        exif, image = Image.Exif(), Image.fromarray(upright)
        exif[0x0112] = orientation
        turned = image if method is None else image.transpose(Image.Transpose(method))
        turned.save(tmp_path / "x.png", suffix, exif=exif, quality=95)
        found = read_image(tmp_path / "x.png").permute(1, 2, 0).numpy().astype(int)
        assert found.shape == upright.shape
        assert np.abs(found - upright).mean() < 4, orientation


def test_damaged_metadata_leaves_an_image_as_it_lies(tmp_path: Path) -> None:
    content = io.BytesIO()
    Image.new("L", (9, 7), 80).save(content, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff\x12")
    (tmp_path / "x.jpg").write_bytes(content.getvalue())
    assert read_image(tmp_path / "x.jpg", 1).shape == (1, 7, 9)


GREY = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def test_folders_are_searched_to_their_depth_in_order(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no images"):
        picture_files([str(tmp_path)], Counter())
    with pytest.raises(DataError, match=r"elsewhere\.png: there is no such file"):
        picture_files(["elsewhere.png"], Counter())
    for name in ("b.png", "a/z.PNG", "a/b/c.bmp", ".hidden.png"):
        save(tmp_path / name, GREY)
    (tmp_path / "notes.txt").write_text("no image")
    others: Counter[str] = Counter()
    named = picture_files([str(tmp_path), "elsewhere.png"], others)
    assert others == {".txt": 1}
    found = [path.relative_to(tmp_path).as_posix() for path in named[:-1]]
    assert found == ["a/b/c.bmp", "a/z.PNG", "b.png"]
    assert named[-1] == Path("elsewhere.png")


def test_an_image_of_the_network_s_size_keeps_its_pixels(tmp_path: Path) -> None:
    path = save(tmp_path / "grey.png", GREY)
    for channels in (1, 3):
        expected = torch.from_numpy(GREY).expand(channels, -1, -1)
        assert torch.equal(fitted_picture(path, (channels, 6, 8)), expected)
    with pytest.raises(DataError, match="2 channels"):
        fitted_picture(path, (2, 8, 8))
    with pytest.raises(DataError, match="2 channels"):
        thumbnail(torch.zeros(2, 8, 8, dtype=torch.uint8), 64)


def test_colours_become_grey_and_transparency_is_dropped(tmp_path: Path) -> None:
    pixels = np.zeros((2, 2, 4), dtype=np.uint8)
    pixels[..., 0] = 200  # red, wholly transparent
    path = save(tmp_path / "red.png", pixels)
    assert fitted_picture(path, (3, 2, 2))[:, 0, 0].tolist() == [200, 0, 0]
    # 0.299 of red (ITU-R 601)
    assert fitted_picture(path, (1, 2, 2))[0, 0, 0] == 60
    Image.new("RGB", (3, 2), (255, 0, 0)).save(path)
    assert read_image(path, 1).tolist() == [[[76] * 3] * 2]
    assert read_image(path).shape == (3, 2, 3)


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


def test_frames_lie_side_by_side_in_colours() -> None:
    frames_TCHW = torch.zeros(4, 2, 2, 3, dtype=torch.uint8)
    frames_TCHW[0, 1, 0, 0] = frames_TCHW[1, 0, 1, 2] = 2  # brighter, darker
    frames_TCHW[3, :, 0, 0] = 4  # both
    image = side_by_side(frames_TCHW, 3)
    assert image.shape == (3, 2 * 2 + 1, 3 * 3 + 2)
    assert image[:, 0, 0].tolist() == [128, 0, 0] and image[:, 1, 6].tolist() == [0, 0, 128]
    assert image[:, 3, 0].tolist() == [255, 255, 255] and image[:, 4, 1].tolist() == [0, 0, 0]
    assert {int(grey) for grey in image[:, :, 3].flatten()} == {128}
