"""What the C library does with memory that a training step frees and asks for again."""

import ctypes

_M_TRIM_THRESHOLD = -1  # numbers of glibc's <malloc.h>
_M_MMAP_THRESHOLD = -3
_KEPT_BYTES = 2**30


def keep_freed_memory() -> bool:
    """Have glibc keep up to 1 GiB of freed memory, for the whole process; return whether there is a glibc to do so.

    By default large tensors are given back to the system when they are freed, and the next step gets them page by page
    and zeroed: about 8,000 page faults and 5 % of the time of a step of the size of `benchmarks.step` with 8 experts.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # Blocks below the first threshold come from the heap, whose free end below the second is not given back.
    return all(mallopt(option, _KEPT_BYTES) for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD))
