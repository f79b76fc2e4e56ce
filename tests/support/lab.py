"""A really running installation: `evenload up` in a process of its own, on a home and a port of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from api.client import Client

CHECKOUT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 180.0


@dataclass(frozen=True)
class Lab:
    """An installation that is up."""

    home: Path
    port: int
    process: "subprocess.Popen[str]"

    def evenload(self, *arguments: str, timeout_s: float = 120.0) -> "subprocess.CompletedProcess[str]":
        """Runs the command line on this home."""
        return evenload(self.home, *arguments, timeout_s=timeout_s)

    def client(self) -> Client:
        """A Python client of it."""
        token = (self.home / "token").read_text().strip()
        return Client(url=f"http://127.0.0.1:{self.port}", token=token)


def environment(home: Path) -> dict[str, str]:
    """Of a command on this home; no other server is found by accident."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("EVENLOAD_")}
    return {**inherited, "EVENLOAD_HOME": str(home), "COLUMNS": "200", "PYTHONPATH": str(CHECKOUT)}


def command(*arguments: str) -> list[str]:
    """The command line as `evenload` would be, from this checkout."""
    return [sys.executable, "-P", "-m", "api.cli", *arguments]


def evenload(home: Path, *arguments: str, timeout_s: float = 120.0) -> "subprocess.CompletedProcess[str]":
    """Runs one command to its end."""
    return subprocess.run(
        command(*arguments),
        env=environment(home),
        cwd=home,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(home: Path, *, port: int, arguments: tuple[str, ...] = ("up",)) -> "subprocess.Popen[str]":
    """Starts a command that keeps running; its output is in `<home>.out`."""
    home.mkdir(parents=True, exist_ok=True)
    with home.with_suffix(".out").open("a") as output:
        return subprocess.Popen(
            command(*arguments, "--port", str(port)),
            env=environment(home),
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )


def wait_for_output(
    home: Path, process: "subprocess.Popen[str]", text: str, *, timeout_s: float = START_TIMEOUT_S
) -> str:
    """The output so far, once `text` is in it; raises with all of it otherwise."""
    deadline = time.monotonic() + timeout_s
    while True:
        output = home.with_suffix(".out").read_text()
        if text in output:
            return output
        if process.poll() is not None or time.monotonic() > deadline:
            logs = "\n".join(f"--- {log.name}\n{log.read_text()[-3000:]}" for log in sorted(home.glob("logs/*.log")))
            raise AssertionError(f"no {text!r} in the output (status {process.poll()}):\n{output}\n{logs}")
        time.sleep(0.1)


@contextmanager
def running(home: Path) -> Iterator[Lab]:
    """An installation that is up and ready; stopped at the end, and by force what did not stop by itself."""
    port = free_port()
    process = start(home, port=port)
    try:
        wait_for_output(home, process, "Stop with")
        yield Lab(home, port, process)
    finally:
        end(process)


def end(process: "subprocess.Popen[str]") -> int:
    """Ends it as Ctrl-C does and returns its status; by force after a minute."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
    return process.returncode


def processes_of(home: Path) -> list[psutil.Process]:
    """Every live process that names this home in its command line or its environment."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            said: list[Any] = [*process.cmdline(), *process.environ().values()]
            if process.status() != psutil.STATUS_ZOMBIE and any(str(home) in str(part) for part in said):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def wait_until_gone(home: Path, *, timeout_s: float = 60.0) -> None:
    """Returns once no process of the home is left; raises with what is left otherwise."""
    deadline = time.monotonic() + timeout_s
    while left := processes_of(home):
        if time.monotonic() > deadline:
            raise AssertionError([(process.pid, process.cmdline()[:6]) for process in left])
        time.sleep(0.2)
