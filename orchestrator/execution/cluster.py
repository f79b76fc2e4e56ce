"""The Ray cluster: a local head that we start, adopt or stop by its pid, or one that exists already (RAY_ADDRESS).

`ray stop` is never called: it ends every Ray process of the machine, ours or not. Token authentication is always on,
because a Ray head listens on every interface and runs what it is sent. A head is never connected to from the daemon's
own process: losing its raylet ends a process that is connected.
"""

import ctypes
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from orchestrator import home as layout
from orchestrator.execution import processes
from orchestrator.execution.processes import ProcessIdentity

logger = logging.getLogger(__name__)

_OBJECT_STORE_BYTES = 128 * 1024**2
"""Nothing large goes through Ray's object store: telemetry and checkpoints are files."""
_STOP_GRACE_S = 3.0
_PROBE_TIMEOUT_S = 40.0
_PR_SET_PDEATHSIG = 1
_GPU_TYPE = "accelerator_type:"
_GPU_MEMORY_GIB = {
    "K80": 12.0,
    "P4": 8.0,
    "P100": 16.0,
    "T4": 16.0,
    "V100": 32.0,
    "A10G": 24.0,
    "L4": 24.0,
    "L40S": 48.0,
    "A100": 80.0,
    "A100-40G": 40.0,
    "A100-80G": 80.0,
    "RTX-PRO-6000": 96.0,
    "H20": 96.0,
    "H100": 96.0,
    "H200": 141.0,
    "B200": 192.0,
    "GB200": 192.0,
    "B300": 288.0,
    "GB300": 288.0,
}
"""As their makers state it, by the names of `ray.util.accelerators`."""
_ADDRESS = re.compile(r"ray start --address='([^']+)'")
_MAX_SOCKET_FOLDER = 40
"""Characters: Ray's socket paths below it have to stay under the 107 that the system allows."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """What one node of the cluster offers to trials."""

    cpus: float
    gpus: float
    memory_gib: float
    gpu_memory_gib: float = 0.0
    """The most that a GPU of the node's type has; 0 where the type is not known."""


@dataclass(frozen=True)
class Head:
    """A Ray head that was started by us, ready or not."""

    identity: ProcessIdentity
    log: Path

    def address(self) -> str | None:
        """`host:port` once the head is up, else None."""
        found = _ADDRESS.search(self.log.read_text(errors="replace")) if self.log.exists() else None
        return found.group(1) if found else None


def ray_environment(root: Path) -> dict[str, str]:
    """Environment of everything that talks to Ray, token authentication included; makes the token on first use.

    With RAY_ADDRESS set, the cluster has its own token: what the environment says about it is left alone.
    """
    quiet = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",
        "RAY_COLOR_PREFIX": "0",
        # The controller polls its workers at this interval, and takes one report per poll; its default is 2 s.
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
        # A lost worker is our retry; the watcher would be one more process per trial.
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
    }
    if os.environ.get("RAY_ADDRESS"):
        return processes.child_environment(quiet)
    token = layout.ray_folder(root) / "token"
    if not token.exists():
        token.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
    return processes.child_environment({**quiet, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)})


def start_head(root: Path, *, num_cpus: int) -> tuple[Head, "subprocess.Popen[bytes]"]:
    """Starts a Ray head for the home `root` with `num_cpus` CPUs; it is ready once it has an `address()`."""
    folder = _session_folder(root)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True)
    log = layout.logs_folder(root) / "ray.log"
    # The address is read from the log, so it must not hold that of an earlier head.
    log.unlink(missing_ok=True)
    environment = ray_environment(root)
    # Ranks and trials get their threads from the run request; libraries must not take all cores before that.
    environment.setdefault("OMP_NUM_THREADS", "1")
    child = processes.start(
        [
            str(Path(sys.executable).with_name("ray")),
            "start",
            "--head",
            "--block",
            "--port=0",
            f"--num-cpus={num_cpus}",
            f"--object-store-memory={_OBJECT_STORE_BYTES}",
            "--include-dashboard=false",
            "--dashboard-agent-listen-port=0",
            "--disable-usage-stats",
            f"--temp-dir={folder}",
            "--log-style=record",
            "--log-color=false",
        ],
        log=log,
        environment=environment,
    )
    identity = processes.identify(child.pid)
    assert identity is not None, "a child that was not waited for has a pid"
    return Head(identity, log), child


def stop_head(root: Path, head: Head) -> None:
    """Ends the head and every process of its session, and removes Ray's session files."""
    processes.end_session(head.identity, grace_s=_STOP_GRACE_S)
    shutil.rmtree(_session_folder(root), ignore_errors=True)


def probe(address: str, environment: Mapping[str, str]) -> list[Node]:
    """The live nodes of the cluster at `address`, asked by a short-lived process; [] if it does not answer."""
    try:
        answer = subprocess.run(
            [sys.executable, "-m", "orchestrator.execution.cluster", address],
            env=dict(environment),
            cwd=processes.CHECKOUT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PROBE_TIMEOUT_S,
            check=True,
        )
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
        logger.warning("the Ray cluster at %s does not answer: %s", address, error)
        return []
    return [Node(**node) for node in json.loads(answer.stdout.splitlines()[-1])]


def _session_folder(root: Path) -> Path:
    preferred = layout.ray_folder(root) / "session"
    if len(str(preferred)) <= _MAX_SOCKET_FOLDER:
        return preferred
    name = hashlib.sha256(str(root).encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"evenload-{os.getuid()}-{name}"


def gpu_memory_gib(resources: Mapping[str, float]) -> float:
    """Memory of one GPU by the type that Ray reports for the node; 0 without a type that is known here.

    Of a type that was sold with several sizes it is the largest, since what it is used for is to refuse what can never
    fit.
    """
    types = [name.removeprefix(_GPU_TYPE) for name in resources if name.startswith(_GPU_TYPE)]
    return max((_GPU_MEMORY_GIB.get(name, 0.0) for name in types), default=0.0)


def _report_nodes(address: str) -> None:
    # Whoever asks may be killed, and a head that is gone is waited for without end: nobody would end this process.
    signal.alarm(int(_PROBE_TIMEOUT_S))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    import ray

    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    nodes = [
        Node(
            cpus=node["Resources"].get("CPU", 0.0),
            gpus=node["Resources"].get("GPU", 0.0),
            memory_gib=node["Resources"].get("memory", 0.0) / 1024**3,
            gpu_memory_gib=gpu_memory_gib(node["Resources"]),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]
    sys.stdout.write(json.dumps([asdict(node) for node in nodes]) + "\n")
    sys.stdout.flush()
    ray.shutdown()


if __name__ == "__main__":
    _report_nodes(sys.argv[1])
