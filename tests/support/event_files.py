"""TensorBoard's event files, read by another implementation of their checksums and messages."""

import struct
from pathlib import Path

from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]


def masked(crc: int) -> int:
    """As tensorflow/core/lib/hash/crc32c.h has it."""
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) % 2**32


def read_events(path: Path) -> list[Event]:
    """Every event of a file whose checksums are right."""
    data, at, events = path.read_bytes(), 0, []
    while at < len(data):
        length, crc = struct.unpack_from("<QI", data, at)
        assert crc == masked(crc32c(data[at : at + 8]))
        body = data[at + 12 : at + 12 + length]
        assert struct.unpack_from("<I", data, at + 12 + length)[0] == masked(crc32c(body))
        events.append(Event.FromString(body))
        at += length + 16
    return events
