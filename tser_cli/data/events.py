"""Data sets of event cameras: files of events, made into frames once and kept in a cache.

A sample is uint8 [T, 2, H, W]: how often each pixel became darker, and brighter, in each of T
frames. N-MNIST, CIFAR10-DVS and DVS-Gesture are read as they are published, from where the user put
them; none is downloaded. The frames of all files are made at the first use and lie in the cache
folder afterwards, keyed by the files and the settings.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import re
import shutil
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import platformdirs
import torch

from tser_cli.base.errors import ConfigError, DamagedFileError, DataError, reason
from tser_cli.base.files import hold_lock, is_file, is_folder, read_json, sha256, write_error
from tser_cli.data import event_files
from tser_cli.data.base import Dataset, DataSpec, TensorSource, given_path, split_off
from tser_cli.data.event_files import Events, Reader, Sensor
from tser_cli.data.own import (
    class_difference,
    class_folders,
    npz_arrays,
    npz_classes,
    npz_labels,
)
from tser_cli.settings.config import AUTO, DataConfig

PARTS = ("train", "test")


@dataclass(frozen=True, eq=False)
class EventSource(TensorSource):
    """Frames of events, uint8 [M, T, 2, H, W], and how long each sample lasts, float32 [M]."""

    milliseconds_M: torch.Tensor


class Cut(NamedTuple):
    """A sample: its class and its file below the folder, between two times or the whole of it."""

    label: int
    file: str
    start: int = 0
    end: int = 0


@dataclass(frozen=True)
class Listing:
    """The files of a data set, before any events are read.

    `sensor`: None where it is as large as the events say. `beside`: files that say which samples
    there are. `test_images`, `notes`: see `Dataset`. `convention`: which samples and which split.
    """

    folder: Path
    classes: tuple[str, ...]
    train: tuple[Cut, ...]
    test: tuple[Cut, ...]
    read: Reader
    sensor: Sensor | None
    convention: str
    beside: tuple[str, ...] = ()
    test_images: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


N_MNIST = (
    "It must hold Train/0 to Train/9 and Test/0 to Test/9 with the .bin files in them: Train.zip "
    "and Test.zip from https://www.garrickorchard.com/datasets/n-mnist, unpacked (they can't be "
    "downloaded by a program). recipes/events/make_events.py makes simulated ones"
)
CIFAR10_DVS = (
    "It must hold a folder for each class (airplane to truck) with the .aedat files in it: the ten "
    "archives of https://figshare.com/articles/dataset/CIFAR10-DVS_New/4724671, unpacked"
)
DVS_GESTURE = (
    "It must hold trials_to_train.txt, trials_to_test.txt and the .aedat and _labels.csv files "
    "that they name: DvsGesture.tar.gz from https://research.ibm.com/dvsgesture, unpacked; or "
    "tonic's ibmGestureTrain and ibmGestureTest (https://tonic.readthedocs.io)"
)
OWN_EVENTS = (
    "It must hold train/CLASS/ and test/CLASS/, or CLASS/ alone, with a .npz or .npy file of t, x, "
    "y and p for each sample; or be an .npz file of train_frames, train_labels, test_frames and "
    "test_labels, frames as counts [M, T, C, H, W]"
)

# N-MNIST's share of the ATIS, and all of a DVS128
N_MNIST_SENSOR, DVS128 = (34, 34), (128, 128)
SIMULATED = "simulated.json"  # beside files that no camera wrote


def n_mnist(config: DataConfig) -> Dataset:
    """Load N-MNIST: digits before a moving sensor, 34 x 34 (Orchard et al., arXiv 1507.07629).

    Any files in its format and layout serve; `recipes/events/make_events.py` makes simulated ones.
    """
    folder = _folder(config, N_MNIST)
    classes, held = (class_folders(folder / part, N_MNIST) for part in ("Train", "Test"))
    if classes != held:
        raise DataError(class_difference(folder, classes, held, ("Train", "Test")))
    notes: list[str] = []
    train, test = (
        tuple(_class_files(folder, part, classes, (".bin",), notes, N_MNIST))
        for part in ("Train", "Test")
    )
    listing = Listing(
        folder,
        classes,
        train,
        test,
        event_files.read_atis,
        N_MNIST_SENSOR,
        "Train/ and Test/",
        notes=tuple(notes),
    )
    dataset = _dataset(config, listing)
    if not is_file(folder / SIMULATED):
        return dataset
    made = read_json(folder / SIMULATED, types={"from": str, "files": str})
    facts = {"events": f"simulated from {made.get('from', 'images')}", **dataset.facts}
    if made.get("files") not in (None, facts["files"]):
        notes.append(f"the files in {folder} are not those that {SIMULATED} is of")
    return replace(dataset, facts=facts, notes=tuple(notes))


def cifar10_dvs(config: DataConfig) -> Dataset:
    """Load CIFAR10-DVS: 1,000 moving images a class, 128 x 128 (Li et al., 2017, doi
    10.3389/fnins.2017.00309).

    It has no split of its own. `data.split` "first": numbers 0 to 99 of each class are for testing
    (TEBN, Duan et al., NeurIPS 2022), on which accuracy is typically much higher than on a random
    split, says spikingjelly; "random": `data.test_fraction` of each class, always the same.
    """
    folder = _folder(config, CIFAR10_DVS)
    classes, notes = class_folders(folder, CIFAR10_DVS), list[str]()
    cuts = sorted(_class_files(folder, "", classes, (".aedat",), notes, CIFAR10_DVS), key=_number)
    if config.split == "first":
        train, test = (
            [cut for cut in cuts if (_number(cut)[1] < 100) == of] for of in (False, True)
        )
        convention = "numbers 0 to 99 of each class are for testing (TEBN's split)"
        for part, chosen in zip(PARTS, (train, test), strict=True):
            if missing := set(range(len(classes))) - {cut.label for cut in chosen}:
                raise DataError(
                    f"{folder / classes[min(missing)]} has no file to {part} on: numbers 0 to 99 "
                    "are for testing, the others for training. data.split = random takes any"
                )
    else:
        train, test = _split(cuts, config, classes)
        convention = f"a fixed random {config.test_fraction:g} of each class is for testing"
    listing = Listing(
        folder,
        classes,
        tuple(train),
        tuple(test),
        event_files.read_aedat2,
        DVS128,
        convention,
        test_images=tuple(cut.file for cut in test),
        notes=tuple(notes),
    )
    return _dataset(config, listing)


def dvs_gesture(config: DataConfig) -> Dataset:
    """Load DVS-Gesture: 11 gestures of 29 people, 128 x 128 (Amir et al., CVPR 2017).

    From the recordings as published, each row of their tables is a sample, as in spikingjelly and
    snnTorch (1,464 in all); from tonic's archives each file is one (1,341).
    """
    folder = _folder(config, DVS_GESTURE)
    if is_folder(folder / "DvsGesture"):
        folder /= "DvsGesture"
    if not is_folder(folder / "ibmGestureTrain"):
        return _dataset(config, _recordings(folder))
    parts = []
    for part in ("ibmGestureTrain", "ibmGestureTest"):
        try:
            files = sorted((folder / part).glob("*/*.npy"))
            labels = [int(file.stem) for file in files]
        except ValueError as error:
            raise DataError(
                f"{folder / part}: {error}; files are called 0.npy to 10.npy"
            ) from error
        if not files or not set(labels) <= set(range(len(GESTURES))):
            raise DataError(
                f"{folder / part} does not hold the samples 0.npy to 10.npy. {DVS_GESTURE}"
            )
        names = [file.relative_to(folder).as_posix() for file in files]
        parts.append(tuple(map(Cut, labels, names)))
    train, test = parts
    convention = "a sample for each file of tonic's archives (1,341 of those published)"
    read = event_files.read_tonic_gesture
    return _dataset(config, Listing(folder, GESTURES, train, test, read, DVS128, convention))


GESTURES = (
    *("hand clapping", "right hand wave", "left hand wave", "right arm clockwise"),
    *("right arm counter-clockwise", "left arm clockwise", "left arm counter-clockwise"),
    *("arm roll", "air drums", "air guitar", "other"),
)


def _recordings(folder: Path) -> Listing:
    """List the samples that DVS-Gesture's tables cut from its recordings."""
    beside, parts = [f"trials_to_{part}.txt" for part in PARTS], []
    for trials in tuple(beside):
        cuts: list[Cut] = []
        try:
            names = (folder / trials).read_text().split()
        except (OSError, ValueError) as error:
            raise DataError(f"{folder / trials} can't be read: {error}. {DVS_GESTURE}") from error
        for name in names:
            table = f"{Path(name).stem}_labels.csv"
            beside.append(table)
            try:
                rows = np.loadtxt(folder / table, np.int64, delimiter=",", skiprows=1, ndmin=2)
                if rows.shape[1:] != (3,) or rows.min() < 0:
                    raise ValueError("its columns must be class, start and end")
                known = np.isin(rows[:, 0], range(1, len(GESTURES) + 1)).all()
                if not known or (rows[:, 1] >= rows[:, 2]).any():
                    raise ValueError("classes are 1 to 11, and a sample ends after it starts")
            except (OSError, ValueError) as error:
                raise DataError(f"{folder / table} can't be read: {error}") from error
            cuts += [Cut(label - 1, name, start, end) for label, start, end in rows.tolist()]
        if not cuts:
            raise DataError(f"{folder / trials} names no recording. {DVS_GESTURE}")
        parts.append(tuple(cuts))
    convention = "a sample for each row of the tables (1,464 of those published)"
    read = event_files.read_aedat3
    return Listing(
        folder, GESTURES, parts[0], parts[1], read, DVS128, convention, beside=tuple(beside)
    )


def events(config: DataConfig) -> Dataset:
    """Load events of your own: a folder of files, or an npz file of frames.

    A sensor is as large as the events of all files say, or `data.size` x `data.size` pixels.
    """
    path = given_path(config)
    if path is None:
        raise DataError(f"events needs a folder or a file; name it with --data-dir. {OWN_EVENTS}")
    if not is_folder(path):
        return _frames_npz(path, config)
    notes: list[str] = []
    suffixes = (".npz", ".npy")
    is_split = any(is_folder(path / part) for part in PARTS)
    if is_split:
        classes, held = (class_folders(path / part, OWN_EVENTS) for part in PARTS)
        if classes != held:
            raise DataError(class_difference(path, classes, held, PARTS))
        train, test = (
            list(_class_files(path, part, classes, suffixes, notes, OWN_EVENTS)) for part in PARTS
        )
    else:
        classes = class_folders(path, OWN_EVENTS)
        cuts = list(_class_files(path, "", classes, suffixes, notes, OWN_EVENTS))
        train, test = _split(cuts, config, classes)
    side = 0 if config.size == AUTO else int(config.size)
    listing = Listing(
        path,
        classes,
        tuple(train),
        tuple(test),
        event_files.read_arrays,
        (side, side) if side else None,
        "train/ and test/"
        if is_split
        else f"{config.test_fraction:g} of each class is for testing",
        test_images=() if is_split else tuple(cut.file for cut in test),
        notes=tuple(notes),
    )
    return _dataset(config, listing)


def _frames_npz(path: Path, config: DataConfig) -> Dataset:
    arrays = npz_arrays(path, "frames", OWN_EVENTS)
    sources, clipped, total = list[TensorSource](), 0, 0
    for part in PARTS:
        frames = arrays[name := f"{part}_frames"]
        if frames.ndim != 5 or 0 in frames.shape:
            raise DataError(
                f"{path}: {name} have the shape {list(frames.shape)}, not [M, T, C, H, W]"
            )
        numbers = frames.dtype.kind in "iuf"
        if not numbers or not event_files.are_whole(frames) or frames.min() < 0:
            raise DataError(f"{path}: {name} must be counts: whole numbers from 0 on")
        labels_M = npz_labels(path, part, arrays, frames.shape)
        counts = np.minimum(frames, event_files.MOST).astype(np.uint8)
        clipped, total = clipped + int((frames - counts).sum()), total + int(frames.sum())
        sources.append(TensorSource(torch.from_numpy(counts), labels_M))
    train, test = sources
    classes = npz_classes(path, train, test)
    spec = _spec("events", train, classes)
    if config.frames not in (0, spec.frames):
        raise ConfigError(
            f"data.frames = {config.frames}, and the samples of {path} have {spec.frames}: say "
            f"-T {spec.frames}"
        )
    facts = {"clipped": _clipped(clipped, total)}
    return Dataset(spec, train, test, {"data.frames": spec.frames}, facts=facts)


READERS: dict[str, Reader] = {
    ".bin": event_files.read_atis,
    ".aedat": event_files.read_aedat2,
    ".npz": event_files.read_arrays,
    ".npy": event_files.read_arrays,
}


def sample(path: Path, spec: DataSpec, config: DataConfig) -> torch.Tensor:
    """Return one file of events as frames like those of the data set, uint8 [T, 2, H, W].

    The suffix says its format. Raises DataError where it can't be read, or is of another sensor.
    """
    if spec.channels != 2:
        raise DataError(f"{path}: events have 2 polarities, the network takes {spec.channels}")
    read, sensor = READERS.get(path.suffix.lower()), (spec.height, spec.width)
    if spec.name == "dvs-gesture" and read is event_files.read_arrays:
        read = event_files.read_tonic_gesture
    if read is None:
        raise DataError(f"{path}: only {', '.join(READERS)} are read as events")
    found, _ = event_files.read_events(path, read, sensor)
    try:
        frames_T2HW, _ = event_files.to_frames(found, spec.frames, config.frames_by, sensor)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    return torch.from_numpy(frames_T2HW)


def _spec(name: str, source: TensorSource, classes: tuple[str, ...]) -> DataSpec:
    frames, channels, height, width = source.image(0).shape
    # counts as they are: 0 stays 0, and value / 255 / std is the count again
    mean, std = (0.0,) * channels, (1 / 255,) * channels
    return DataSpec(name, channels, height, width, classes, mean, std, frames=frames)


def _folder(config: DataConfig, layout: str) -> Path:
    folder = given_path(config) or Path(platformdirs.user_cache_dir("tser"), config.name)
    if not is_folder(folder):
        raise DataError(
            f"{config.name} is not in {folder}; name its folder with --data-dir (or TSER_DATA_DIR, "
            f"or data.dir in a recipe). {layout}"
        )
    return folder


def _class_files(
    folder: Path,
    part: str,
    classes: tuple[str, ...],
    suffixes: tuple[str, ...],
    notes: list[str],
    layout: str,
) -> Iterable[Cut]:
    """Yield the files of each class in the order of their names; note how many others there are."""
    others = 0
    for label, name in enumerate(classes):
        try:
            entries = sorted(os.listdir(folder / part / name))  # noqa: PTH208
        except OSError as error:
            raise DataError(f"{folder / part / name} can't be listed: {reason(error)}") from error
        files = [entry for entry in entries if entry.endswith(suffixes) and entry[0] != "."]
        others += sum(entry[0] != "." for entry in entries) - len(files)
        if not files:
            raise DataError(f"{folder / part / name} has no {' or '.join(suffixes)} file. {layout}")
        yield from (Cut(label, (Path(part) / name / file).as_posix()) for file in files)
    if others:
        notes.append(f"left out in {folder / part}, being no {' or '.join(suffixes)}: {others:,}")


def _number(cut: Cut) -> tuple[int, int]:
    """Return a sample's class and the number at the end of its file's name."""
    found = re.search(r"(\d+)$", Path(cut.file).stem)
    if found is None:
        raise DataError(f"{cut.file} has no number, as cifar10_airplane_0.aedat. {CIFAR10_DVS}")
    return cut.label, int(found[1])


def _split(
    cuts: list[Cut], config: DataConfig, classes: tuple[str, ...]
) -> tuple[list[Cut], list[Cut]]:
    if config.test_fraction == 0.0:
        raise DataError("data.test_fraction = 0 leaves no sample to test on: choose one, as 0.1")
    labels_M = torch.tensor([cut.label for cut in cuts])
    train, test = split_off(labels_M, config.test_fraction, "test", classes)
    return [cuts[index] for index in train], [cuts[index] for index in test]


def _clipped(clipped: int, total: int) -> str:
    return f"{clipped:,} of {total:,} events ({clipped / max(1, total):.2%}), above 255 a pixel"


def _dataset(config: DataConfig, listing: Listing) -> Dataset:
    """Return the frames of all files: from the cache, or made and put there."""
    if not config.frames:
        raise ConfigError(
            "data.frames = 0: say into how many frames each sample is divided, with -T 10 or "
            "--set data.frames=10"
        )
    home = Path(platformdirs.user_cache_dir("tser"), "events")
    folder = home / _key(config, listing)
    kept = _kept(folder)
    if kept is None:
        try:
            home.mkdir(parents=True, exist_ok=True)
            with hold_lock(home / f".{folder.name}.lock", -1):
                kept = _kept(folder)  # another process may have made them meanwhile
                if kept is None:
                    _make(folder, config, listing)
                    kept = _kept(folder)
        except OSError as error:
            raise write_error(folder, error) from error
    if kept is None:
        raise DamagedFileError(f"{folder} can't be read back as it was written; is the disk sound?")
    arrays, facts = kept
    train, test = (
        EventSource(
            torch.from_numpy(arrays[f"{part}_frames"]),
            torch.tensor([cut.label for cut in getattr(listing, part)]),
            torch.from_numpy(arrays[f"{part}_milliseconds"]),
        )
        for part in PARTS
    )
    spec = _spec(config.name, train, listing.classes)
    facts = {"convention": listing.convention, **facts}
    return Dataset(spec, train, test, {}, listing.test_images, listing.notes, facts)


CACHE_VERSION = 1
ARRAYS = tuple(f"{part}_{kind}" for part in PARTS for kind in ("frames", "milliseconds"))


def _key(config: DataConfig, listing: Listing) -> str:
    """Return what the frames depend on: the files, as the system describes them, and settings."""
    made = hashlib.sha256()
    for name in sorted({cut.file for cut in (*listing.train, *listing.test)} | {*listing.beside}):
        try:
            of = (listing.folder / name).stat()
        except OSError as error:
            raise DataError(f"{listing.folder / name} can't be read: {reason(error)}") from error
        made.update(f"{name}\0{of.st_size}\0{of.st_mtime_ns}\0".encode(errors="surrogateescape"))
    sensor, where = listing.sensor, str(listing.folder.absolute())
    settings = [CACHE_VERSION, config.name, config.frames, config.frames_by, sensor, where]
    for part in (listing.train, listing.test):
        settings.append([(cut.file, cut.start, cut.end) for cut in part])
    made.update(json.dumps(settings).encode())
    return made.hexdigest()


def _kept(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, str]] | None:
    """Return the arrays and the facts of a cache folder; None where it is missing or damaged.

    The frames are mapped from the disk, private to this process: several share the same memory.
    """
    if not is_folder(folder):
        return None
    try:
        about = read_json(folder / "about.json", types={"facts": dict, "crc32": dict})
        arrays = {}
        for name in ARRAYS:
            path = folder / f"{name}.npy"
            if about["crc32"][name] != _crc32(path):
                raise ValueError(f"{name} is damaged")
            arrays[name] = np.load(path, mmap_mode="c", allow_pickle=False)
        return arrays, about["facts"]
    # what is damaged is made anew; the files of events are still there
    except (DamagedFileError, OSError, ValueError, KeyError) as error:
        logging.getLogger("tser_cli").warning("%s is made anew: %s", folder, error)
        return None


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as stream:
        while block := stream.read(2**24):
            value = zlib.crc32(block, value)
    return value


def _make(folder: Path, config: DataConfig, listing: Listing) -> None:
    """Write a cache folder: whole under another name, then renamed. Holds the lock."""
    for left in folder.parent.glob(f".{folder.name}.*.part"):
        shutil.rmtree(left, ignore_errors=True)
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        part.mkdir()
        facts = _write_frames(part, config, listing)
        about = {"facts": facts, "crc32": {name: _crc32(part / f"{name}.npy") for name in ARRAYS}}
        (part / "about.json").write_text(json.dumps(about))
        if is_folder(folder):  # damaged
            shutil.rmtree(folder)
        part.replace(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write_frames(folder: Path, config: DataConfig, listing: Listing) -> dict[str, str]:
    """Write the arrays of a cache folder; return what they say of the files."""
    count = len(listing.train) + len(listing.test)
    logging.getLogger("tser_cli").info("%s: frames of %d samples are made", listing.folder, count)
    sensor, why = (listing.sensor, "") if listing.sensor else _largest(listing)
    _check_room(folder, count * config.frames * 2 * sensor[0] * sensor[1], why)
    hashes = {name: sha256((listing.folder / name).read_bytes()) for name in listing.beside}
    clipped = total = empty = 0
    for part in PARTS:
        cuts: tuple[Cut, ...] = getattr(listing, part)
        frames_MT2HW = np.lib.format.open_memmap(
            folder / f"{part}_frames.npy", "w+", np.uint8, (len(cuts), config.frames, 2, *sensor)
        )
        milliseconds_M = np.zeros(len(cuts), np.float32)
        for index, (cut, of) in enumerate(_samples(listing, cuts, sensor, hashes)):
            try:
                if not len(of.t):
                    raise ValueError(f"it has no event from {cut.start:,} to {cut.end:,}")
                made, lost = event_files.to_frames(of, config.frames, config.frames_by, sensor)
            except ValueError as error:
                raise DataError(f"{listing.folder / cut.file}: {error}") from error
            frames_MT2HW[index] = made
            milliseconds_M[index] = (of.t[-1] - of.t[0]) / 1000
            clipped, total = clipped + lost, total + len(of.t)
            empty += int((~made.any(axis=(1, 2, 3))).sum())
        np.save(folder / f"{part}_milliseconds.npy", milliseconds_M)
        frames_MT2HW.flush()
    listed = "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes))
    return {
        "files": sha256(listed.encode(errors="surrogateescape")),
        "clipped": _clipped(clipped, total),
        "empty": f"{empty:,} of {count * config.frames:,} frames",
    }


def _samples(
    listing: Listing, cuts: Iterable[Cut], sensor: Sensor | None, hashes: dict[str, str]
) -> Iterable[tuple[Cut, Events]]:
    """Yield the events of each sample, reading a file once for all that follow one another."""
    for file, of in itertools.groupby(cuts, lambda cut: cut.file):
        found, hashes[file] = event_files.read_events(listing.folder / file, listing.read, sensor)
        for cut in of:
            yield cut, found.between(cut.start, cut.end) if cut.end else found


def _largest(listing: Listing) -> tuple[Sensor, str]:
    """Return the smallest sensor that has every event's pixel, and in words which file says so."""
    height = width = 0
    why = ""
    for cut, of in _samples(listing, (*listing.train, *listing.test), None, {}):
        here = int(of.y.max()) + 1, int(of.x.max()) + 1
        if here[0] > height or here[1] > width:
            why = f", the largest pixels being those of {listing.folder / cut.file}"
        height, width = max(height, here[0]), max(width, here[1])
    return (height, width), why


def _check_room(folder: Path, needed: int, why: str = "") -> None:
    """Raise DataError where the frames do not fit on the disk: a damaged pixel makes them huge."""
    if needed > (free := shutil.disk_usage(folder).free):
        raise DataError(
            f"the frames take {needed:,} bytes{why}, and {free:,} are free in {folder.parent}: "
            "take fewer (data.frames), free some space, or set XDG_CACHE_HOME to another place"
        )
