"""`python -m api.tied PARENT_PID COMMAND...`: becomes COMMAND, which gets SIGTERM should its parent die.

A supervisor that is killed outright cannot stop what it started; on Linux the kernel does it. Elsewhere it just
runs.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Ties this process to its parent and becomes the command."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # it died before we were tied to it
            sys.exit(0)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
