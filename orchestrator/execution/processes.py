"""Child processes that outlive us: each is the leader of a session of its own, known by pid and start time.

A pid alone may have been given to another process meanwhile; pid and start time together name one process for ever. The
session tells whose helpers are whose: the kernel does not reuse a leader's pid while its session has members.
"""

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

CHECKOUT = Path(__file__).parents[2]
"""The folder that holds our packages; every process we start has it on its PYTHONPATH."""

_SAME_START_S = 0.05
"""Start times of one process as read twice differ by rounding only."""


@dataclass(frozen=True)
class ProcessIdentity:
    """One process, told apart from any later one of the same pid.

    Attributes:
        pid: its process id.
        started_at_s: when it started, seconds since 1970.
    """

    pid: int
    started_at_s: float


def child_environment(extra: Mapping[str, str] = {}) -> dict[str, str]:  # only read
    """Our environment with the checkout first on PYTHONPATH, Python unbuffered, and `extra`."""
    inherited = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    path = [str(CHECKOUT), *(part for part in inherited if part != str(CHECKOUT))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1", **extra}


def start_module(
    module: str, arguments: Sequence[str], *, log: Path, environment: Mapping[str, str]
) -> "subprocess.Popen[bytes]":
    """Starts `python -m module arguments...` in its own session, output appended to `log`."""
    return start([sys.executable, "-m", module, *arguments], log=log, environment=environment)


def start(command: Sequence[str], *, log: Path, environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    """Starts `command` in its own session without standard input, output appended to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            cwd=CHECKOUT,
            start_new_session=True,
        )


def identify(pid: int) -> ProcessIdentity | None:
    """The identity of the process that has `pid` now; None if there is none."""
    try:
        return ProcessIdentity(pid, psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return None


def is_alive(identity: ProcessIdentity) -> bool:
    """True if this very process still runs; a zombie does not."""
    try:
        process = psutil.Process(identity.pid)
        same = abs(process.create_time() - identity.started_at_s) < _SAME_START_S
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def session_members(leader: ProcessIdentity) -> list[psutil.Process]:
    """The live processes of the session that `leader` began, the leader included; it may be gone already."""
    current = identify(leader.pid)
    if current is not None and abs(current.started_at_s - leader.started_at_s) >= _SAME_START_S:
        return []
    members = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == leader.pid and process.status() != psutil.STATUS_ZOMBIE:
                members.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return members


def end_session(leader: ProcessIdentity, *, grace_s: float) -> None:
    """Ends the whole session: TERM to the leader, after `grace_s` KILL to whatever of it is left.

    Returns when no member runs any more. The caller reaps the leader if it is its child.
    """
    if is_alive(leader):
        _signal(psutil.Process(leader.pid), kill=False)
        deadline = time.monotonic() + grace_s
        while time.monotonic() < deadline and session_members(leader):
            time.sleep(0.05)
    # KILL goes on until nobody is left: a member may have started another one meanwhile.
    while members := session_members(leader):
        for process in members:
            _signal(process, kill=True)
        psutil.wait_procs(members, timeout=1)


def _signal(process: psutil.Process, *, kill: bool) -> None:
    try:
        process.kill() if kill else process.terminate()
    except psutil.NoSuchProcess:
        return
