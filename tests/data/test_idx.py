from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tser_cli.data.idx import find, read
from tser_cli.errors import DataError


def content(values: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return header + values.tobytes()


VALUES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20, deadline=None
)
@given(shape=st.lists(st.integers(0, 5), min_size=1, max_size=4), gz=st.booleans())
def test_any_array_comes_back(tmp_path: Path, shape: list[int], gz: bool) -> None:
    values = np.arange(np.prod(shape), dtype=np.int64).astype(np.uint8).reshape(shape)
    path = tmp_path / ("x.gz" if gz else "x")
    path.write_bytes(gzip.compress(content(values)) if gz else content(values))
    np.testing.assert_array_equal(read(path, len(shape)).numpy(), values)


@pytest.mark.parametrize("gz", [False, True])
def test_a_file_cut_anywhere_is_named(tmp_path: Path, gz: bool) -> None:
    whole = gzip.compress(content(VALUES)) if gz else content(VALUES)
    path = tmp_path / ("x.gz" if gz else "x")
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="delete it") as caught:
            read(path, 3)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (content(VALUES) + b"x", "promises 24 bytes, it holds more"),
        (b"hello, world", "begins with 68656c6c"),
        (content(VALUES[0]), "begins with 00000802"),
        (b"\0\0\x0d\x03" + content(VALUES)[4:], "begins with 00000d03"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, bad: bytes, why: str) -> None:
    (tmp_path / "x").write_bytes(bad)
    with pytest.raises(DataError, match=why):
        read(tmp_path / "x", 3)


def test_damage_inside_gzip_is_noticed(tmp_path: Path) -> None:
    whole = bytearray(gzip.compress(content(VALUES)))
    whole[-8] ^= 1
    (tmp_path / "x.gz").write_bytes(whole)
    with pytest.raises(DataError, match="CRC"):
        read(tmp_path / "x.gz", 3)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read(tmp_path / "x", 3)


def test_find_prefers_the_plain_file(tmp_path: Path) -> None:
    assert find(tmp_path, "x") is None
    (tmp_path / "x.gz").touch()
    assert find(tmp_path, "x") == tmp_path / "x.gz"
    (tmp_path / "x").touch()
    assert find(tmp_path, "x") == tmp_path / "x"
