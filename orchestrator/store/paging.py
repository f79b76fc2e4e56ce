"""Cursors: where a page of a list ended, as text that clients hand back unread."""

import base64
import binascii
from collections.abc import Sequence
from typing import TypeVar

from orchestrator.errors import InvalidCursor
from orchestrator.store.records import Page

R = TypeVar("R")

MAX_PAGE = 1000
"""Most items of one page."""


def check_limit(limit: int) -> int:
    """`limit`, or ValueError outside of 1..MAX_PAGE."""
    if not 1 <= limit <= MAX_PAGE:
        raise ValueError(f"limit={limit} is outside of 1 to {MAX_PAGE}")
    return limit


def encode_cursor(at: int, key: str = "") -> str:
    """The cursor of the place after the item that sorts by (`at`, `key`)."""
    return base64.urlsafe_b64encode(f"{at}:{key}".encode()).decode().rstrip("=")


def decode_cursor(cursor: str) -> tuple[int, str]:
    """The pair that `encode_cursor` was given; raises InvalidCursor for any other text."""
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii")
        at, _, key = text.partition(":")
        place = (int(at), key)
    except (binascii.Error, UnicodeError, ValueError) as error:
        raise InvalidCursor(f"{cursor[:80]!r} is not a cursor of this list; take it from the page before") from error
    if encode_cursor(*place) != cursor or abs(place[0]) >= 2**53:
        raise InvalidCursor(f"{cursor[:80]!r} is not a cursor of this list; take it from the page before")
    return place


def page(items: Sequence[R], limit: int, cursors: Sequence[str]) -> Page[R]:
    """The page of `items`, of which one more than `limit` was asked for to see if there is a next one.

    Args:
        cursors: the cursor after each item.
    """
    if len(items) <= limit:
        return Page(items=tuple(items), next_cursor=None)
    return Page(items=tuple(items[:limit]), next_cursor=cursors[limit - 1])
