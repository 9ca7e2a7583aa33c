"""Data sets of event cameras: the published layouts, your own, the cache, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.command import Invoke
from tests.data.event_formats import (
    aedat2_bytes,
    aedat3_bytes,
    aedat3_packet,
    atis_bytes,
    some_events,
)
from tser_cli.base.errors import ConfigError, DataError
from tser_cli.base.files import sha256
from tser_cli.data import events
from tser_cli.data.base import Dataset, DataSpec, TensorSource, load_dataset
from tser_cli.data.event_files import Events, to_frames
from tser_cli.data.loaders import build_train_loader
from tser_cli.data.own import fingerprint
from tser_cli.data.transforms import check_augmentation
from tser_cli.settings import registry
from tser_cli.settings.config import AugmentConfig, Config, DataConfig

HERE = Path("here")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder, and `HERE` as the folder of files."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "cache" / "tser" / "events"


def put(path: str, content: bytes) -> None:
    (HERE / path).parent.mkdir(parents=True, exist_ok=True)
    (HERE / path).write_bytes(content)


def n_mnist() -> dict[str, Events]:
    made = {}
    for seed, name in enumerate(("Train/0/1", "Train/0/2", "Train/1/3", "Test/0/1", "Test/1/2")):
        made[f"{name}.bin"] = some_events(200, 34, 34, seed)
        put(f"{name}.bin", atis_bytes(made[f"{name}.bin"]))
    return made


def cifar10_dvs() -> dict[str, Events]:
    made = {}
    for seed, number in enumerate((100, 99, 0, 1000)):
        for name in ("bird", "cat"):
            made[f"{name}/cifar10_{name}_{number}.aedat"] = of = some_events(90, 128, 128, seed)
            put(f"{name}/cifar10_{name}_{number}.aedat", aedat2_bytes(of))
    return made


def dvs_gesture() -> Events:
    recording = some_events(500, 128, 128, last=1000)
    content = aedat3_bytes(aedat3_packet(recording))
    for part, name in (("train", "user01_led"), ("test", "user24_led")):
        put(f"DvsGesture/trials_to_{part}.txt", f"{name}.aedat\n\n".encode())
        put(f"DvsGesture/{name}.aedat", content)
        rows = b"class, startTime_usec, endTime_usec\n1,0,400\n8,400,700\n8,650,1000\n"
        put(f"DvsGesture/{name}_labels.csv", rows)
    return recording


def own() -> dict[str, Events]:
    made = {}
    for part in ("train", "test"):
        for seed, name in enumerate(("a", "b")):
            made[f"{part}/{name}/x.npz"] = of = some_events(80, 5, 7, seed)
            (HERE / part / name).mkdir(parents=True)
            np.savez(HERE / part / name / "x.npz", **of._asdict())
    return made


def load(name: str, **settings: Any) -> Dataset:
    return load_dataset(DataConfig(**{"name": name, "dir": str(HERE), "frames": 4} | settings))


def same(source: Any, index: int, of: Events, by: Any = "time") -> bool:
    shape = tuple(source.images_MCHW.shape[-2:])
    return np.array_equal(source.image(index), to_frames(of, 4, by, shape)[0])


def test_n_mnist_is_read_as_published() -> None:
    made = n_mnist()
    data = load("n-mnist")
    assert data.spec.sample_shape == (4, 2, 34, 34) and data.spec.classes == ("0", "1")
    assert data.train.labels.tolist() == [0, 0, 1] and data.test.labels.tolist() == [0, 1]
    assert same(data.train, 1, made["Train/0/2.bin"]) and same(data.test, 1, made["Test/1/2.bin"])
    assert isinstance(data.train, events.EventSource)
    assert data.train.milliseconds_M.tolist() == [300.0] * 3
    listed = "".join(f"{sha256((HERE / name).read_bytes())}  {name}\n" for name in sorted(made))
    assert data.facts == {
        "convention": "Train/ and Test/",
        "files": sha256(listed.encode()),
        "clipped": "0 of 1,000 events (0.00%), above 255 a pixel",
        "empty": "0 of 20 frames",
    }
    assert same(load("n-mnist", frames_by="number").train, 0, made["Train/0/1.bin"], "number")


def test_simulated_events_say_so() -> None:
    n_mnist()
    files = load("n-mnist").facts["files"]
    put("simulated.json", f'{{"from": "digits", "files": "{files}"}}'.encode())
    data = load("n-mnist")
    assert data.facts["events"] == "simulated from digits" and data.notes == ()
    put("Train/0/1.bin", atis_bytes(some_events(3, 34, 34)) * 4)
    with pytest.raises(DataError, match=r"Train/0/1.bin.*times run backwards"):
        load("n-mnist")
    put("Train/0/1.bin", atis_bytes(some_events(30, 34, 34)))
    assert load("n-mnist").notes == (
        f"the files in {HERE} are not those that simulated.json is of",
    )


def test_cifar10_dvs_has_two_splits() -> None:
    made = cifar10_dvs()
    data = load("cifar10-dvs")
    assert data.spec.sample_shape == (4, 2, 128, 128)
    names = [f"{name}/cifar10_{name}_{n}.aedat" for name in ("bird", "cat") for n in (0, 99)]
    assert list(data.test_images) == names and "TEBN" in data.facts["convention"]
    assert all(same(data.test, index, made[name]) for index, name in enumerate(names))
    assert same(data.train, 1, made["bird/cifar10_bird_1000.aedat"])
    other = load("cifar10-dvs", split="random", test_fraction=0.5)
    assert other.test.labels.tolist() == [0, 0, 1, 1] and other.test_images != data.test_images
    assert "random 0.5 of each class" in other.facts["convention"]
    # else a student would learn from a teacher that has seen its test samples
    assert other.test.labels.equal(data.test.labels) and fingerprint(other) != fingerprint(data)
    with pytest.raises(DataError, match="bird has no file to test on: numbers 0 to 99"):
        for name in ("bird", "cat"):
            for number in (0, 99):
                (HERE / name / f"cifar10_{name}_{number}.aedat").unlink()
        load("cifar10-dvs")


def test_dvs_gesture_is_cut_by_its_tables() -> None:
    recording = dvs_gesture()
    data = load("dvs-gesture")
    assert data.train.labels.tolist() == data.test.labels.tolist() == [0, 7, 7]
    assert data.spec.num_classes == 11 and "1,464" in data.facts["convention"]
    for index, (start, end) in enumerate(((0, 400), (400, 700), (650, 1000))):
        inside = (recording.t >= start) & (recording.t < end)
        assert same(data.train, index, Events(*(of[inside] for of in recording)))
    put("DvsGesture/user24_led_labels.csv", b"class,start,end\n1,0,400\n2,5000,6000\n")
    with pytest.raises(DataError, match=r"user24_led.aedat: it has no event from 5,000 to 6,000"):
        load("dvs-gesture")
    put("DvsGesture/user24_led_labels.csv", b"class,start,end\n12,0,400\n")
    with pytest.raises(
        DataError, match=r"user24_led_labels.csv can't be read: classes are 1 to 11"
    ):
        load("dvs-gesture")


def test_dvs_gesture_of_tonics_archives() -> None:
    of = some_events(300, 128, 128)
    for part in ("ibmGestureTrain", "ibmGestureTest"):
        for label in (0, 10):
            (HERE / part / "user01").mkdir(parents=True, exist_ok=True)
            table = np.stack((of.x, of.y, of.p, of.t / 1000), 1)
            np.save(HERE / part / "user01" / f"{label}.npy", table)
    data = load("dvs-gesture")
    assert data.train.labels.tolist() == [0, 10] and "1,341" in data.facts["convention"]
    assert same(data.test, 1, of)


def test_events_of_your_own() -> None:
    made = own()
    data = load("events")
    assert data.spec.sample_shape == (4, 2, 5, 7) and data.spec.classes == ("a", "b")
    assert same(data.test, 1, made["test/b/x.npz"]) and data.test_images == ()
    assert load("events", size=8).spec.image_shape == (2, 8, 8)
    with pytest.raises(DataError, match="outside the sensor of 6 x 6"):
        load("events", size=6)
    shutil.move(HERE / "train" / "a" / "x.npz", HERE / "test" / "a" / "y.npz")
    shutil.move(HERE / "train" / "b" / "x.npz", HERE / "test" / "b" / "y.npz")
    data = load("events", dir=str(HERE / "test"), test_fraction=0.5)
    assert len(data.train) == len(data.test) == 2 and len(data.test_images) == 2


FRAMES = np.arange(48).reshape(4, 3, 1, 2, 2)


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        (FRAMES.astype(np.uint8), ""),
        (FRAMES.astype(float), ""),
        (FRAMES * 10, ""),
        (FRAMES - 1, "must be counts"),
        (FRAMES + 0.5, "must be counts"),
        (FRAMES + np.inf, "must be counts"),
        (FRAMES[0], r"have the shape \[3, 1, 2, 2\], not \[M, T, C, H, W\]"),
    ],
)
def test_an_npz_of_frames(frames: np.ndarray, said: str) -> None:
    labels = np.array([0, 1, 0, 1])
    parts = {"train_frames": frames, "test_frames": frames}
    np.savez("f.npz", train_labels=labels, test_labels=labels, **parts)
    if said:
        with pytest.raises(DataError, match=said):
            load("events", dir="f.npz", frames=0)
        return
    data = load("events", dir="f.npz", frames=0)
    assert data.measured == {"data.frames": 3} and data.spec.sample_shape == (3, 1, 2, 2)
    assert np.array_equal(data.train.image(3), np.minimum(frames, 255)[3])
    clipped = 2 * int(np.maximum(frames.astype(int) - 255, 0).sum())
    assert data.facts["clipped"].startswith(f"{clipped:,} of {2 * int(frames.sum()):,} events")
    with pytest.raises(ConfigError, match=r"data.frames = 4, and the samples of f.npz have 3"):
        load("events", dir="f.npz")


def pixels(data: Dataset) -> torch.Tensor:
    assert isinstance(data.train, TensorSource)
    return data.train.images_MCHW


def test_frames_come_from_the_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    n_mnist()
    first = load("n-mnist")
    frames = pixels(first).clone()
    made = list[int]()
    read = events.event_files.read_events
    monkeypatch.setattr(events.event_files, "read_events", lambda *of: made.append(1) or read(*of))
    assert torch.equal(pixels(load("n-mnist")), frames) and not made
    (folder,) = (path for path in cache.iterdir() if path.is_dir())
    # damaged in the middle of an array: made anew
    with (folder / "train_frames.npy").open("r+b") as stream:
        stream.seek(500)
        stream.write(b"\xff")
    again = load("n-mnist")
    assert len(made) == 5 and again.facts == first.facts
    assert torch.equal(pixels(again), frames)
    load("n-mnist", frames=3)
    assert len(made) == 10
    # another file of that name
    put("Test/0/1.bin", atis_bytes(some_events(199, 34, 34)))
    other = load("n-mnist")
    assert len(made) == 15 and other.facts["files"] != first.facts["files"]


def test_the_fingerprint_is_of_the_files_wherever_they_lie() -> None:
    n_mnist()
    before = fingerprint(load("n-mnist"))
    shutil.copytree(HERE, "elsewhere")
    assert fingerprint(load("n-mnist", dir="elsewhere", frames=2)) == before
    put("Test/0/1.bin", atis_bytes(some_events(199, 34, 34)))
    assert fingerprint(load("n-mnist")) != before


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda: put("Test/1/2.bin", b"1234567"), r"Test/1/2.bin can't be read as .* truncated"),
        (lambda: put("Test/2/2.bin", b"12345"), r"1 of Test/ are not in Train/ \(2\)"),
        (lambda: (HERE / "Train/1/3.bin").unlink(), "Train/1 has no .bin file"),
        (lambda: shutil.rmtree(HERE / "Test"), "Test can't be listed.*It must hold Train/0"),
        (lambda: shutil.rmtree(HERE), "n-mnist is not in here; .*unpacked"),
    ],
)
def test_what_can_not_be_read_leaves_nothing_behind(
    cache: Path, tser: Invoke, change: Callable[[], object], said: str
) -> None:
    n_mnist()
    change()
    before = tree(HERE)
    with pytest.raises(DataError, match=said):
        load("n-mnist")
    arguments = ("distill", "--dataset", "n-mnist", "--data-dir", HERE, "--set", "data.frames=4")
    assert tser(*arguments)[0] == 2
    assert tree(HERE) == before and not Path("runs").exists()
    assert not cache.exists() or [path for path in cache.iterdir() if path.is_dir()] == []


def test_a_disk_too_small_is_said_before(monkeypatch: pytest.MonkeyPatch) -> None:
    n_mnist()
    monkeypatch.setattr(events.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 9))  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="the frames take 46,240 bytes, and 9 are free"):
        load("n-mnist")
    shutil.rmtree(HERE)
    own()
    large = some_events(80, 5, 5)._replace(x=np.arange(80))  # one damaged file makes all large
    np.savez(HERE / "train" / "b" / "x.npz", **large._asdict())
    with pytest.raises(DataError, match=r"the largest pixels being those of here/train/b/x.npz"):
        load("events")


def test_settings_that_say_nothing_are_refused() -> None:
    n_mnist()
    with pytest.raises(ConfigError, match=r"data.frames = 0: say into how many"):
        load("n-mnist", frames=0)
    for stated in ({"name": "digits", "frames": 3}, {"name": "n-mnist", "split": "random"}):
        with pytest.raises(ValueError, match="has no effect on"):
            DataConfig(**stated)  # type: ignore[arg-type]


def test_a_plug_in_says_that_its_samples_have_a_time_axis(monkeypatch: pytest.MonkeyPatch) -> None:
    made = frames_of((3, 2, 4, 4))
    for name, stated in (("still", False), ("moving", True)):
        target = registry.keep(name, lambda config: made)
        monkeypatch.setitem(registry.DATASETS, name, registry.DatasetEntry(target, events=stated))
    with pytest.raises(DataError, match="register it with events=True"):
        load("still", frames=0)
    assert load("moving", frames=3) is load("moving", frames=0) is made
    with pytest.raises(DataError, match="its samples have 3 frames, not 4"):
        load("moving")


def frames_of(shape: tuple[int, ...]) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(0, 9, (20, *shape), dtype=torch.uint8, generator=generator)
    frames, channels, height, width = shape
    spec = DataSpec(
        "toy", channels, height, width, ("a",), (0.0,) * channels, (1.0,) * channels, frames=frames
    )
    source = TensorSource(counts, torch.zeros(20, dtype=torch.int64))
    return Dataset(spec, source, source)


def test_a_sample_is_augmented_alike_at_all_its_steps() -> None:
    augment = {"crop_padding": 2, "flip": True, "cutout": 3, "random_erasing": 1.0, "mixup": 1.0}
    config = Config.model_validate({"augment": augment, "training": {"batch_size": 20}})
    still = frames_of((1, 1, 9, 8))
    assert isinstance(still.train, TensorSource)
    moving = TensorSource(still.train.images_MCHW.repeat(1, 5, 1, 1, 1), still.train.labels)
    (one,) = build_train_loader(still, config).epoch(1)
    data = Dataset(frames_of((5, 1, 9, 8)).spec, moving, moving)
    (all_five,) = build_train_loader(data, config).epoch(1)
    assert all_five.images_NCHW.shape == (20, 5, 1, 9, 8)
    assert torch.equal(all_five.images_NCHW, one.images_NCHW.expand(-1, 5, -1, -1, -1))
    assert not torch.equal(one.images_NCHW[:, 0], still.train.images_MCHW[one.indices_N, 0].float())


def test_counts_reach_the_network_as_they_are() -> None:
    data = frames_of((3, 2, 4, 4))
    spec = data.spec
    (batch,) = build_train_loader(
        data, Config.model_validate({"training": {"batch_size": 20}})
    ).epoch(0)
    assert isinstance(data.train, TensorSource)
    assert torch.equal(batch.images_NCHW, data.train.images_MCHW[batch.indices_N].float())
    for augment in (
        {"autoaugment": "cifar10"},
        {"random_resized_crop": True},
        {"randaugment_ops": 1},
    ):
        with pytest.raises(ConfigError, match="are counts of events"):
            check_augmentation(AugmentConfig.model_validate(augment), spec)
