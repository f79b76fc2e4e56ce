"""Cleans source texts and cuts long ones into pieces at natural boundaries."""

import re
from collections.abc import Sequence
from itertools import pairwise

PARAGRAPH = re.compile(r"\n\n+(?=\S)")
LINE = re.compile(r"\n")
SENTENCE = re.compile(r"[.!?]['\")]* (?=[A-Z\"'])")
TOP_LEVEL_PYTHON = re.compile(r"\n\n+(?=[^\s)\]}])")
REST_HEADING = re.compile(r"\n\n+(?=(?:[^\n]+\n)([=\-~^*])\1{2,}\n)")

_TRAILING_SPACE = re.compile(r"[ \t]+$", re.MULTILINE)
_MANY_BLANK_LINES = re.compile(r"\n{4,}")


def clean(text: str) -> str:
    """Return `text` with Unix newlines, no trailing spaces, at most two blank lines in a row, ending in one newline."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n")
    text = _TRAILING_SPACE.sub("", text)
    return _MANY_BLANK_LINES.sub("\n\n\n", text).strip("\n") + "\n"


def cut(text: str, boundaries: Sequence[re.Pattern[str]], max_bytes: int) -> list[str]:
    """Return consecutive pieces of `text`, each of at most `max_bytes` UTF-8 bytes; joined they are `text` again.

    Pieces end at matches of `boundaries[0]`; a stretch without such a match that is too long is cut at `boundaries[1]`,
    and so on. The pieces of one text are of about equal size, so that no cut leaves a crumb.

    Raises:
        ValueError: some stretch has no boundary of any kind within `max_bytes`.
    """
    size = len(text.encode())
    if size <= max_bytes:
        return [text]
    if not boundaries:
        raise ValueError(f"no boundary within {max_bytes} bytes after {text[:60]!r}")
    goal = size / -(-size // max_bytes)
    pieces: list[str] = []
    current, current_bytes = "", 0
    for block in _blocks(text, boundaries[0]):
        for part in cut(block, boundaries[1:], max_bytes):
            part_bytes = len(part.encode())
            if current and (current_bytes + part_bytes > max_bytes or current_bytes + part_bytes / 2 > goal):
                pieces.append(current)
                current, current_bytes = "", 0
            current, current_bytes = current + part, current_bytes + part_bytes
    return [*pieces, current]


def _blocks(text: str, boundary: re.Pattern[str]) -> list[str]:
    ends = [0, *(match.end() for match in boundary.finditer(text)), len(text)]
    return [text[start:end] for start, end in pairwise(ends) if start < end]
