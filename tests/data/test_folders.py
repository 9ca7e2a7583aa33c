from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tser_cli.base.errors import DataError
from tser_cli.data.base import load_dataset
from tser_cli.data.loaders import build_eval_loader, build_train_loader
from tser_cli.data.own import FolderSource
from tser_cli.settings.config import Config, DataConfig

# Python 3.12 and later warn of any fork beside threads
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")


def config(folder: Path | str, name: str = "imagefolder") -> DataConfig:
    return DataConfig(name=name, dir=str(folder))


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


def test_loading_opens_no_image(image_folders: Path) -> None:
    for path in image_folders.rglob("*.png"):
        path.write_bytes(b"")
    assert len(load_dataset(config(image_folders)).train) == 6


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


def test_no_folder_given_tells_the_layout() -> None:
    with pytest.raises(DataError, match=r"--data-dir .* It must hold train/CLASS/ and val/CLASS/"):
        load_dataset(config(""))


def test_a_missing_part_is_named(image_folders: Path) -> None:
    shutil.rmtree(image_folders / "val")
    with pytest.raises(DataError, match="val can't be listed: No such file"):
        load_dataset(config(image_folders))


def test_a_flat_folder_is_told(image_folders: Path) -> None:
    for name in ("ant", "bee"):
        shutil.rmtree(image_folders / "val" / name)
    with pytest.raises(DataError, match="val has no class folders"):
        load_dataset(config(image_folders))


def test_an_empty_class_is_named(image_folders: Path) -> None:
    for path in (image_folders / "train" / "bee").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="train/bee has no images"):
        load_dataset(config(image_folders))


def test_different_classes_are_named(image_folders: Path) -> None:
    (image_folders / "val" / "bee").rename(image_folders / "val" / "cow")
    with pytest.raises(DataError) as caught:
        load_dataset(config(image_folders))
    assert "1 of train/ are not in val/ (bee)" in str(caught.value)
    assert "1 of val/ are not in train/ (cow)" in str(caught.value)


def test_one_class_alone_is_refused(image_folders: Path, tmp_path: Path) -> None:
    shutil.copytree(image_folders / "train", tmp_path / "above" / "photos")
    with pytest.raises(DataError, match=r"one class folder alone \(photos\).*above/photos"):
        load_dataset(config(tmp_path / "above"))


def test_parts_of_a_data_set_are_no_classes(image_folders: Path) -> None:
    for name, other in (("train", "Training"), ("val", "test")):
        (image_folders / name).rename(image_folders / other)
    with pytest.raises(DataError, match="called Training and test, which are no classes"):
        load_dataset(config(image_folders))


def test_imagenet_has_a_thousand_classes(image_folders: Path) -> None:
    with pytest.raises(DataError, match="has 2 class folders, ImageNet has 1000"):
        load_dataset(config(image_folders, "imagenet"))


def test_imagenet_of_a_thousand_classes_is_taken(image_folders: Path, tmp_path: Path) -> None:
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


def test_random_resized_crops_differ_by_epoch(image_folders: Path) -> None:
    settings = Config(data=config(image_folders)).updated(
        {"augment.random_resized_crop": True, "augment.flip": True, "data.workers": 0}
    )
    loader = build_train_loader(load_dataset(settings.data), settings)
    (first,), (again,), (later,) = (loader.epoch(epoch) for epoch in (0, 0, 1))
    assert first.images_NCHW.shape == (6, 3, 224, 224)
    assert torch.equal(first.images_NCHW, again.images_NCHW)
    by_index = [batch.images_NCHW[batch.indices_N.argsort()] for batch in (first, later)]
    assert not torch.equal(*by_index)


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


def test_a_class_that_is_a_link_to_all_classes_is_named(image_folders: Path) -> None:
    for part in ("train", "val"):
        (image_folders / part / "cow").symlink_to(".")
    with pytest.raises(DataError, match="train/cow can't be listed: it is a link to a folder that"):
        load_dataset(config(image_folders))


def test_only_regular_files_are_images(image_folders: Path) -> None:
    ant = image_folders / "train" / "ant"
    os.mkfifo(ant / "pipe.png")
    (ant / "linked.png").symlink_to("pipe.png")
    (ant / "folder.png").mkdir()
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


def test_a_link_to_nothing_is_named(image_folders: Path) -> None:
    (image_folders / "train" / "ant" / "gone.png").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"ant/gone\.png can't be listed: No such file"):
        load_dataset(config(image_folders))
