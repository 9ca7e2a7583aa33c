"""Image files of unknown origin: which count as images, and how one becomes pixels.

A file may be damaged, huge, of another kind than its name says, or no regular file at all. What
can't be read is named, and no program is started for it.
"""

from __future__ import annotations

import io
import os
import stat
import warnings
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from tser_cli.base.errors import DataError, reason
from tser_cli.base.files import is_file, is_folder
from tser_cli.data.transforms import RESIZE_RATIO

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")
# What these suffixes mean. Pillow goes by content: without a list it hands an EPS called x.png
# to Ghostscript, a program that it finds on PATH.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF")
HEAD = 16  # bytes by which Pillow tells formats apart
MOST_SUFFIXES = 5
# Scaling the shorter side of a line of pixels up to the network's input takes gigabytes.
MAX_RATIO = 100
MODES = {1: "L", 3: "RGB"}


def read_image(path: Path, channels: int = 3) -> torch.Tensor:
    """Return the image as uint8 [channels, H, W]: grey for 1, RGB for 3; upright, as EXIF says.

    Of 16 bits a value the upper eight count. Raises DataError that names a file that is no
    regular file or no sound image, that is too large (Pillow's bound against decompression
    bombs, 89 million pixels) or too thin, or whose values have no known range.
    """
    if channels not in MODES:
        raise DataError(f"the network takes {channels} channels; images have 1 or 3")
    if not is_file(path):
        raise DataError(f"{path} is no regular file; only those are read as images")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of metadata that nothing here reads
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                pixels_HWC = _pixels(image, MODES[channels])
    # a damaged file can make the decoders fail in any way
    except Exception as error:
        unknown = isinstance(error, UnidentifiedImageError)
        why = f"it is none of {', '.join(FORMATS)}" if unknown else error
        raise DataError(
            f"{path} can't be read as an image: {why}. Replace the file or remove it"
        ) from error
    return torch.from_numpy(pixels_HWC).permute(2, 0, 1).contiguous()


def _pixels(image: Image.Image, mode: str) -> np.ndarray:
    width, height = image.size
    if max(width, height) > MAX_RATIO * min(width, height):
        raise ValueError(f"{width} x {height} pixels are more than {MAX_RATIO} to 1")
    image.load()
    # a camera that is held upright writes rows of pixels that lie on their side, and notes it
    with suppress(Exception):  # damaged metadata of sound pixels
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        # Pillow itself would clip them to 255, but halves the bits of 16-bit colour
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError("its values have 32 bits, of no known range")
    pixels = np.array(image.convert(mode))
    return pixels.reshape(*pixels.shape[:2], -1)


def header_fault(path: Path) -> str:
    """Return why a file can't be an image, by its first bytes alone; "" where it may be one."""
    Image.init()  # once: which formats there are
    try:
        with path.open("rb") as stream:
            head = stream.read(HEAD)
    except OSError as error:
        return reason(error)
    accepts = (Image.OPEN[name][1] for name in FORMATS)
    if any(accept is not None and accept(head) is True for accept in accepts):
        return ""
    return f"it is none of {', '.join(FORMATS)}" if head else "it is empty"


def passed_over(counts: Counter[str], suffixes: tuple[str, ...] = SUFFIXES) -> str:
    """Return in words which files are left out, by suffix, and what to do; "" for none."""
    if not counts:
        return ""
    shown = [f"{n} {suffix or 'without a suffix'}" for suffix, n in counts.most_common()]
    listed = ", ".join(shown[:MOST_SUFFIXES] + ["..."] * (len(shown) > MOST_SUFFIXES))
    read = f"files left out: {listed}. Only {', '.join(suffixes)} are read"
    if suffixes != SUFFIXES:
        return read
    return f"{read}: convert those that are images (a .jfif file is a JPEG: rename it to .jpg)"


def image_files(
    folder: Path, name: str, others: Counter[str], suffixes: tuple[str, ...] = SUFFIXES
) -> list[bytes]:
    """Return the images in the class folder `name`, by path below `folder`, sorted.

    Only regular files with one of the suffixes count; the others are counted in `others`, hidden
    ones aside. Links are followed, but each folder counts once, and none that holds the
    class: a link may lead back to where it lies. Raises DataError where a folder can't be listed.
    """
    start = folder / name
    try:
        above = {_identity(path) for path in (*start.absolute().parents, *start.resolve().parents)}
        if _identity(start) in above:
            raise ValueError("it is a link to a folder that holds it")
        return [os.fsencode(path) for path in sorted(_walk(start, name, above, others, suffixes))]
    except (OSError, ValueError, RuntimeError) as error:
        where = getattr(error, "filename", None) or start
        raise DataError(
            f"{where} can't be listed: {reason(error)}. Mend it or remove it"
        ) from error


def picture_files(
    names: Iterable[str], others: Counter[str], suffixes: tuple[str, ...] = SUFFIXES
) -> list[Path]:
    """Return the files that `names` stand for: a folder is searched to its depth, by name.

    Its files that are no images are counted in `others`, by suffix. Raises DataError for a folder
    without images, or where nothing of that name is there; one file of several that is missing is
    found out on reading.
    """
    files: list[Path] = []
    for name in names:
        path = Path(name)
        if not is_folder(path):
            files.append(path)
            continue
        here: Counter[str] = Counter()
        found = image_files(path, ".", here, suffixes)
        if not found:
            raise no_images(path, here, suffixes)
        others += here
        files += [path / os.fsdecode(file) for file in found]
    if files and not any(os.path.lexists(file) for file in files):
        raise DataError(f"{files[0]}: there is no such file or folder")
    return files


def no_images(
    folder: Path, others: Counter[str], suffixes: tuple[str, ...] = SUFFIXES
) -> DataError:
    """Return the error for a folder that holds none, with what it holds instead."""
    what = "images" if suffixes == SUFFIXES else "files of events"
    left_out = passed_over(others, suffixes) or "It holds no files"
    return DataError(f"{folder} has no {what}. {left_out}")


def fitted_picture(path: Path, shape: tuple[int, int, int], shorter: int = 0) -> torch.Tensor:
    """Return the image file as uint8 [C, H, W] of that shape.

    Colours become grey for one channel, grey becomes RGB for three, transparency is dropped. An
    image of another size is resized until its shorter side has `shorter` pixels, then cropped to
    its middle; 0 means the network's side, or 256 / 224 of it above 64 pixels, as for ImageNet.
    Raises DataError where it can't be read.
    """
    channels, height, width = shape
    image_CHW = read_image(path, channels)
    if image_CHW.shape == shape:
        return image_CHW
    from torchvision.transforms import v2

    ratio = RESIZE_RATIO if max(height, width) > 64 else 1.0
    side = shorter or round(min(height, width) * ratio)
    result: torch.Tensor = v2.Compose([v2.Resize(side), v2.CenterCrop([height, width])])(image_CHW)
    return result


GAP = 1  # pixels between frames


def side_by_side(frames_TCHW: torch.Tensor, a_row: int) -> torch.Tensor:
    """Return frames as one image, uint8 [C, H, W], `a_row` in a row, as bright as they can be.

    Counts of events are shown in colours: red became brighter, blue darker, black had none.
    """
    bright_TCHW = frames_TCHW.float() * (255 / max(1, int(frames_TCHW.max())))
    if bright_TCHW.shape[1] == 2:
        darker, brighter = bright_TCHW.unbind(1)
        bright_TCHW = torch.stack((brighter, torch.minimum(brighter, darker), darker), 1)
    padded = torch.nn.functional.pad(bright_TCHW, (0, GAP, 0, GAP), value=128.0)
    empty = padded.new_full((-len(padded) % a_row, *padded.shape[1:]), 128.0)
    grid = torch.cat((padded, empty)).view(-1, a_row, *padded.shape[1:])
    # rows, frames of a row, C, H, W -> C, rows x H, frames x W
    image: torch.Tensor = grid.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
    return image[:, :-GAP, :-GAP].round().to(torch.uint8)


def thumbnail(image_CHW: torch.Tensor, side: int) -> bytes:
    """Return an image, uint8 [C, H, W], as a PNG whose longer side has at most `side` pixels.

    Raises DataError for other than 1 or 3 channels.
    """
    if image_CHW.shape[0] not in MODES:
        raise DataError(
            f"an image of {image_CHW.shape[0]} channels is no picture; those have 1 or 3"
        )
    pixels_HWC = image_CHW.permute(1, 2, 0).squeeze(-1).contiguous().numpy()
    picture = Image.fromarray(pixels_HWC)
    picture.thumbnail((side, side))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _walk(
    start: Path,
    name: str,
    seen: set[tuple[int, int]],
    others: Counter[str],
    suffixes: tuple[str, ...],
) -> Iterator[str]:
    # links come last, so that an image goes by the path without one
    waiting = deque([(os.fspath(start), name)])
    while waiting:
        folder, inside = waiting.popleft()
        identity = _identity(Path(folder))
        if identity in seen:
            continue
        seen.add(identity)
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
        for entry in entries:
            path = f"{inside}/{entry.name}"
            if _counts(entry, suffixes):
                yield path
            elif entry.is_symlink() and os.path.isdir(entry.path):  # noqa: PTH112  (ELOOP is False)
                waiting.append((entry.path, path))
            elif entry.is_dir(follow_symlinks=False):
                waiting.appendleft((entry.path, path))
            elif entry.name[0] != "." and os.path.isfile(entry.path):  # noqa: PTH113  (ELOOP is False)
                others[os.path.splitext(entry.name)[1].lower()] += 1  # noqa: PTH122


def _counts(entry: os.DirEntry[str], suffixes: tuple[str, ...]) -> bool:
    if not entry.name.lower().endswith(suffixes) or entry.name.startswith("."):
        return False
    if entry.is_symlink():
        return stat.S_ISREG(os.stat(entry.path).st_mode)  # noqa: PTH116  (raises for a link to nothing)
    return entry.is_file()


def _identity(folder: Path) -> tuple[int, int]:
    # two paths may lead to one folder, by links or by mounts
    found = folder.stat()
    return found.st_dev, found.st_ino
