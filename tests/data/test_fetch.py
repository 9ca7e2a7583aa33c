from __future__ import annotations

import hashlib
import socket
import threading
import time
from pathlib import Path
from urllib.error import URLError

import pytest
from torchvision.datasets import utils

from tser_cli.data.fetch import Remote, ensure
from tser_cli.errors import DataError

CONTENT = b"the images"
FILE = Remote(
    ("http://one.example/x.gz", "http://two.example/x.gz"),
    "x.gz",
    hashlib.md5(CONTENT, usedforsecurity=False).hexdigest(),
)


def found_in(folder: Path) -> Path | None:
    return folder / "x.gz" if (folder / "x.gz").is_file() else None


def fetched(folder: Path) -> Path:
    return ensure("toy", folder, lambda: found_in(folder), lambda: [FILE])


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """What each address answers; an address that is not here can't be reached."""
    served: dict[str, bytes] = {}

    def retrieve(url: str, path: str) -> None:
        assert socket.getdefaulttimeout() is not None
        if url not in served:
            raise URLError("Name or service not known")
        Path(path).write_bytes(served[url])

    monkeypatch.setattr(utils, "_get_redirect_url", lambda url, max_hops: url)
    monkeypatch.setattr(utils, "_urlretrieve", retrieve)
    return served


def test_what_is_present_is_not_asked_for(tmp_path: Path) -> None:
    def never() -> list[Remote]:
        raise AssertionError

    assert ensure("toy", tmp_path / "new", lambda: 7, never) == 7
    assert not (tmp_path / "new").exists()


def test_a_download_lands_whole(tmp_path: Path, served: dict[str, bytes]) -> None:
    served[FILE.urls[0]] = CONTENT
    assert fetched(tmp_path / "a" / "b").read_bytes() == CONTENT
    left = {path.name for path in (tmp_path / "a" / "b").iterdir()}
    assert left <= {"x.gz", ".toy.lock"}
    assert socket.getdefaulttimeout() is None


def test_the_second_mirror_serves(tmp_path: Path, served: dict[str, bytes]) -> None:
    served[FILE.urls[1]] = CONTENT
    assert fetched(tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("answer", [None, b"the imagez"])
def test_a_failure_says_what_to_put_where(
    tmp_path: Path, served: dict[str, bytes], answer: bytes | None
) -> None:
    if answer is not None:
        served.update(dict.fromkeys(FILE.urls, answer))
    with pytest.raises(DataError) as caught:
        fetched(tmp_path)
    message = str(caught.value)
    for part in ("x.gz", FILE.urls[0], str(tmp_path), "--data-dir", "TSER_DATA_DIR"):
        assert part in message
    assert not (tmp_path / "x.gz").exists()


def test_a_folder_that_can_not_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="download failed"):
        fetched(tmp_path / "file" / "folder")


def test_one_download_serves_all_who_wait(
    tmp_path: Path, served: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def slow(url: str, path: str) -> None:
        calls.append(url)
        time.sleep(0.2)
        Path(path).write_bytes(CONTENT)

    monkeypatch.setattr(utils, "_urlretrieve", slow)
    threads = [threading.Thread(target=fetched, args=(tmp_path,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
