"""Freed memory stays with the process where it is asked to."""

import ctypes
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import numpy as np
from trainer.host_memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
for number in range(21):
    if number == 1:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(5_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_kept_memory_is_not_faulted_in_again() -> None:
    faults = {
        choice: int(subprocess.run([sys.executable, "-c", PROGRAM, choice], capture_output=True, check=True).stdout)
        for choice in ("keep", "default")
    }
    assert faults["keep"] * 4 < faults["default"]
