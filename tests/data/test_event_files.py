"""Files of events: as spikingjelly reads them, as frames, and what is refused."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from spikingjelly.datasets import cifar10_dvs, utils

from tests.data.event_formats import (
    aedat2_bytes,
    aedat3_bytes,
    aedat3_packet,
    atis_bytes,
    some_events,
)
from tser_cli.base.errors import DataError
from tser_cli.data import event_files
from tser_cli.data.event_files import Events, Reader, read_events, to_frames

EVENTS = some_events(400, 34, 34)
LATER = some_events(50, 34, 34, seed=1)
AEDAT3 = aedat3_bytes(
    aedat3_packet(EVENTS), aedat3_packet(EVENTS, kind=0), aedat3_packet(LATER, overflows=1)
)
FORMATS: dict[str, tuple[Reader, bytes, Any]] = {
    "atis": (event_files.read_atis, atis_bytes(EVENTS), utils.load_ATIS_bin),
    "aedat2": (event_files.read_aedat2, aedat2_bytes(EVENTS), cifar10_dvs._load_origin_data),
    "aedat3": (event_files.read_aedat3, AEDAT3, utils.load_aedat_v3),
}

CONTENTS = {name: content for name, (_, content, _) in FORMATS.items()}


def equal(one: Events, other: Any) -> bool:
    return all(np.array_equal(getattr(one, key), other[key]) for key in Events._fields)


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_read_as_spikingjelly_reads_it(tmp_path: Path, name: str) -> None:
    read, content, theirs = FORMATS[name]
    path = tmp_path / "sample"
    path.write_bytes(content)
    events, _ = read_events(path, read, (34, 34))
    assert equal(events, theirs(path))
    assert equal(Events(*(of[:400] for of in events)), EVENTS._asdict())


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_read_as_tonic_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    theirs = pytest.importorskip("tonic.io")
    path = tmp_path / "sample"
    # tonic takes other packets for events, and leaves the high part of the time
    others = {"atis": with_overflow(), "aedat3": EVENTS}
    written = {"atis": atis_bytes, "aedat3": lambda of: aedat3_bytes(aedat3_packet(of))}
    path.write_bytes(written[name](others[name]) if name in written else CONTENTS[name])
    if name == "atis":
        found = theirs.read_mnist_file(str(path), theirs.events_struct)
    else:
        # its two readers expect two values of the three that 1.7.0 returns
        header = theirs.read_aedat_header_from_file
        monkeypatch.setattr(theirs, "read_aedat_header_from_file", lambda path: header(path)[:2])
        _, found = (theirs.read_dvs_128 if name == "aedat2" else theirs.read_dvs_ibm)(str(path))
    found = {key: found[key].astype(int) for key in Events._fields}
    if name == "aedat2":  # not turned as CIFAR10-DVS is by spikingjelly
        found |= {"x": 127 - found["x"], "y": 127 - found["y"], "p": 1 - found["p"]}
    assert equal(read_events(path, FORMATS[name][0], (34, 34))[0], found)


def with_overflow() -> Events:
    return Events(*np.array([(5, 1, 2, 0), (9, 240, 240, 0), (1, 3, 4, 1), (2, 5, 6, 1)]).T)


def test_the_clock_of_an_atis_runs_over(tmp_path: Path) -> None:
    path = tmp_path / "00001.bin"
    path.write_bytes(atis_bytes(with_overflow()))
    assert utils.load_ATIS_bin(path)["x"].tolist() == [1, 240, 3, 5]  # spikingjelly keeps it
    events, _ = read_events(path, event_files.read_atis, (34, 34))
    assert events.x.tolist() == [1, 3, 5] and events.t.tolist() == [5, 1 + 2**13, 2 + 2**13]


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def test_arrays_of_your_own(tmp_path: Path) -> None:
    fields = np.zeros(400, [("x", "i2"), ("t", "i8"), ("p", "?"), ("y", "u2")])
    for key in Events._fields:
        fields[key] = getattr(EVENTS, key)
    path = tmp_path / "sample"
    for content in (npz(**EVENTS._asdict()), npy(np.stack(EVENTS, 1).astype(float)), npy(fields)):
        path.write_bytes(content)
        assert equal(read_events(path, event_files.read_arrays, None)[0], EVENTS._asdict())


def changed(**columns: Any) -> Events:
    return EVENTS._replace(**columns)


ATIS, ARRAYS = event_files.read_atis, event_files.read_arrays
AEDAT_3, AEDAT_2 = event_files.read_aedat3, event_files.read_aedat2
NONE = Events(*(np.zeros(0, int),) * 4)
BACKWARDS = changed(t=np.concatenate((EVENTS.t[:200], EVENTS.t[:200])))
PIXEL = np.where(np.arange(400) == 7, 40, EVENTS.x)


@pytest.mark.parametrize(
    ("read", "content", "said"),
    [
        (ATIS, atis_bytes(EVENTS)[:13], "13 bytes are no events of 5 bytes: it is truncated"),
        (ATIS, b"", "it holds no event"),
        (ATIS, b"\x89PNG\r\n\x1a\n__" * 5, "outside the sensor of 34 x 34"),
        (ATIS, atis_bytes(changed(x=PIXEL)), "1 of 400 events .* x = 40, .*of another sensor"),
        (ATIS, atis_bytes(BACKWARDS), r"run backwards, first from [\d,]+ to 0 at event 200"),
        (AEDAT_2, aedat2_bytes(EVENTS)[:-3], "no events of 8 bytes: it is truncated"),
        (AEDAT_2, AEDAT3, "it is not AEDAT 2.0 but AEDAT 3.1"),
        (AEDAT_2, aedat2_bytes(EVENTS) + b"\1" * 8, "not those of a DVS128"),
        (AEDAT_2, b"#!AER-DAT2.0\r\n# and", "breaks off in its header"),
        (AEDAT_2, b"\xff\xd8\xff", "it is not AEDAT 2.0"),
        (AEDAT_3, AEDAT3[:-1], "breaks off in a packet"),
        (AEDAT_3, AEDAT3[:50], "breaks off in the header of a packet"),
        (AEDAT_3, aedat3_bytes(), "it holds no event"),
        (AEDAT_3, aedat3_bytes(aedat3_packet(NONE)), "it holds no event"),
        (AEDAT_3, b"#!AER-DAT4.0\r\n", "it is not AEDAT 3.1 but AEDAT 4.0"),
        (ARRAYS, npz(t=EVENTS.t, x=EVENTS.x), r"it lacks y, p: save np\.savez"),
        (ARRAYS, npy(np.zeros((4, 9))), r"its shape is \[4, 9\]"),
        (ARRAYS, npz(**changed(p=EVENTS.p * 2 - 1)._asdict()), "a polarity is -1: 1 stands"),
        (ARRAYS, npz(**changed(t=EVENTS.t / 1e6)._asdict()), "not whole: pass microseconds"),
        (ARRAYS, npz(**changed(x=EVENTS.x[1:])._asdict()), r"have \[399, 400\] events"),
        (ARRAYS, npz(**changed(x=EVENTS.x - 40)._asdict()), "outside the sensor"),
        (ARRAYS, npy(np.array([{}])), "Object arrays cannot be loaded|allow_pickle"),
        (ARRAYS, b"PK\x03\x04" + b"0" * 40, "can't be read as events"),
    ],
)
def test_what_is_no_recording_is_refused(
    tmp_path: Path, read: Reader, content: bytes, said: str
) -> None:
    path = tmp_path / "sample.bin"
    path.write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        read_events(path, read, (34, 34))
    assert str(caught.value).startswith(str(path))
    assert path.read_bytes() == content


@pytest.mark.parametrize("by", ["time", "number"])
@pytest.mark.parametrize("frames", [1, 6, 7])
def test_frames_count_events(by: Any, frames: int) -> None:
    made, clipped = to_frames(EVENTS, frames, by, (34, 34))
    theirs = utils.integrate_events_by_fixed_frames_number(EVENTS._asdict(), by, frames, 34, 34)
    assert np.array_equal(made, theirs) and clipped == 0
    by_hand = np.zeros_like(made)
    for index, (t, x, y, p) in enumerate(zip(*EVENTS, strict=True)):
        frame = t // (300_000 // frames) if by == "time" else index // (400 // frames)
        by_hand[min(frame, frames - 1), p, y, x] += 1
    assert np.array_equal(made, by_hand) and made.sum() == 400


def test_more_than_255_events_are_clipped() -> None:
    t = np.arange(600)
    same = Events(t, t * 0, t * 0, (t >= 300).astype(int))
    made, clipped = to_frames(same, 1, "time", (1, 1))
    assert made.ravel().tolist() == [255, 255] and clipped == 2 * 45


def test_a_span_without_an_event_is_an_empty_frame() -> None:
    still = Events(*np.array([(0, 0, 0, 1), (10, 1, 0, 1), (100, 1, 1, 0)]).T)
    with pytest.raises(IndexError):  # without a word of which file
        utils.integrate_events_by_fixed_frames_number(still._asdict(), "time", 4, 2, 2)
    made, _ = to_frames(still, 4, "time", (2, 2))
    assert made.sum(axis=(1, 2, 3)).tolist() == [2, 0, 0, 1]


def test_too_few_events_make_no_frames() -> None:
    few = Events(*np.array([(0, 0, 0, 1), (3, 1, 0, 1)]).T)
    theirs = utils.integrate_events_by_fixed_frames_number(few._asdict(), "number", 4, 2, 2)
    assert theirs.sum(axis=(1, 2, 3)).tolist() == [0, 0, 0, 2]  # in silence
    with pytest.raises(ValueError, match="2 events are too few for 4 frames by number"):
        to_frames(few, 4, "number", (2, 2))
    with pytest.raises(ValueError, match="last 3 microseconds, too short for 4 frames by time"):
        to_frames(few, 4, "time", (2, 2))
