"""Processes that start at once: forked from one that has imported their code already.

Most of a start is importing, and hundreds of starts are what a chaos run does. What is forked is the module's own
`main`, with an environment and a log of its own, exactly as `python -m MODULE` runs it from there on.

`python -m tests.chaos.nursery MODULE IMPORTED...` forks one for each line of JSON on standard input, and says its pid.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from orchestrator.execution import processes
from orchestrator.execution.processes import ProcessIdentity


class Nursery:
    """Starts processes of one module.

    Args:
        module: whose `main` they run, e.g. `api.__main__`.
        imported: further modules that `main` would import.
    """

    def __init__(self, module: str, *imported: str) -> None:
        self._parent = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.nursery", module, *imported],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=processes.CHECKOUT,
        )

    def __enter__(self) -> "Nursery":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        self._parent.stdin.close()
        self._parent.wait()
        self._parent.stdout.close()

    def start(self, arguments: Sequence[str], *, log: Path, environment: Mapping[str, str]) -> ProcessIdentity:
        """Starts a process in a session of its own."""
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        order = {"arguments": list(arguments), "log": str(log), "environment": dict(environment)}
        self._parent.stdin.write(json.dumps(order) + "\n")
        self._parent.stdin.flush()
        identity = processes.identify(int(self._parent.stdout.readline()))
        assert identity is not None, f"ended at once; see {log}"
        return identity


def _fork(module: str, order: dict[str, object]) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        log = os.open(str(order["log"]), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for descriptor, standard in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(descriptor, standard)
        os.environ.clear()
        os.environ.update(order["environment"])  # pyright: ignore[reportArgumentType, reportCallIssue]
        sys.argv = [module, *order["arguments"]]  # pyright: ignore[reportGeneralTypeIssues]
        status = int(sys.modules[module].main() or 0)
    finally:
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    """Forks as it is told."""
    module, *imported = sys.argv[1:]
    for name in (module, *imported):
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the children need not be waited for
    for line in sys.stdin:
        sys.stdout.write(f"{_fork(module, json.loads(line))}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
