"""TensorBoard's event files, read back by another implementation of the format."""

import math
import struct
from pathlib import Path

import pytest

from orchestrator.tracking.event_file import append_points, crc32c
from orchestrator.tracking.record import Point
from tests.support.event_files import read_events

POINTS = [
    Point("train/loss", 5.5, 1_700_000_000_123, 1),
    Point("optimizer/lr", 1e-3, 1_700_000_000_123, 1),
    Point("train/loss", math.nan, 1_700_000_001_000, 2),
    Point("train/loss", -math.inf, 1_700_000_002_000, 2**40),
]


def test_crc_is_that_of_the_standard() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, appendix B.4


def test_another_reader_finds_every_point(tmp_path: Path) -> None:
    path = tmp_path / "events"
    length = append_points(path, POINTS, after_bytes=0)
    assert length == path.stat().st_size
    header, *events = read_events(path)
    assert header.file_version == "brain.Event:2"
    assert header.wall_time == events[0].wall_time == pytest.approx(1_700_000_000.123, abs=1e-6)
    found = [(value.tag, value.simple_value, event.step) for event in events for value in event.summary.value]
    expected = [(point.key, struct.unpack("<f", struct.pack("<f", point.value))[0], point.step) for point in POINTS]
    assert str(found) == str(expected)  # NaN equals no other NaN
    assert len(events) == 3, "points of one step share an event"


def test_what_was_not_noted_is_written_over(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    append_points(whole, POINTS, after_bytes=0)
    noted = append_points(broken, POINTS[:2], after_bytes=0)
    append_points(broken, POINTS[2:3], after_bytes=noted)  # and killed before it was noted
    with broken.open("ab") as file:
        file.write(b"half a record")
    append_points(broken, POINTS[2:], after_bytes=noted)
    assert broken.read_bytes() == whole.read_bytes()


def test_no_points_make_no_file_content(tmp_path: Path) -> None:
    assert append_points(tmp_path / "events", [], after_bytes=0) == 0
