"""Which implementation of an operation runs: one rule for all of them, logged once per choice."""

import functools
import importlib.util
import logging
import os
from collections.abc import Sequence
from typing import Literal, get_args

import torch

logger = logging.getLogger(__name__)

Backend = Literal["auto", "reference", "torch", "triton"]
Implementation = Literal["reference", "torch", "triton"]


class BackendUnavailable(RuntimeError):
    """The backend asked for exists but cannot run in this installation."""


def choose_backend(
    requested: Backend,
    *,
    op: str,
    device: torch.device,
    implemented: Sequence[Implementation],
    fast_refuses: str | None,
) -> Implementation:
    """Returns the implementation of `op` to run.

    "auto" is the torch path, on CPU and on CUDA: the Triton kernels are checked in Triton's interpreter only, which
    says nothing about races, layouts or speed, so they are opt-in until a session with a GPU has validated them.
    Where the fast paths cannot take the input (`fast_refuses` says why), "auto" is the reference, and the log says so.

    Raises:
        ValueError: `requested` is unknown, not implemented for `op`, or a fast path that cannot take the input.
        BackendUnavailable: "triton" was asked for and is not installed, or has no device to run on.
    """
    if requested not in get_args(Backend) or (requested != "auto" and requested not in implemented):
        raise ValueError(f"backend={requested!r} is not available for {op}; choose one of {('auto', *implemented)}")
    if requested in ("torch", "triton") and fast_refuses:
        raise ValueError(f"backend={requested!r} of {op} cannot be used: {fast_refuses}; choose 'reference' or 'auto'")
    if requested == "triton" and importlib.util.find_spec("triton") is None:
        raise BackendUnavailable(
            f"backend='triton' of {op} needs the triton package, which is not installed; "
            "install triton>=3.6 or choose 'torch'"
        )
    if requested == "triton" and device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise BackendUnavailable(
            f"backend='triton' of {op} cannot run on the CPU; choose 'torch', "
            "or set TRITON_INTERPRET=1 before the first import of triton to run it in Triton's interpreter"
        )
    if requested != "auto":
        chosen: Implementation = requested
    else:
        chosen = "reference" if fast_refuses else "torch"
    _log_once(op, device.type, chosen, fast_refuses if chosen == "reference" and requested == "auto" else None)
    return chosen


def refuse_float64(dtype: torch.dtype) -> str | None:
    """Returns why the fast paths cannot take `dtype`, or None: float64 is for gradient checks, the reference's task."""
    return "dtype float64 is only computed by the reference" if dtype == torch.float64 else None


@functools.cache
def _log_once(op: str, device_type: str, chosen: str, fallback_reason: str | None) -> None:
    fields = {"op": op, "device_type": device_type, "backend": chosen}
    if fallback_reason is None:
        logger.info("kernel backend chosen", extra=fields)
    else:
        logger.warning("kernel backend fell back to the slow reference: %s", fallback_reason, extra=fields)
