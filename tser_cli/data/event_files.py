"""Files of events, as event cameras write them, and events made into frames.

An event is a time (microseconds), a pixel and a polarity: 1 where it became brighter, 0 where it
became darker. The readers take what a recording may hold and refuse the rest by name: a truncated
file, another format's, times that run backwards, pixels that the sensor does not have.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from tser_cli.base.errors import DataError
from tser_cli.base.files import is_file, sha256

# height and width in pixels; None: whatever the events say
Sensor: TypeAlias = tuple[int, int]
MOST = 255  # events that a pixel of a frame counts; more are clipped


class Events(NamedTuple):
    """Events in the order of their times, [E]: `t` in microseconds, int64; `p` 0 or 1.

    `x`, `y` and `p` are int32 or int64.
    """

    t: np.ndarray
    x: np.ndarray
    y: np.ndarray
    p: np.ndarray

    def between(self, start: int, end: int) -> Events:
        """Return those with start <= t < end."""
        first, last = np.searchsorted(self.t, (start, end))
        return Events(*(of[first:last] for of in self))


# of a file's bytes; a ValueError says what is wrong with them
Reader: TypeAlias = Callable[[bytes], Events]


def read_events(path: Path, read: Reader, sensor: Sensor | None) -> tuple[Events, str]:
    """Return the events in a file, and the SHA-256 of its bytes.

    Raises DataError, which names the file, where it can't be read, holds no event, times that run
    backwards, polarities beyond 0 and 1, or pixels outside the sensor.
    """
    if not is_file(path):
        raise DataError(f"{path} is no regular file; only those are read as events")
    try:
        content = path.read_bytes()
        events = read(content)
        if fault := _fault(events, sensor):
            raise ValueError(fault)
    # a damaged file can make the parsers fail in any way
    except Exception as error:
        raise DataError(
            f"{path} can't be read as events: {error}. Replace the file or remove it"
        ) from error
    return events, sha256(content)


def _fault(events: Events, sensor: Sensor | None) -> str:
    """Return what is wrong with events in words, "" for nothing."""
    t, x, y, p = events
    if len(t) == 0:
        return "it holds no event"
    height, width = sensor or (int(y.max()) + 1, int(x.max()) + 1)
    if min(x.min(), y.min()) < 0 or x.max() >= width or y.max() >= height:
        outside = np.flatnonzero((x < 0) | (x >= width) | (y < 0) | (y >= height))
        at = int(outside[0])
        return (
            f"{len(outside):,} of {len(t):,} events lie outside the sensor of {height} x {width} "
            f"pixels, first x = {x[at]}, y = {y[at]}: it is of another sensor, or no events"
        )
    if (is_back := t[1:] < t[:-1]).any():
        at = int(is_back.argmax())
        return (
            f"its times run backwards, first from {t[at]:,} to {t[at + 1]:,} at event {at + 1:,}: "
            "sort the events by time"
        )
    if p.min() < 0 or p.max() > 1:
        odd = p[(p < 0) | (p > 1)][0]
        return f"a polarity is {odd}: 1 stands for brighter and 0 for darker"
    return ""


OVERFLOW_Y, OVERFLOW_MICROSECONDS = 240, 2**13


def read_atis(content: bytes) -> Events:
    """Read N-MNIST's format, 5 bytes an event: x, y, the polarity and 23 bits of time.

    What has y = 240 is no pixel: the clock ran over, and all times from there on are 2^13 us later
    (garrickorchard.com, event-Python; spikingjelly keeps it as an event).
    """
    if len(content) % 5:
        raise ValueError(f"its {len(content):,} bytes are no events of 5 bytes: it is truncated")
    x, y, high, middle, low = np.frombuffer(content, np.uint8).reshape(-1, 5).T.astype(np.int64)
    p, t = high >> 7, (high & 127) << 16 | middle << 8 | low
    is_overflow = y == OVERFLOW_Y
    t += OVERFLOW_MICROSECONDS * np.cumsum(is_overflow)
    return Events(*(of[~is_overflow] for of in (t, x, y, p)))


def read_aedat2(content: bytes) -> Events:
    """Read AEDAT 2 of a DVS128, as CIFAR10-DVS: big-endian, 4 bytes address and 4 bytes time.

    Bits 8 to 14 of the address count columns from the right and bits 1 to 7 rows from below, with
    the picture turned as spikingjelly turns it; a bit 0 of 1 stands for darker. Bit 15 is a signal
    at the camera's plug and no pixel.
    """
    start = _after_header(content, "2.0")
    if (len(content) - start) % 8:
        raise ValueError(
            f"its {len(content) - start:,} bytes of events are no events of 8 bytes: it is "
            "truncated"
        )
    words = np.frombuffer(content, ">u4", offset=start)
    address, t = words[::2].astype(np.int32), words[1::2].astype(np.int64)
    if len(address) and not 0 <= address.min() <= address.max() < 1 << 16:
        raise ValueError("its addresses are not those of a DVS128, of 128 x 128 pixels")
    if (is_signal := address >> 15 == 1).any():
        address, t = address[~is_signal], t[~is_signal]
    return Events(t, 127 - (address >> 8 & 127), 127 - (address >> 1 & 127), 1 - (address & 1))


PACKET = struct.Struct("<HHIIIIII")
POLARITY_EVENT = 1


def read_aedat3(content: bytes) -> Events:
    """Read the polarity events of AEDAT 3.1, as DVS-Gesture: packets with a header of 28 bytes.

    The same events as spikingjelly's load_aedat_v3, whose loop over events in Python takes some
    seconds for each recording of DVS-Gesture.
    """
    start = _after_header(content, "3.1")
    parts = []
    while start < len(content):
        if len(content) - start < PACKET.size:
            raise ValueError("it breaks off in the header of a packet")
        kind, _, size, _, overflows, capacity, _, _ = PACKET.unpack_from(content, start)
        start += PACKET.size
        if len(content) - start < capacity * size:
            raise ValueError("it breaks off in a packet")
        if kind == POLARITY_EVENT:
            if size != 8:
                raise ValueError(f"its polarity events have {size} bytes; they have 8")
            words = np.frombuffer(content, "<u4", 2 * capacity, start)
            parts.append((words[::2], words[1::2].astype(np.int64) | overflows << 31))
        start += capacity * size
    if not parts:
        raise ValueError("it holds no event")
    data, t = (np.concatenate(of) for of in zip(*parts, strict=True))
    x, y, p = data >> 17 & 0x7FFF, data >> 2 & 0x7FFF, data >> 1 & 1
    return Events(t, *(of.astype(np.int32) for of in (x, y, p)))


def _after_header(content: bytes, version: str) -> int:
    """Return where the events of an AEDAT file begin. Raises ValueError for another version's."""
    first = content[: content.find(b"\n")].strip() if b"\n" in content else b""
    magic, _, found = first.partition(b"AER-DAT")
    if magic != b"#!" or found.decode(errors="replace") != version:
        said = f" but AEDAT {found.decode(errors='replace')}" if magic == b"#!" else ""
        raise ValueError(f"it is not AEDAT {version}{said}")
    start = 0
    while content[start : start + 1] == b"#":
        end = content.find(b"\n", start) + 1
        if not end:
            raise ValueError("it breaks off in its header")
        line, start = content[start:end], end
        if line.startswith(b"#!END-HEADER"):
            break
    return start


def read_arrays(content: bytes) -> Events:
    """Read events of your own: an npz of t, x, y and p, or a npy with such fields or columns."""
    loaded: Any = np.load(io.BytesIO(content), allow_pickle=False)  # pickles would run code
    names = loaded.files if isinstance(loaded, np.lib.npyio.NpzFile) else loaded.dtype.names
    if names is None and loaded.ndim == 2 and loaded.shape[1] == 4:
        return _whole(loaded.T)
    if missing := [name for name in Events._fields if name not in (names or ())]:
        shape = "" if names else f" (its shape is {list(loaded.shape)})"
        raise ValueError(
            f"it lacks {', '.join(missing)}{shape}: save np.savez(FILE, t=t, x=x, y=y, p=p), or "
            "one array [events, 4] of the columns t, x, y, p"
        )
    return _whole([loaded[name] for name in Events._fields])


def read_tonic_gesture(content: bytes) -> Events:
    """Read a sample of DVS-Gesture in tonic's archives: columns x, y, p and milliseconds."""
    table: Any = np.load(io.BytesIO(content), allow_pickle=False)
    if table.ndim != 2 or table.shape[1] != 4:
        raise ValueError(f"its shape is {list(table.shape)}, and a sample has four columns")
    x, y, p, milliseconds = table.T
    return _whole([np.rint(milliseconds * 1000.0), x, y, p])


def _whole(columns: Any) -> Events:
    """Return events of numbers that are whole, of any type. Raises ValueError otherwise."""
    made = []
    for name, values in zip(Events._fields, columns, strict=True):
        if values.dtype.kind not in "biuf" or values.ndim != 1:
            raise ValueError(f"{name} is {values.dtype} {list(values.shape)}; pass integers, [E]")
        if not are_whole(values):
            unit = ": pass microseconds" if name == "t" else ""
            raise ValueError(f"{name} holds numbers that are not whole{unit}")
        made.append(values.astype(np.int64))
    if len(lengths := {len(values) for values in made}) > 1:
        raise ValueError(f"t, x, y and p have {sorted(lengths)} events; they must be alike")
    return Events(*made)


def are_whole(values: np.ndarray) -> bool:
    """Return whether numbers are whole, of any type; NaN and infinity are not."""
    if values.dtype.kind != "f":
        return True
    return bool((np.isfinite(values) & (np.rint(values) == values)).all())


def to_frames(
    events: Events, frames: int, by: Literal["time", "number"], sensor: Sensor
) -> tuple[np.ndarray, int]:
    """Count events by frame, polarity and pixel: uint8 [T, 2, H, W], and how many were clipped.

    "time": T spans of floor((last t - first t) / T) microseconds; "number": T runs of
    floor(events / T) events; what is left goes to the last, as spikingjelly's
    integrate_events_by_fixed_frames_number does. Here a span without an event is an empty frame.
    Raises ValueError where there are too few events, or they last too short.
    """
    t, x, y, p = events
    if by == "time":
        span = int(t[-1] - t[0]) // frames
        if span == 0:
            raise ValueError(
                f"its {len(t):,} events last {t[-1] - t[0]} microseconds, too short for {frames} "
                "frames by time"
            )
        starts = np.searchsorted(t, t[0] + span * np.arange(1, frames))
    else:
        if len(t) < frames:
            raise ValueError(f"its {len(t):,} events are too few for {frames} frames by number")
        starts = len(t) // frames * np.arange(1, frames)
    in_frame_T = np.diff(starts, prepend=0, append=len(t))
    height, width = sensor
    first_place_T = np.arange(frames) * (2 * height * width)
    place = np.repeat(first_place_T, in_frame_T) + ((p * height + y) * width + x)
    counts = np.bincount(place, minlength=frames * 2 * height * width)
    clipped = int((counts[counts > MOST] - MOST).sum())
    frames_T2HW = np.minimum(counts, MOST).astype(np.uint8).reshape(frames, 2, height, width)
    return frames_T2HW, clipped
