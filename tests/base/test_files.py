"""Outputs are whole and replace regular files alone; our own files are read with suspicion."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tser_cli.base import files
from tser_cli.base.errors import DamagedFileError, DiskFullError, RunError
from tser_cli.base.files import (
    check_folder,
    foreign,
    is_file,
    is_folder,
    read_json,
    write_json,
    write_text,
    write_together,
    write_whole,
)

WRITERS: dict[str, Callable[[Path], None]] = {
    "check": check_folder,
    "write": lambda path: write_whole(path, b"new"),
}
each_writer = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS.keys())


@pytest.mark.parametrize(
    ("name", "head", "said"),
    [
        ("x.nir", None, "this is a NIR file; tser writes NIR and does not read it"),
        ("x.nir", b"\x89HDF\r\n\x1a\n", "this is a NIR file"),
        ("x.pt", b"\x89HDF\r\n\x1a\n", "this is an HDF5 file, as NIR's and Keras's are"),
        ("x.nir", b"PK\x03\x04", ""),  # torch's, of whatever name
        ("x.onnx", None, "this is an ONNX file"),
        ("x.bin", b"\x08\x0a\x12\x04tser", "this is an ONNX file"),
        ("x.bin", b"\x08\x0a:\x04", "this is an ONNX file"),
        ("x.safetensors", b"\x08\x00\x12\0\0\0\0\0", ""),
        ("x.png", None, ""),
        ("x.pt", b"", ""),
    ],
)
def test_files_for_other_programs_are_known(name: str, head: bytes | None, said: str) -> None:
    assert said in foreign(Path(name), head) and bool(said) is bool(foreign(Path(name), head))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for content in (b"old", b"new"):
        check_folder(path)
        write_whole(path, content)
        assert path.read_bytes() == content
    assert names(tmp_path) == ["x"]


def device(path: Path, number: int) -> Path:
    """The kernel's null (3) or full (7) device, under a name of the test's own."""
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, number))
        path.write_bytes(b"")
    except OSError:
        pytest.skip("devices can't be made here")
    return path


def test_a_device_is_written_in_place(tmp_path: Path) -> None:
    null = device(tmp_path / "null", 3)
    check_folder(null)
    write_whole(null, b"content")
    assert stat.S_ISCHR(null.lstat().st_mode)


def test_a_full_device_is_told_and_stays(tmp_path: Path) -> None:
    full = device(tmp_path / "full", 7)
    with pytest.raises(DiskFullError, match=r"No space left on device.*Free some space") as caught:
        write_whole(full, b"content")
    assert caught.value.exit_code == 1
    assert stat.S_ISCHR(full.lstat().st_mode)


@each_writer
def test_a_pipe_is_refused(tmp_path: Path, write: Callable[[Path], None]) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RunError, match="pipe is no regular file"):
        write(tmp_path / "pipe")
    assert stat.S_ISFIFO((tmp_path / "pipe").lstat().st_mode)


@each_writer
@pytest.mark.parametrize("target", ["victim", "missing", "/dev/null"])
def test_a_link_is_neither_followed_nor_replaced(
    tmp_path: Path, write: Callable[[Path], None], target: str
) -> None:
    (tmp_path / "victim").write_text("old")
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(RunError, match=f"link is a link to {target}; name that file itself"):
        write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "victim").read_text() == "old"
    assert not (tmp_path / "missing").exists()


@pytest.mark.parametrize("suffix", ["part", "probe"])
def test_nothing_is_written_through_a_link_beside_the_file(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "victim").write_text("old")
    (tmp_path / f".x.{os.getpid()}.{suffix}").symlink_to(tmp_path / "victim")
    check_folder(tmp_path / "x")
    write_whole(tmp_path / "x", b"new")
    assert (tmp_path / "victim").read_text() == "old"
    assert (tmp_path / "x").read_bytes() == b"new"


@pytest.mark.parametrize("name", ["", ".", "..", "folder", "folder/"])
def test_a_folder_is_no_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    with pytest.raises(RunError, match="is a folder; name a file in it"):
        check_folder(Path(name))


@each_writer
def test_names_are_bounded_by_the_file_system_alone(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    write(tmp_path / ("x" * 255))
    with pytest.raises(RunError, match=r"File name too long\. Choose a shorter one"):
        write(tmp_path / ("x" * 256))
    assert all(len(name) == 255 for name in names(tmp_path))


@each_writer
@pytest.mark.parametrize("name", ["a\0b", "\ud800", "file/x"])
def test_a_name_that_no_file_can_have_is_told(
    tmp_path: Path, write: Callable[[Path], None], name: str
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"can't be written: .*Choose another place"):
        write(tmp_path / name)


FULL = "MiB are free there. Free some space"
CLOSED = "Mend the folder's permissions"


@pytest.mark.parametrize(
    ("number", "advice"),
    [(28, FULL), (122, FULL), (13, CLOSED), (30, CLOSED), (36, "Choose a shorter one")],
)
def test_the_advice_fits_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, advice: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, "fsync", refuse)
    with pytest.raises(RunError) as caught:
        write_whole(tmp_path / "x", b"new")
    assert advice in str(caught.value) and os.strerror(number) in str(caught.value)
    assert ("free" in str(caught.value).lower()) is (number in (28, 122))
    assert isinstance(caught.value, DiskFullError) is (number in (28, 122))
    assert names(tmp_path) == []


def test_text_of_any_origin_is_written_as_utf_8(tmp_path: Path) -> None:
    write_text(tmp_path / "x", "é\udcff")
    assert (tmp_path / "x").read_text(encoding="utf-8") == "é\\udcff"


def test_what_write_json_writes_read_json_reads(tmp_path: Path) -> None:
    document = {"a": [1, -2.5, None, True, "é😀"], "b": {"c": 2**62}}
    write_json(tmp_path / "x", document)
    assert read_json(tmp_path / "x", types={"a": (list, str), "d": bool}) == document
    write_json(tmp_path / "x", {"path": "a\udcff"})
    assert read_json(tmp_path / "x") == {"path": "a?"}


DAMAGE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "Expecting value"),
    "cut": (b'{"a": 1', "Expecting"),
    "list": (b"[]", "holds no object"),
    "deep list": (b'{"a": ' + b"[" * 200_000, "nested too deep"),
    "deep and closed": (b'{"a": ' + b"[" * 65 + b"]" * 65 + b"}", "nested more than 64"),
    "deep object": (b'{"a":' * 70 + b"1" + b"}" * 70, "nested more than 64"),
    "NUL byte": (b'{"a": "\0"}', "control character"),
    "NUL": (b'{"a": "\\u0000"}', "NUL"),
    "NUL in a key": (b'{"\\u0000": 1}', "NUL"),
    "half a pair": (b'{"a": ["\\ud800"]}', "surrogate"),
    "not UTF-8": (b'{"a": "\xff"}', "utf-8"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "utf-8"),
    "NaN": (b'{"a": NaN}', "not finite"),
    "infinity": (b'{"a": -Infinity}', "not finite"),
    "overflow": (b'{"a": 1e999}', "not finite"),
    "large integer": (b'{"a": 9223372036854775808}', "63 bits"),
    "huge integer": (b'{"a": ' + b"9" * 5000 + b"}", "4300"),
    "too long": (b'{"a": "' + b"x" * 2**24 + b'"}', "more than 16,777,216 bytes"),
    "true for a number": (b'{"epoch": true}', '"epoch" is no int'),
    "number for text": (b'{"state": 7}', '"state" is no str or NoneType'),
}


@pytest.mark.parametrize(("content", "why"), DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_file_of_ours_is_named(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "status.json"
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match=why) as caught:
        read_json(path, types={"epoch": int, "state": (str, type(None))})
    assert str(caught.value).startswith(f"{path} can't be read: ")


def test_a_file_that_is_larger_than_the_memory_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.FileIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise MemoryError

    (tmp_path / "x").write_bytes(b"12345")
    monkeypatch.setattr(os, "fdopen", Full)
    with pytest.raises(ValueError, match="its 5 bytes do not fit into the memory"):
        files.read_regular(tmp_path / "x", 10)


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    places: list[Any] = [tmp_path / "pipe", tmp_path / "zero", tmp_path, tmp_path / "missing"]
    for path in (*places, tmp_path / ("x" * 300), tmp_path / "a\0b"):
        with pytest.raises(DamagedFileError, match="can't be read"):
            read_json(path)


@pytest.mark.parametrize("name", ["x" * 300, "é" * 200, "a\0b", "x/" * 3000])
def test_names_that_nothing_can_have_are_no_file_and_no_folder(tmp_path: Path, name: str) -> None:
    assert not is_file(tmp_path / name)
    assert not is_folder(tmp_path / name)
    (tmp_path / "file").write_text("")
    assert is_file(tmp_path / "file") and is_folder(tmp_path)


def test_files_appear_together_or_not_at_all(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(b"old")
    second.mkdir()
    with pytest.raises(RunError, match="second is no regular file"):
        write_together({first: b"new", second: b"new"})
    assert (first.read_bytes(), names(tmp_path)) == (b"old", ["first", "second"])
    second.rmdir()
    write_together({first: b"new", second: b"new too"})
    assert (first.read_bytes(), second.read_bytes()) == (b"new", b"new too")
    assert names(tmp_path) == ["first", "second"]


def test_what_a_killed_process_left_of_a_file_is_removed(tmp_path: Path) -> None:
    others = [".y.12.part", ".x.y.12.part", ".x.note.part", ".x.12.txt"]
    for name in (".x.12.part", *others):
        (tmp_path / name).write_text("half")
    (tmp_path / ".x.7.part").mkdir()
    check_folder(tmp_path / "x")
    assert names(tmp_path) == sorted([*others, ".x.7.part"])


LONG = 2**16


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"a = " + b"[" * LONG, "nested too deep"),
        (b"a = " + b"{a=" * LONG, "nested too deep"),
        (b".".join([b"a"] * LONG) + b" = 1", "nested too deep"),
        (b"a = {" + b" . ".join([b'"b"'] * LONG) + b" = 1}", "nested too deep"),
        (b"[" + b"a." * LONG + b"a]", "nested too deep"),
        (b"a = 1" + b"0" * 5000, "digits"),
        (b"\xff", "utf-8"),
        (b"a", "Expected"),
    ],
)
def test_damaged_toml_says_why_and_at_once(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=why):
        files.read_toml(path)


def test_many_dots_are_no_deep_toml(tmp_path: Path) -> None:
    write_text(tmp_path / "x.toml", f"a.b = [{'0.5, ' * 500}]\nc = '{'...' * 500}'\n")
    assert files.read_toml(tmp_path / "x.toml")["a"]["b"] == [0.5] * 500
