"""Killing a process at one of its system calls, counted: at the first, the second and so on until it is over before.

By ptrace, without any program beside Python: the process is stopped as it enters the call, and gets SIGKILL there, so
what it did before has happened and the call itself has not. Linux on x86-64 and aarch64.
"""

import ctypes
import os
import platform
import signal
from collections.abc import Callable

_TRACEME, _SYSCALL, _SETOPTIONS, _GET_SYSCALL_INFO = 0, 24, 0x4200, 0x420E
_SYSGOOD, _EXITKILL = 1, 1 << 20
_ENTRY = 1

_CHANGING = {
    # write, pwrite64, writev, sendto, sendmsg, fsync, fdatasync, truncate, ftruncate, rename, mkdir, unlink, ...at
    "x86_64": {1, 18, 20, 44, 46, 74, 75, 76, 77, 82, 83, 87, 258, 263, 264, 316},
    "aarch64": {64, 68, 66, 206, 211, 82, 83, 45, 46, 34, 35, 38, 276},
}
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long


class _Info(ctypes.Structure):
    """The part of `struct ptrace_syscall_info` that we read."""

    _fields_ = (
        ("op", ctypes.c_uint8),
        ("pad", ctypes.c_uint8 * 3),
        ("arch", ctypes.c_uint32),
        ("instruction_pointer", ctypes.c_uint64),
        ("stack_pointer", ctypes.c_uint64),
        ("number", ctypes.c_uint64),
        ("arguments", ctypes.c_uint64 * 6),
    )


def killed_at(body: Callable[[], None], count: int, *, every: bool = False) -> bool:
    """Runs `body` in a child that is killed as it enters its call number `count`, from 0; whether it came to that.

    Args:
        every: counts all calls, not only those that write, name or delete files, or send.

    Raises:
        OSError: this system does not let us trace our own child.
        RuntimeError: `body` raised.
    """
    counted = None if every else _CHANGING[platform.machine()]
    child = os.fork()
    if child == 0:
        status = 1
        try:
            _libc.ptrace(_TRACEME, 0, None, None)
            os.kill(os.getpid(), signal.SIGSTOP)
            body()
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert os.WIFSTOPPED(status)
    _ptrace(_SETOPTIONS, child, None, _SYSGOOD | _EXITKILL)
    info, seen, pending = _Info(), 0, 0
    while True:
        _ptrace(_SYSCALL, child, None, pending)
        _, status = os.waitpid(child, 0)
        if not os.WIFSTOPPED(status):
            if status:
                raise RuntimeError(f"the traced body ended with status {status}")
            return False
        pending = os.WSTOPSIG(status)
        if pending != signal.SIGTRAP | 0x80:
            continue
        pending = 0
        _ptrace(_GET_SYSCALL_INFO, child, ctypes.sizeof(info), ctypes.addressof(info))
        if info.op != _ENTRY or (counted is not None and info.number not in counted):
            continue
        if seen == count:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return True
        seen += 1


def _ptrace(request: int, pid: int, address: int | None, data: int | None) -> None:
    if _libc.ptrace(request, pid, address, data) < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"ptrace request {request:#x}: {os.strerror(error)}")
