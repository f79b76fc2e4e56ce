"""Reads the character vectors in an R lazy-load database (`Rdata.rdb`), which is how R packages ship their data.

A database is a sequence of chunks: a 4-byte big-endian size, then a zlib stream of an object in R's XDR serialisation.
Source: R Internals, section 1.8 "Serialization Formats". Only what the Austen package needs is read: vectors of
strings.
"""

import struct
import zlib
from collections.abc import Iterator

from trainer.errors import DataInvalid

_STRING_VECTOR = 16
_STRING = 9
_MISSING_LENGTH = -1


def string_vectors(database: bytes) -> Iterator[list[str]]:
    """Yield the strings of each chunk of `database`, in file order.

    Raises:
        DataInvalid: a chunk is truncated or is not a vector of strings.
    """
    position = 0
    while position < len(database):
        (size,) = struct.unpack_from(">i", database, position)
        stream = zlib.decompressobj()
        chunk = stream.decompress(database[position + 4 :])
        if len(chunk) != size or not stream.eof:
            raise DataInvalid(f"chunk at byte {position} holds {len(chunk)} bytes, its header says {size}")
        position = len(database) - len(stream.unused_data)
        yield _strings(chunk)


def _strings(chunk: bytes) -> list[str]:
    version = struct.unpack_from(">i", chunk, 2)[0]
    if chunk[:2] != b"X\n" or version != 3:
        raise DataInvalid(f"not R's XDR serialisation, version 3: starts with {chunk[:6]!r}")
    (encoding_length,) = struct.unpack_from(">i", chunk, 14)
    position = 18 + encoding_length
    flags, count = struct.unpack_from(">ii", chunk, position)
    if flags & 0xFF != _STRING_VECTOR:
        raise DataInvalid(f"R object of type {flags & 0xFF}, wanted a vector of strings ({_STRING_VECTOR})")
    position += 8
    strings: list[str] = []
    for _ in range(count):
        flags, length = struct.unpack_from(">ii", chunk, position)
        if flags & 0xFF != _STRING:
            raise DataInvalid(f"R object of type {flags & 0xFF} at byte {position}, wanted a string ({_STRING})")
        position += 8
        if length == _MISSING_LENGTH:
            strings.append("")
            continue
        strings.append(chunk[position : position + length].decode())
        position += length
    return strings
