"""TensorBoard's event files: scalars as records of protocol buffers, appended so that a crash leaves no trace.

A file is a sequence of records: length (uint64), masked CRC-32C of it, an `Event` message, masked CRC-32C of that, all
little-endian. Source: tensorflow/core/lib/io/record_writer.h, tensorflow/core/util/event.proto,
tensorflow/core/framework/summary.proto. A scalar is a `Summary.Value` with `tag` and `simple_value`.
"""

import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

from orchestrator.tracking.record import Point

_POLYNOMIAL = 0x82F63B78
_MASK_DELTA = 0xA282EAD8
_MASK_32 = 0xFFFFFFFF
_VERSION = b"brain.Event:2"

# Field number and wire type of the messages above: 1 is 64 bits, 5 is 32 bits, 0 a varint, 2 bytes after their length.
_EVENT_WALL_TIME, _EVENT_STEP, _EVENT_FILE_VERSION, _EVENT_SUMMARY = b"\x09", b"\x10", b"\x1a", b"\x2a"
_SUMMARY_VALUE, _VALUE_TAG, _VALUE_SIMPLE = b"\x0a", b"\x0a", b"\x15"


def _crc_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return tuple(table)


_TABLE = _crc_table()


def append_points(path: Path, points: Iterable[Point], *, after_bytes: int) -> int:
    """Writes points behind the first `after_bytes` bytes of the file, in place of what else was there.

    Returns the file's length afterwards. With `after_bytes=0` the file is created with its header. Points of one step
    and time that follow each other share an event. The same points give the same bytes.
    """
    with path.open("r+b" if path.exists() else "w+b") as file:
        file.truncate(after_bytes)
        file.seek(after_bytes)
        events = _events(points)
        first = next(events, None)
        if first is None:
            return after_bytes
        if not after_bytes:
            # Dated as the first point: nothing in the file depends on when it was written.
            file.write(_record(first[:9] + _EVENT_FILE_VERSION + _delimited(_VERSION)))
        file.write(_record(first))
        for event in events:
            file.write(_record(event))
        file.flush()
        os.fsync(file.fileno())
        return file.tell()


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli) of RFC 3720, appendix B.4."""
    crc, table = _MASK_32, _TABLE
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ _MASK_32


def _events(points: Iterable[Point]) -> Iterator[bytes]:
    for (step, time_ms), group in groupby(points, key=lambda point: (point.step, point.timestamp_ms)):
        yield _event(step, time_ms, list(group))


def _event(step: int, time_ms: int, points: Sequence[Point]) -> bytes:
    summary = b"".join(
        _SUMMARY_VALUE
        + _delimited(_VALUE_TAG + _delimited(point.key.encode()) + _VALUE_SIMPLE + struct.pack("<f", point.value))
        for point in points
    )
    when = _EVENT_WALL_TIME + struct.pack("<d", time_ms / 1000) + _EVENT_STEP + _varint(step)
    return when + _EVENT_SUMMARY + _delimited(summary)


def _record(event: bytes) -> bytes:
    length = struct.pack("<Q", len(event))
    return length + _masked_crc(length) + event + _masked_crc(event)


def _masked_crc(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & _MASK_32)


def _delimited(data: bytes) -> bytes:
    return _varint(len(data)) + data


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
