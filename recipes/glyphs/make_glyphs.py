"""Draw the glyphs: the 94 printable ASCII characters in many fonts, 28 x 28 pixels, grey.

    apt-get install --no-install-recommends $(tail -n +2 recipes/glyphs/packages.csv | cut -d, -f1)
    python recipes/glyphs/make_glyphs.py glyphs.npz
    tser distill --recipe glyphs/sew_resnet20_tser --data-dir glyphs.npz

The fonts are those of the Debian packages in packages.csv, beside this file; --fonts FOLDER draws
those of any folder instead. It needs numpy and Pillow, no network, and two minutes of one core.

- One scale for all characters of a font, the largest with which each fits, and each in the middle:
  o and O differ by size, and a comma may well look like an apostrophe.
- Left out: fonts that lack a character, that draw many characters alike (capitals in the place of
  small letters, say), whose pictures are not of these characters (dingbats), and copies of a font
  before them.
- Fonts whose names begin with the same word are one family. A family has at most 3 fonts, is all
  in the training or all in the test images, and a seeded hash of its name says in which: 80 : 20.
- A design may live under several names, as Arimo and Liberation Sans: training fonts that are
  nearly like a test font leave.

The file has train_images and test_images [fonts * 94, 28, 28], train_labels and test_labels (0 is
"!", 93 is "~"), the classes, and the names of the fonts. The same versions of packages, Pillow and
FreeType give the same bytes: glyphs.sha256 has their SHA-256, and that of what was made is printed.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import PIL
from PIL import ImageFont, features

PACKAGES = Path(__file__).with_name("packages.csv")
CHARACTERS = [chr(code) for code in range(33, 127)]
NONE = "\U0010ffff"  # no character: a font draws it as those that it lacks
SIDE, MARGIN = 28, 1
MEASURED = 128  # pixels an em, to find out how large a font may be drawn
FINE = (
    4  # drawn so many times larger, then averaged: hinting at small sizes differs between versions
)
SUFFIXES = (".ttf", ".otf", ".ttc")

TEST_SHARE = 0.2
MOST_OF_A_FAMILY = 3
FEWEST_PICTURES = 86  # of 94: l, I and | may look alike, all small letters and capitals may not
FEWEST_KNOWN = 0.2  # of the characters look most like the mean of their own class
# Cosines of two fonts' pixels, over all characters.
COPY = 0.98
NEARLY = 0.93


@dataclass(frozen=True)
class Font:
    """A font's drawings, uint8 [94, 28, 28], and what it is called."""

    name: str
    images_CHW: np.ndarray

    @cached_property
    def family(self) -> str:
        """The first word of its name: `noto` of Noto Sans Condensed."""
        return re.split(r"[^a-z]+", self.name.lower())[0] or self.name


def draw(path: Path) -> Font | None:
    """Return the font's drawings; None where it can't be drawn or lacks a character."""
    layout = ImageFont.Layout.BASIC  # the other one depends on a library of the system
    try:
        font = ImageFont.truetype(path, MEASURED, layout_engine=layout)
        lacking = bytes(font.getmask(NONE))
        if any(bytes(font.getmask(character)) in (lacking, b"") for character in CHARACTERS):
            return None
        extent = max(max(ink(font, character).shape) for character in CHARACTERS)
        size = MEASURED / max(extent, 1) * (SIDE - 2 * MARGIN) * FINE
        font = ImageFont.truetype(path, size, layout_engine=layout)
        images = [in_the_middle(ink(font, character)) for character in CHARACTERS]
    # what FreeType says of bitmap fonts and damaged files, and Pillow of very odd sizes
    except (OSError, ValueError):
        return None
    family, style = font.getname()
    return Font(f"{family or path.stem} {style or ''}".strip(), np.stack(images))


def ink(font: ImageFont.FreeTypeFont, character: str) -> np.ndarray:
    """Return the character's pixels without empty rows and columns around them, uint8 [H, W]."""
    mask = font.getmask(character)
    pixels_HW = np.frombuffer(bytes(mask), np.uint8).reshape(mask.size[::-1])
    rows, columns = (np.flatnonzero(pixels_HW.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return pixels_HW[:0, :0]
    return pixels_HW[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def in_the_middle(fine_HW: np.ndarray) -> np.ndarray:
    """Return the character in the middle of an image, uint8 [28, 28], each pixel a mean of 16."""
    image = np.zeros((SIDE * FINE, SIDE * FINE), np.uint32)
    height, width = fine_HW.shape
    top, left = (len(image) - height) // 2, (len(image) - width) // 2
    image[top : top + height, left : left + width] = fine_HW
    sums = image.reshape(SIDE, FINE, SIDE, FINE).sum(axis=(1, 3))
    return ((sums + FINE**2 // 2) // FINE**2).astype(np.uint8)


def is_legible(font: Font) -> bool:
    """Return whether no picture is empty and few are alike."""
    pictures = {image.tobytes() for image in font.images_CHW}
    return len(pictures) >= FEWEST_PICTURES and bool(font.images_CHW.any(axis=(1, 2)).all())


def known_characters(fonts: list[Font]) -> np.ndarray:
    """Return for each font the share of characters that look most like the mean of their class."""
    mean_CP = np.mean([font.images_CHW for font in fonts], axis=0).reshape(len(CHARACTERS), -1)
    mean_CP /= np.linalg.norm(mean_CP, axis=1, keepdims=True)
    right = np.arange(len(CHARACTERS))
    return np.array(
        [
            np.mean((font.images_CHW.reshape(len(right), -1) @ mean_CP.T).argmax(axis=1) == right)
            for font in fonts
        ]
    )


def cosines(fonts: list[Font]) -> np.ndarray:
    """Return how alike each two fonts are, [F, F]: the cosine of all their pixels."""
    products = np.zeros((len(fonts), len(fonts)))
    for character in range(len(CHARACTERS)):
        # whole numbers below 2^53, exact in any order: no machine decides otherwise
        pixels_FP = np.stack([font.images_CHW[character].ravel() for font in fonts])
        products += pixels_FP.astype(np.float64) @ pixels_FP.T.astype(np.float64)
    length = np.sqrt(products.diagonal())
    return products / length / length[:, None]


def hashed(text: str, seed: int) -> float:
    """Return a number in 0..1 that depends on the text and the seed alone."""
    return int.from_bytes(hashlib.sha256(f"{seed} {text}".encode()).digest()[:6], "big") / 2**48


def without_copies(fonts: list[Font]) -> list[Font]:
    """Return the fonts that are no copies of one before them."""
    alike = cosines(fonts)
    kept: list[int] = []
    for place in range(len(fonts)):
        if not (alike[place, kept] > COPY).any():
            kept.append(place)
    return [fonts[place] for place in kept]


def without_crowds(fonts: list[Font], seed: int) -> list[Font]:
    """Return at most so many fonts of a family, chosen by a hash of their names."""
    families: dict[str, list[Font]] = {}
    for font in sorted(fonts, key=lambda font: hashed(font.name, seed)):
        families.setdefault(font.family, []).append(font)
    chosen = {id(font) for family in families.values() for font in family[:MOST_OF_A_FAMILY]}
    return [font for font in fonts if id(font) in chosen]


def split(fonts: list[Font], seed: int) -> tuple[list[Font], list[Font]]:
    """Return training and test fonts: whole families, no training font nearly like a test font."""
    is_test = np.array([hashed(font.family, seed) < TEST_SHARE for font in fonts])
    near = (cosines(fonts)[:, is_test] > NEARLY).any(axis=1)
    train = [fonts[place] for place in np.flatnonzero(~is_test & ~near)]
    return train, [fonts[place] for place in np.flatnonzero(is_test)]


def make(paths: list[Path], seed: int) -> tuple[list[Font], list[Font]]:
    """Return training and test fonts of these files, and print how many fall out at each step."""

    def say(what: str, left: list[Font]) -> list[Font]:
        print(f"{len(left):5} fonts {what}", file=sys.stderr)
        return left

    drawn = [font for path in paths if (font := draw(path)) is not None]
    say(f"have all {len(CHARACTERS)} characters, of {len(paths)}", drawn)
    fonts = say("draw them differently", [font for font in drawn if is_legible(font)])
    if not fonts:
        raise SystemExit("no font is left")
    known = zip(fonts, known_characters(fonts), strict=True)
    fonts = say("draw these characters", [font for font, share in known if share >= FEWEST_KNOWN])
    fonts = say("are no copies", without_copies(fonts))
    fonts = say(f"are among {MOST_OF_A_FAMILY} of their family", without_crowds(fonts, seed))
    train, test = split(fonts, seed)
    say(f"are test fonts, of {len({font.family for font in test})} families", test)
    say(f"are training fonts, of {len({font.family for font in train})}", train)
    return train, test


def files_of_packages() -> list[Path]:
    """Return the font files of the packages in packages.csv; say where a version differs."""
    paths: list[Path] = []
    with PACKAGES.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        query = ["dpkg-query", "--show", "--showformat=${Version}", row["package"]]
        found = subprocess.run(query, capture_output=True, text=True).stdout
        if found != row["version"]:
            print(f"{row['package']}: {found or 'missing'}, not {row['version']}", file=sys.stderr)
        listed = ["dpkg", "--listfiles", row["package"]] if found else ["true"]
        names = subprocess.run(listed, capture_output=True, text=True, check=True).stdout
        paths += [Path(name) for name in sorted(names.splitlines())]
    return [path for path in paths if path.suffix.lower() in SUFFIXES and not path.is_symlink()]


def main() -> None:
    """Draw, write the npz and print its SHA-256."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("output", type=Path, help="the npz to write")
    parser.add_argument(
        "--fonts", type=Path, help="a folder of fonts, in the place of the packages"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the split")
    asked = parser.parse_args()
    if asked.fonts is None:
        paths = files_of_packages()
    else:
        paths = sorted(p for p in asked.fonts.rglob("*") if p.suffix.lower() in SUFFIXES)
    arrays = {"classes": np.array(CHARACTERS)}
    for part, fonts in zip(("train", "test"), make(paths, asked.seed), strict=True):
        if not fonts:
            raise SystemExit(f"no font is left for the {part} images: take more, or another --seed")
        arrays[f"{part}_images"] = np.concatenate([font.images_CHW for font in fonts])
        arrays[f"{part}_labels"] = np.tile(np.arange(len(CHARACTERS)), len(fonts))
        arrays[f"{part}_fonts"] = np.array([font.name for font in fonts])
    with asked.output.open("wb") as stream:
        np.savez(stream, **arrays)
    versions = f"Pillow {PIL.__version__}, FreeType {features.version('freetype2')}"
    print(f"drawn with {versions}, numpy {np.__version__}", file=sys.stderr)
    print(f"{hashlib.sha256(asked.output.read_bytes()).hexdigest()}  {asked.output.name}")


if __name__ == "__main__":
    main()
