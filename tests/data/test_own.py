"""Images of your own: folders, npz files, what is measured, and fingerprints."""

from __future__ import annotations

import io
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tser_cli.base.errors import ConfigError, DataError
from tser_cli.data.base import Dataset, load_dataset
from tser_cli.data.loaders import build_eval_loader, build_train_loader
from tser_cli.data.own import FolderSource, check_files, fingerprint, mean_and_std
from tser_cli.settings.config import Config, DataConfig

# Python 3.12 and later warn of any fork beside threads
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")


def config(folder: Path | str, name: str = "imagefolder", **more: Any) -> DataConfig:
    return DataConfig(name=name, dir=str(folder), **more)


def test_classes_labels_and_pixels(image_folders: Path) -> None:
    dataset = load_dataset(config(image_folders))
    assert dataset.spec.classes == ("ant", "bee")
    assert dataset.spec.image_shape == (3, 224, 224)
    assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert dataset.test.labels.tolist() == [0, 0, 1, 1]
    expected = np.array(Image.open(image_folders / "train" / "bee" / "1.png"))
    np.testing.assert_array_equal(dataset.train.image(4).permute(1, 2, 0).numpy(), expected)


def test_grey_and_jpeg_images_come_as_rgb(image_folders: Path) -> None:
    Image.new("L", (9, 7), 80).save(image_folders / "val" / "ant" / "0.png")
    Image.new("RGB", (9, 7), (200, 100, 50)).save(image_folders / "val" / "ant" / "1.JPEG")
    (image_folders / "val" / "ant" / "1.png").unlink()
    source = load_dataset(config(image_folders)).test
    assert source.image(0).shape == source.image(1).shape == (3, 7, 9)
    assert set(source.image(0).flatten().tolist()) == {80}
    means = source.image(1).double().mean(dim=(1, 2))
    torch.testing.assert_close(means, torch.tensor([200.0, 100.0, 50.0]).double(), atol=3, rtol=0)


def test_nested_files_count_and_others_do_not(image_folders: Path) -> None:
    deep = image_folders / "train" / "ant" / "deep"
    deep.mkdir()
    shutil.copy(image_folders / "train" / "ant" / "0.png", deep / "x.PNG")
    (image_folders / "train" / "ant" / "notes.txt").write_text("no image")
    (image_folders / "train" / "ant" / ".hidden.png").write_text("no image")
    (image_folders / "train" / ".cache").mkdir()
    dataset = load_dataset(config(image_folders))
    assert dataset.train.labels.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert torch.equal(dataset.train.image(3), dataset.train.image(0))


@pytest.mark.parametrize("content", [b"", b"no image", None])
@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named(
    image_folders: Path, content: bytes | None, workers: int
) -> None:
    path = image_folders / "val" / "bee" / "1.png"
    path.write_bytes(path.read_bytes()[:500] if content is None else content)
    settings = Config(data=config(image_folders)).updated({"data.workers": workers})
    loader = build_eval_loader(load_dataset(settings.data), "test", settings)
    with pytest.raises(DataError) as caught:
        list(loader)
    assert str(caught.value).startswith(f"{path} can't be read as an image")


def test_what_is_left_out_of_a_folder_is_counted(image_folders: Path) -> None:
    ant = image_folders / "train" / "ant"
    for name in ("a.GIF", "b.gif", "c.jfif", "d", ".hidden.gif"):
        (ant / name).write_bytes(b"GIF89a")
    (ant.parent / "loose.png").write_bytes(b"")
    left_out, beside = load_dataset(config(image_folders)).notes
    assert "2 .gif, 1 .jfif, 1 without a suffix. Only .jpg" in left_out
    assert beside == f"image files left out, beside the class folders of {image_folders}: 1"
    shutil.rmtree(ant)
    ant.mkdir()
    (ant / "a.gif").write_bytes(b"GIF89a")
    with pytest.raises(DataError, match=r"ant has no images. files left out: 1 \.gif"):
        load_dataset(config(image_folders))


def test_files_that_are_no_images_are_named_before_any_is_decoded(image_folders: Path) -> None:
    (image_folders / "train" / "bee" / "9.jpg").write_bytes(b"<html>")
    (image_folders / "val" / "ant" / "9.png").write_bytes(b"")
    with pytest.raises(
        DataError, match=r"2 of 12 image .*bee/9\.jpg: it is none of.*9\.png: it is"
    ):
        check_files(load_dataset(config(image_folders)))
    for suffix in ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF"):
        Image.new("L", (9, 7)).save(image_folders / "val" / "ant" / "9.png", suffix)
        Image.new("L", (9, 7)).save(image_folders / "train" / "bee" / "9.jpg", suffix)
        check_files(load_dataset(config(image_folders)))


def test_no_folder_given_tells_the_layout() -> None:
    with pytest.raises(DataError, match=r"--data-dir .* It must hold train/CLASS/ and val/CLASS/"):
        load_dataset(config(""))


def no_val(folder: Path) -> None:
    shutil.rmtree(folder / "val")


def no_classes(folder: Path) -> None:
    no_val(folder)
    (folder / "val").mkdir()


def no_images(folder: Path) -> None:
    shutil.rmtree(folder / "train" / "bee")
    (folder / "train" / "bee").mkdir()


def one_class(folder: Path) -> None:
    no_val(folder)
    (folder / "train").rename(folder / "photos")


def other_words(folder: Path) -> None:
    for name, other in (("train", "Training"), ("val", "test")):
        (folder / name).rename(folder / other)


def class_links_above(folder: Path) -> None:
    for part in ("train", "val"):
        (folder / part / "cow").symlink_to(".")


def link_to_nothing(folder: Path) -> None:
    (folder / "train" / "ant" / "gone.png").symlink_to("nowhere")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (no_val, "val can't be listed: No such file"),
        (no_classes, "val has no class folders"),
        (no_images, "train/bee has no images"),
        (one_class, r"one class folder alone \(photos\).*images/photos"),
        (other_words, "called Training and test, which are no classes"),
        (class_links_above, "train/cow can't be listed: it is a link to a folder that"),
        (link_to_nothing, r"ant/gone\.png can't be listed: No such file"),
    ],
)
def test_a_folder_of_another_layout_is_named(
    image_folders: Path, change: Callable[[Path], None], said: str
) -> None:
    change(image_folders)
    with pytest.raises(DataError, match=said):
        load_dataset(config(image_folders))


def test_different_classes_are_named(image_folders: Path) -> None:
    (image_folders / "val" / "bee").rename(image_folders / "val" / "cow")
    with pytest.raises(DataError) as caught:
        load_dataset(config(image_folders))
    assert "1 of train/ are not in val/ (bee)" in str(caught.value)
    assert "1 of val/ are not in train/ (cow)" in str(caught.value)


def test_imagenet_has_a_thousand_classes(image_folders: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has 2 class folders, ImageNet has 1000"):
        load_dataset(config(image_folders, "imagenet"))
    image = image_folders / "train" / "ant" / "0.png"
    for part in ("train", "val"):
        for number in range(1000):
            folder = tmp_path / "imagenet" / part / f"n{number:08d}"
            folder.mkdir(parents=True)
            (folder / "0.png").symlink_to(image)
    dataset = load_dataset(config(tmp_path / "imagenet", "imagenet"))
    assert dataset.spec.num_classes == 1000
    assert dataset.train.labels.tolist() == list(range(1000))


def test_evaluation_resizes_the_shorter_side_and_crops_the_centre(tmp_path: Path) -> None:
    # 512 x 1024, white but for a black square that is the centre after halving
    pixels = np.full((512, 1024), 255, np.uint8)
    pixels[32:480, 288:736] = 0
    for inside in ("train/one", "train/two", "val/one", "val/two"):
        (tmp_path / inside).mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / inside / "x.png")
    settings = Config(data=config(tmp_path)).updated({"data.workers": 0})
    dataset = load_dataset(settings.data)
    (batch,) = build_eval_loader(dataset, "test", settings)
    black = -torch.tensor(dataset.spec.mean) / torch.tensor(dataset.spec.std)
    inside = batch.images_NCHW[0, :, 2:-2, 2:-2]
    torch.testing.assert_close(inside, black[:, None, None].expand_as(inside))
    (trained,) = build_train_loader(dataset, settings).epoch(0)
    assert torch.equal(trained.images_NCHW, batch.images_NCHW)


def test_links_to_folders_count_each_image_once(image_folders: Path) -> None:
    ant = image_folders / "train" / "ant"
    (ant / "deep").mkdir()
    shutil.copy(ant / "0.png", ant / "deep" / "x.png")
    for name, target in (("self", "."), ("up", ".."), ("again", "deep"), ("top", "../..")):
        (ant / name).symlink_to(target)
    (ant / "deep" / "back").symlink_to("..")
    (ant / "loop").symlink_to("loop")
    dataset = load_dataset(config(image_folders))
    assert dataset.train.labels.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert isinstance(dataset.train, FolderSource)
    assert dataset.train.files.tolist()[3] == b"ant/deep/x.png"


def test_images_behind_a_link_are_found(image_folders: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.move(image_folders / "train" / "bee", elsewhere)
    (image_folders / "train" / "bee").symlink_to(elsewhere)
    dataset = load_dataset(config(image_folders))
    assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert dataset.train.image(5).shape == (3, 42, 30)


def test_only_regular_files_are_images(image_folders: Path) -> None:
    ant = image_folders / "train" / "ant"
    os.mkfifo(ant / "pipe.png")
    (ant / "linked.png").symlink_to("pipe.png")
    (ant / "folder.png").mkdir()
    for path in image_folders.rglob("?.png"):
        path.write_bytes(b"")  # loading opens no image
    assert load_dataset(config(image_folders)).train.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_a_closed_folder_is_named(image_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = image_folders / "train" / "bee" / "closed"
    closed.mkdir()
    scandir = os.scandir

    def refusing(path: str) -> Any:
        if path == str(closed):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(DataError, match="bee/closed can't be listed: Permission denied"):
        load_dataset(config(image_folders))


AUTO = dict.fromkeys(("size", "channels", "mean", "std"), "auto")


@pytest.fixture
def grey_images(tmp_path: Path) -> Path:
    """20 grey images of 12 x 12 in each of two class folders, without train/ and val/."""
    rng = np.random.default_rng(0)
    for name in ("ant", "bee"):
        folder = tmp_path / "grey" / name
        folder.mkdir(parents=True)
        for number in range(20):
            pixels = rng.integers(0, 200, (12, 12), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    return tmp_path / "grey"


def test_small_grey_images_stay_small_and_grey(grey_images: Path) -> None:
    dataset = load_dataset(config(grey_images, **AUTO))
    assert dataset.spec.image_shape == (1, 12, 12)
    pixels = torch.stack([dataset.train.image(index) for index in range(len(dataset.train))])
    std, mean = torch.std_mean(pixels.double() / 255, correction=0)
    assert dataset.spec.mean == pytest.approx([mean.item()], abs=1e-6)
    assert dataset.spec.std == pytest.approx([std.item()], abs=1e-6)
    assert dataset.measured == {
        "data.size": 12,
        "data.channels": 1,
        "data.mean": list(dataset.spec.mean),
        "data.std": list(dataset.spec.std),
    }
    values = {key.removeprefix("data."): value for key, value in dataset.measured.items()}
    stated = load_dataset(config(grey_images, **values))
    assert stated.spec == dataset.spec and stated.measured == {}


def test_no_pixel_of_a_square_image_is_lost(grey_images: Path) -> None:
    settings = Config(data=config(grey_images, **AUTO, workers=0))
    dataset = load_dataset(settings.data)
    (batch,) = build_eval_loader(dataset, "test", settings)
    raw = torch.stack([dataset.test.image(index) for index in range(8)]).float() / 255
    expected = (raw - dataset.spec.mean[0]) / dataset.spec.std[0]
    torch.testing.assert_close(batch.images_NCHW, expected)


def test_one_coloured_image_makes_the_input_coloured(grey_images: Path) -> None:
    Image.new("RGB", (12, 12), (9, 8, 7)).save(grey_images / "bee" / "new.png")
    dataset = load_dataset(config(grey_images, **AUTO))
    assert dataset.spec.image_shape == (3, 12, 12)
    assert dataset.train.image(0).shape[0] == dataset.test.image(0).shape[0] == 3


def test_the_size_is_the_median_of_the_shorter_sides(image_folders: Path) -> None:
    dataset = load_dataset(config(image_folders, size="auto"))
    assert dataset.spec.image_shape == (3, 30, 30)
    assert dataset.measured == {"data.size": 30}
    Image.new("L", (900, 800)).save(image_folders / "train" / "ant" / "0.png")
    Image.new("L", (900, 800)).save(image_folders / "train" / "ant" / "1.png")
    for path in (image_folders / "train" / "bee").iterdir():
        Image.new("L", (500, 400)).save(path)
    assert load_dataset(config(image_folders, size="auto")).spec.height == 224


def test_stated_values_hold(grey_images: Path) -> None:
    stated = {"size": 16, "channels": 3, "mean": (0.1, 0.2, 0.3), "std": (1.0, 2.0, 3.0)}
    spec = load_dataset(config(grey_images, **stated)).spec
    assert spec.image_shape == (3, 16, 16)
    assert (spec.mean, spec.std) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    spec = load_dataset(config(grey_images)).spec  # without settings the input is ImageNet's
    assert spec.image_shape == (3, 224, 224)
    assert (spec.mean[0], spec.std[2], spec.shorter) == (0.485, 0.225, 0)
    for key in ("mean", "std"):
        with pytest.raises(ConfigError, match=rf"data\.{key} has 2 values for 3 channels"):
            load_dataset(config(grey_images, **{key: (0.1, 0.2)}))


def test_a_constant_channel_has_std_1() -> None:
    images = torch.full((2, 2, 1, 2), 51, dtype=torch.uint8)
    with pytest.raises(DataError, match="all of one colour"):
        mean_and_std([images])
    images[:, 1] = torch.tensor([0, 255], dtype=torch.uint8)
    assert mean_and_std([images]) == {"mean": [0.2, 0.5], "std": [1.0, 0.5]}


def test_the_test_split_is_stratified_and_always_the_same(grey_images: Path) -> None:
    dataset = load_dataset(config(grey_images, test_fraction=0.25))
    assert torch.bincount(dataset.train.labels).tolist() == [15, 15]
    assert torch.bincount(dataset.test.labels).tolist() == [5, 5]
    again = load_dataset(config(grey_images, test_fraction=0.25))
    assert dataset.test_images == again.test_images and len(set(dataset.test_images)) == 10
    first = Path(dataset.test_images[0])
    assert first.parent.name == "ant"
    expected = np.array(Image.open(grey_images / first))
    np.testing.assert_array_equal(dataset.test.image(0)[0].numpy(), expected)
    folder = grey_images / "ant"
    trained = {dataset.train.image(i).numpy().tobytes() for i in range(15)}
    tested = {dataset.test.image(i).numpy().tobytes() for i in range(5)}
    assert len(trained) + len(tested) == len(list(folder.iterdir())) and not trained & tested


def test_where_train_and_val_are_there_nothing_is_split_off(image_folders: Path) -> None:
    assert load_dataset(config(image_folders, test_fraction=0.5)).test_images == ()


def test_a_split_that_tests_nothing_is_told(grey_images: Path) -> None:
    for fraction, why in ((0.0, "leaves no image to test"), (0.001, "does not split")):
        with pytest.raises(DataError, match=why):
            load_dataset(config(grey_images, test_fraction=fraction))
    for path in list((grey_images / "bee").iterdir())[1:]:
        path.unlink()
    with pytest.raises(
        DataError,
        match=r"0\.2 does not .* one of bee\. Add images",
    ):
        load_dataset(config(grey_images))


@pytest.mark.parametrize("key", ["size", "channels", "mean", "std", "test_fraction"])
def test_data_sets_with_an_input_of_their_own_refuse_another(key: str) -> None:
    value: Any = {"mean": (0.5,), "std": (0.5,), "channels": 1}.get(key, 0.5 if "_" in key else 8)
    with pytest.raises(ValueError, match=rf"data\.{key} has no effect on cifar10"):
        DataConfig(name="cifar10", **{key: value})


Arrays = dict[str, Any]


@pytest.fixture
def arrays() -> Arrays:
    rng = np.random.default_rng(0)
    return {
        "train_images": rng.integers(0, 256, (12, 6, 5), dtype=np.uint8),
        "train_labels": np.arange(12) % 3,
        "test_images": rng.integers(0, 256, (4, 6, 5), dtype=np.uint8),
        "test_labels": np.arange(4) % 3,
    }


def load_npz(path: Path, arrays: Arrays, **more: Any) -> Dataset:
    np.savez(path, **arrays)
    return load_dataset(config(path, "npz", **more))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "images.npz"


def test_grey_bytes_come_as_they_are(path: Path, arrays: Arrays) -> None:
    dataset = load_npz(path, arrays)
    assert dataset.spec.image_shape == (1, 6, 5) and dataset.spec.classes == ("0", "1", "2")
    np.testing.assert_array_equal(dataset.train.image(7)[0].numpy(), arrays["train_images"][7])
    assert dataset.test.labels.tolist() == [0, 1, 2, 0]
    pixels = arrays["train_images"] / 255
    assert dataset.spec.mean == pytest.approx([pixels.mean()], abs=1e-6)
    assert dataset.spec.std == pytest.approx([pixels.std()], abs=1e-6)
    assert dataset.measured.keys() == {"data.mean", "data.std"}


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_channels_may_come_first_or_last(
    path: Path, arrays: Arrays, channels: int, last: bool
) -> None:
    rng = np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 4)):
        first = rng.integers(0, 256, (count, channels, 6, 5), dtype=np.uint8)
        arrays[f"{part}_images"] = first.transpose(0, 2, 3, 1) if last else first
    dataset = load_npz(path, arrays)
    assert dataset.spec.image_shape == (channels, 6, 5) and len(dataset.spec.mean) == channels
    np.testing.assert_array_equal(dataset.test.image(3).numpy(), first[3])


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_floats_become_bytes_and_labels_may_be_a_column(
    path: Path, arrays: Arrays, kind: Any
) -> None:
    expected = load_npz(path, arrays).train
    for part in ("train", "test"):
        arrays[f"{part}_images"] = (arrays[f"{part}_images"] / 255).astype(kind)
    arrays["train_labels"] = arrays["train_labels"].astype(np.uint8)[:, None]
    dataset = load_npz(path, arrays, mean=(0.5,), std="auto")
    assert torch.equal(dataset.train.images_MCHW, expected.images_MCHW)
    assert dataset.train.labels.tolist() == [0, 1, 2] * 4
    # the mean that is stated holds
    assert dataset.spec.mean == (0.5,) and dataset.measured.keys() == {"data.std"}


def spoilt(images: np.ndarray) -> np.ndarray:
    images = images / 255
    images[1, 2, 3], images[3, 0, 0] = np.nan, np.inf
    return images


@pytest.mark.parametrize(
    ("name", "change", "why"),
    [
        ("train_images", lambda a: a / 1.0, r"values from 0.0 to 25\d.0; .*: divide by white"),
        ("test_images", lambda a: a / -255, "normalised already"),
        ("test_images", spoilt, "hold NaN or infinity in 2 images, first in image 1$"),
        ("train_images", lambda a: a.astype(np.int64), r"int64 .*: pass images.astype\('uint8'\)"),
        ("train_images", lambda a: a * np.uint16(257), r"uint16 with values .* to 6\d{4}; pass"),
        ("train_images", lambda a: a.astype(str), "train_images are of type <U"),
        ("train_images", lambda a: a.reshape(12, 30), r"shape \[12, 30\]: .* reshape them"),
        ("train_images", lambda a: a[0, 0], r"shape \[5\]: pass \[M, H, W\]"),
        ("test_images", lambda a: a[:0], r"test_images have the shape \[0, 6, 5\]: there is none"),
        ("train_images", lambda a: np.stack([a] * 2, 1), "images have 1 or 3 channels"),
        ("train_images", lambda a: np.stack([a] * 4, 3), r"of RGBA pass images\[\.\.\., :3\]"),
        ("train_images", lambda a: np.stack([a[0]] * 3, 2), r"\[12\], for 6 images \[1, 5, 3\]"),
        ("test_images", lambda a: a[:, :5], "they must be alike"),
        ("train_labels", lambda a: a[:-1], r"train_labels have the shape \[11\], for 12 images"),
        ("train_labels", lambda a: a / 1.0, "are floats: 0.0, 1.0, ...; pass integers from 0"),
        ("test_labels", lambda a: np.array(list("abcd"))[a], "are strings: a, b, ...; pass"),
        ("train_labels", lambda a: a > 0, "are of type bool: False, True, ...; pass integers"),
        ("train_labels", lambda a: np.eye(3)[a], r"shape \[12, 3\]: of one-hot .* labels.argmax"),
        ("train_labels", lambda a: a + 1, "3 classes, from 1 to 3; pass integers from 0"),
        ("train_labels", lambda a: a * 10**9, "3 classes, from 0 to 2000000000"),
        ("train_images", lambda a: a / 255**2, "of which 8 bits keep nothing"),
        ("train_labels", lambda a: a * 0, "one class alone"),
        ("test_labels", lambda a: a + 1, "test_labels hold 3, which train_labels do not"),
        (
            "test_labels",
            lambda a: None,
            "it lacks test_labels and holds train_images, train_labels",
        ),
    ],
)
def test_what_does_not_fit_is_named(
    path: Path, arrays: Arrays, name: str, change: Any, why: str
) -> None:
    changed = change(arrays.pop(name))
    with pytest.raises(DataError, match=why) as caught:
        load_npz(path, arrays if changed is None else {**arrays, name: changed})
    assert str(caught.value).startswith(str(path))


class Attack:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def test_no_pickle_is_opened(path: Path, arrays: Arrays, tmp_path: Path) -> None:
    arrays["train_labels"] = np.array([Attack(tmp_path / "attacked")] * 12, dtype=object)
    with pytest.raises(DataError, match="train_labels holds Python objects"):
        load_npz(path, arrays)
    assert not (tmp_path / "attacked").exists()


def test_more_than_memory_holds_is_not_unpacked(path: Path, arrays: Arrays) -> None:
    np.savez(path, **arrays)
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        content, {"descr": "|u1", "fortran_order": False, "shape": (2**44, 1, 1)}
    )
    kept = {name: array for name, array in arrays.items() if name != "train_images"}
    np.savez(path, **kept)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("train_images.npy", content.getvalue())
    with pytest.raises(DataError, match="can't be read"):
        load_dataset(config(path, "npz"))


def test_damage_anywhere_is_told(path: Path, arrays: Arrays) -> None:
    np.savez_compressed(path, **arrays)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(60):
        content = bytearray(whole)
        content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        path.write_bytes(content[: rng.integers(1, len(content) + 1)])
        try:
            load_dataset(config(path, "npz"))
        except DataError as error:
            assert str(error).startswith(str(path))


def test_what_is_no_file_is_told(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    np.save(tmp_path / "x.npy", np.zeros(3))
    for name, why in (
        ("x.npy", "a npy file, one array, .*np.savez"),
        ("", "--dataset imagefolder"),
    ):
        with pytest.raises(DataError, match=why):
            load_dataset(config(tmp_path / name, "npz"))
    for folder in (tmp_path / "pipe", tmp_path / "missing", tmp_path / ("x" * 300)):
        with pytest.raises(DataError, match="is no regular file"):
            load_dataset(config(folder, "npz"))
    with pytest.raises(DataError, match="npz needs a file"):
        load_dataset(DataConfig(name="npz"))


def of_folder(path: Path, **more: Any) -> str:
    return fingerprint(load_dataset(config(path, **more)))


def test_an_npz_file_is_known_by_its_images_and_labels(tmp_path: Path, arrays: Arrays) -> None:
    def of(name: str, **changes: Any) -> str:
        return fingerprint(load_npz(tmp_path / name, {**arrays, **changes}))

    first = of("a.npz")
    assert first == of("b.npz") and len(first) == 64
    assert first != of("a.npz", test_labels=(np.arange(4) + 1) % 3)
    assert first != of("a.npz", test_images=np.zeros((4, 6, 5), np.uint8))


def test_a_folder_is_known_by_its_names(image_folders: Path, tmp_path: Path) -> None:
    first = of_folder(image_folders)
    moved = shutil.copytree(image_folders, tmp_path / "moved")
    assert of_folder(moved) == first
    image = next((moved / "train" / "ant").iterdir())
    image.rename(image.with_name(f"another{image.suffix}"))
    assert of_folder(moved) != first


def test_another_scale_is_another_data_set_and_one_measured_the_same(image_folders: Path) -> None:
    measured = of_folder(image_folders, size="auto", mean="auto", std="auto")
    found = load_dataset(config(image_folders, size="auto", mean="auto", std="auto")).measured
    stated = {key.removeprefix("data."): value for key, value in found.items()}
    assert of_folder(image_folders, **stated) == measured
    assert of_folder(image_folders, **{**stated, "size": 16}) != measured
    assert of_folder(image_folders, **{**stated, "std": (0.5,) * 3}) != measured


def test_what_is_always_the_same_has_none() -> None:
    assert fingerprint(load_dataset(DataConfig(name="digits"))) == ""
