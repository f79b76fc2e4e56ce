"""Time and identity: the one wall clock, the clock of leases, and ids that sort by creation."""

import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

Clock = Callable[[], int]
"""Returns UTC milliseconds since 1970."""

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
"""Crockford's base 32: no i, l, o, u; its order is the order of ASCII."""
_TIME_CHARS, _RANDOM_CHARS = 9, 7
_RANDOM_BITS = 5 * _RANDOM_CHARS


def now_ms() -> int:
    """UTC milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class LeaseTime(NamedTuple):
    """A moment on a clock that leases can trust. Two moments compare only if `boot_id` is the same."""

    boot_id: str
    ms: int


def host_lease_time() -> LeaseTime:
    """Milliseconds since this host booted, with the boot's id: steps of the wall clock cannot make a lease live or die.

    Where the system offers neither (outside Linux), the wall clock under a fixed id.
    """
    boot_id = Path("/proc/sys/kernel/random/boot_id")
    if not boot_id.exists():
        return LeaseTime("wall-clock", now_ms())
    return LeaseTime(boot_id.read_text().strip(), time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000)


def _base32(value: int, length: int) -> str:
    digits = []
    for _ in range(length):
        value, digit = divmod(value, 32)
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))


class IdSource:
    """Gives out ids `prefix_` + 9 characters of time + 7 random ones: unique, and sorted by creation within a process.

    Within one millisecond (or after the clock stepped back) the random part of the last id is counted up instead.
    """

    def __init__(self, clock: Clock = now_ms) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._last = 0

    def new(self, prefix: Literal["exp", "trl", "run", "chk"]) -> str:
        """A fresh id, e.g. `exp_1jb8qk2m0w3f9xkz`."""
        with self._lock:
            # The top bit of the random part starts at 0, which leaves 2**34 ids a millisecond before it runs over.
            fresh = (self._clock() << _RANDOM_BITS) | secrets.randbits(_RANDOM_BITS - 1)
            self._last = max(fresh, self._last + 1)
            return f"{prefix}_{_base32(self._last, _TIME_CHARS + _RANDOM_CHARS)}"
