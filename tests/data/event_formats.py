"""Events written in the formats of cameras, for the tests of what reads them."""

from __future__ import annotations

import struct

import numpy as np

from tser_cli.data.event_files import Events


def some_events(count: int, height: int, width: int, seed: int = 0, last: int = 300_000) -> Events:
    """Random events whose times begin at 0 and end at `last`."""
    rng = np.random.default_rng(seed)
    t = np.sort(rng.integers(0, last + 1, count))
    t[0], t[-1] = 0, last
    places = (rng.integers(0, bound, count) for bound in (width, height, 2))
    return Events(t, *places)


def atis_bytes(events: Events) -> bytes:
    t, x, y, p = events
    return np.stack((x, y, p << 7 | t >> 16, t >> 8 & 255, t & 255), 1).astype(np.uint8).tobytes()


def aedat2_bytes(events: Events) -> bytes:
    t, x, y, p = events
    address = (127 - x) << 8 | (127 - y) << 1 | (1 - p)
    header = b"#!AER-DAT2.0\r\n# made by a test\r\n"
    return header + np.stack((address, t), 1).astype(">u4").tobytes()


def aedat3_packet(events: Events, kind: int = 1, overflows: int = 0) -> bytes:
    t, x, y, p = events
    words = np.stack((x << 17 | y << 2 | p << 1 | 1, t), 1).astype("<u4")
    count = len(t)
    return struct.pack("<HHIIIIII", kind, 1, 8, 4, overflows, count, count, count) + words.tobytes()


def aedat3_bytes(*packets: bytes) -> bytes:
    header = b"#!AER-DAT3.1\r\n#Format: RAW\r\n#!END-HEADER\r\n"
    return header + b"".join(packets)
