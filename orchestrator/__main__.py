"""`python -m orchestrator [--home DIR] [--num-cpus N]`: the orchestrator's daemon."""

import argparse
import logging
import os
import sys
from pathlib import Path

from orchestrator import home as layout


def main() -> int:
    """Parses the command line and runs the daemon; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m orchestrator", description="Runs submitted experiments.")
    parser.add_argument("--home", type=Path, help="where everything is kept (default: EVENLOAD_HOME or ~/.evenload)")
    parser.add_argument("--num-cpus", type=int, help="CPUs of the local Ray head (default: all)")
    arguments = parser.parse_args()
    if arguments.home is not None:
        os.environ["EVENLOAD_HOME"] = str(arguments.home)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")

    from orchestrator.errors import StoreUnavailable
    from orchestrator.execution.daemon import AlreadyRunning, run

    try:
        run(layout.home(), num_cpus=arguments.num_cpus)
    except (AlreadyRunning, StoreUnavailable) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
