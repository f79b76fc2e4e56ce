"""`evenload up`: starts the API and the orchestrator as child processes, keeps them running, and stops them again.

One supervisor per home: it holds a lock on `<home>/up.lock` for as long as it lives, which the kernel returns however
it ends. The children are in sessions of their own, so that Ctrl-C reaches the supervisor alone and it decides on the
order; and they are tied to it (api.tied), so that nothing is left should it be killed outright.
"""

import fcntl
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from api.errors import ServerUnreachable
from api.settings import is_loopback, url_of
from orchestrator import home
from trainer.errors import EvenloadError

logger = logging.getLogger(__name__)

CHECKOUT = Path(__file__).resolve().parent.parent
STOP_DEADLINE_S = 30.0
MAX_RESTARTS = 5
STABLE_S = 60.0
"""A child that ran for so long is restarted as often as it takes."""


class AlreadyUp(EvenloadError):
    """Another supervisor of this home runs."""


class StartFailed(EvenloadError):
    """A service could not be started or did not stay up."""


class StopFailed(EvenloadError):
    """A supervisor that was asked to stop is still there."""


def child_environment() -> dict[str, str]:
    """Our environment with the folder of our packages first on PYTHONPATH."""
    inherited = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part and part != str(CHECKOUT)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(CHECKOUT), *inherited]), "PYTHONUNBUFFERED": "1"}


@contextmanager
def exclusive(root: Path) -> Iterator[None]:
    """Holds the home's supervisor lock; raises AlreadyUp if another process does."""
    with _lock_file(root).open("a+") as file:
        if not _try_lock(file):
            raise AlreadyUp
        file.seek(0)
        file.truncate()
        file.write(json.dumps({"pid": os.getpid()}))
        file.flush()
        yield


def running_supervisor(root: Path) -> int | None:
    """Pid of the supervisor of the home `root`, or None if none runs."""
    try:
        with _lock_file(root).open("r+") as file:
            if _try_lock(file):
                return None
            file.seek(0)
            return int(json.loads(file.read() or '{"pid": 0}')["pid"]) or None
    except FileNotFoundError:
        return None


def stop_running(root: Path, *, deadline_s: float = STOP_DEADLINE_S + 15) -> bool:
    """Stops the supervisor of the home `root` and waits until it is gone.

    Returns False if none runs; raises StopFailed if it is still there after `deadline_s`.
    """
    pid = running_supervisor(root)
    if pid is None:
        return False
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + deadline_s
    while running_supervisor(root) is not None:
        if time.monotonic() > deadline:
            raise StopFailed(f"process {pid} has not stopped within {deadline_s:g} s; its logs are in {root / 'logs'}")
        time.sleep(0.1)
    return True


def _lock_file(root: Path) -> Path:
    return root / "up.lock"


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@dataclass
class Child:
    """One supervised service."""

    name: str
    command: list[str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    started_s: float = 0.0
    num_restarts: int = 0

    def start(self) -> None:
        """Starts the process, its output appended to the log."""
        self.log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "api.tied", str(os.getpid()), *self.command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=child_environment(),
                cwd=CHECKOUT,
                start_new_session=True,
            )
        self.started_s = time.monotonic()

    def log_tail(self, num_lines: int = 15) -> str:
        """The last lines of the log."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - 20_000))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-num_lines:])


@dataclass
class Supervisor:
    """The API and the orchestrator of one home. To be used inside `exclusive`."""

    root: Path
    host: str = "127.0.0.1"
    port: int = 8080
    allowed_hosts: tuple[str, ...] = ()
    no_token: bool = False
    children: list[Child] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Where the API is reached from this machine."""
        return url_of(self.host, self.port)

    def start(self) -> None:
        """Starts both children; raises StartFailed if the port is taken."""
        if self.no_token and not is_loopback(self.host):
            raise StartFailed(f"--no-token with --host {self.host}: without a token only 127.0.0.1 is served")
        self._check_port()
        logs = home.logs_folder(self.root)
        arguments = ["--host", self.host, "--port", str(self.port)]
        for name in self.allowed_hosts:
            arguments += ["--allow-host", name]
        if self.no_token:
            arguments.append("--no-token")
        self.children = [
            Child("orchestrator", [sys.executable, "-m", "orchestrator"], logs / "orchestrator.log"),
            Child("api", [sys.executable, "-m", "api", *arguments], logs / "api.log"),
        ]
        for child in self.children:
            child.start()

    def check(self) -> None:
        """Starts again what has ended by itself; raises StartFailed if it does not stay up."""
        for child in self.children:
            if child.process is None or child.process.poll() is None:
                continue
            if time.monotonic() - child.started_s > STABLE_S:
                child.num_restarts = 0
            if child.num_restarts >= MAX_RESTARTS or child.process.returncode == 78:
                raise StartFailed(
                    f"{child.name} ended with status {child.process.returncode}; the end of {child.log}:\n"
                    f"{child.log_tail()}"
                )
            logger.warning("%s ended with status %s, starting it again", child.name, child.process.returncode)
            child.num_restarts += 1
            time.sleep(min(0.2 * 2**child.num_restarts, 5.0))
            child.start()

    def stop(self, *, deadline_s: float = STOP_DEADLINE_S) -> bool:
        """Ends both children: SIGTERM, and SIGKILL to what is still there after `deadline_s`.

        Returns:
            Whether all of them ended by themselves.
        """
        # The orchestrator first: it settles what runs, and the API can still tell about it.
        graceful = True
        deadline = time.monotonic() + deadline_s
        for child in self.children:
            if child.process is None:
                continue
            if child.process.poll() is None:
                child.process.terminate()
            try:
                child.process.wait(max(0.5, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                graceful = False
                os.killpg(child.process.pid, signal.SIGKILL)  # its own session, so its own group
                child.process.wait()
        return graceful

    def _check_port(self) -> None:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self.host.strip("[]"), self.port))
            except OSError as error:
                raise StartFailed(
                    f"cannot listen on {self.host}:{self.port} ({error.strerror}); choose another with --port"
                ) from error


def wait_until_ready(url: str, *, supervisor: Supervisor | None = None, timeout_s: float = 180.0) -> Iterator[str]:
    """Yields what is being waited for, in words, until everything at `url` is ready; keeps `supervisor`'s services up.

    Raises:
        StartFailed: a service does not stay up, or not everything is ready within `timeout_s`.
    """
    from api.client import Client

    deadline = time.monotonic() + timeout_s
    waiting = "api"
    while True:
        if supervisor is not None:
            supervisor.check()
        try:
            with Client(url=url) as client:
                readiness = client.readiness()
            open_services = [service for service in readiness.services if service.state != "ready"]
            if not open_services:
                return
            waiting = ", ".join(f"{service.name} ({service.state})" for service in open_services)
        except ServerUnreachable:
            waiting = "api (starting)"
        if time.monotonic() > deadline:
            raise StartFailed(f"still waiting for {waiting} after {timeout_s:g} s; the logs are in the folder logs")
        yield waiting
        time.sleep(0.2)
