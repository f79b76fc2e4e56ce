"""The analyst: has analyses that somebody waits for worked out, one at a time, in a process of its own.

`python -m orchestrator.execution.analyst EXPERIMENT_ID` works out one and keeps it.
"""

import argparse
import logging
import subprocess
import time
from dataclasses import asdict
from pathlib import Path

from orchestrator import home as layout
from orchestrator.execution import processes
from orchestrator.search.analysis import analysis
from orchestrator.spec import ExperimentSpec
from orchestrator.store.session import Database, database_url, open_database

logger = logging.getLogger(__name__)

TIME_LIMIT_S = 300.0
"""Longer than 10,000 trials take."""


class Analyst:
    """Starts the processes. Nothing is lost with it: what is still wanted stays wanted.

    Args:
        root: the home folder.
    """

    def __init__(self, database: Database, root: Path) -> None:
        self._database = database
        self._root = root
        self._child: subprocess.Popen[bytes] | None = None
        self._experiment_id = ""
        self._deadline = 0.0

    @property
    def pid(self) -> int | None:
        """Of the process there is, None if there is none."""
        return None if self._child is None else self._child.pid

    def check(self) -> None:
        """Looks after the process there is, and starts one for who has waited longest if there is none."""
        if self._child is not None:
            status = self._child.poll()
            if status is None and time.monotonic() < self._deadline:
                return
            if status is None:
                self._child.kill()
                self._child.wait()
            self._child = None
            if status != 0:
                self._give_up("it took too long" if status is None else f"its process ended with {status}")
        with self._database.read() as work:
            wanted = work.analyses.next_wanted()
        if wanted is None:
            return
        self._experiment_id, self._deadline = wanted, time.monotonic() + TIME_LIMIT_S
        self._child = processes.start_module(
            "orchestrator.execution.analyst",
            [wanted],
            log=layout.logs_folder(self._root) / "analyst.log",
            environment=processes.child_environment({"EVENLOAD_HOME": str(self._root)}),
        )

    def stop(self) -> None:
        """Ends the process there is."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None

    def _give_up(self, why: str) -> None:
        problem = f"{why}; see logs/analyst.log"
        logger.warning("no analysis of %s: %s", self._experiment_id, problem)
        self._database.run(lambda work: work.analyses.give_up(self._experiment_id, problem=problem))


def analyse(database: Database, experiment_id: str) -> None:
    """Works out the analysis of an experiment as it is now, and keeps it."""
    with database.read() as work:
        record = work.experiments.get(experiment_id)
        history = work.trials.history(experiment_id)
    document = asdict(analysis(ExperimentSpec.model_validate(record.spec), history))
    database.run(lambda work: work.analyses.write(experiment_id, sequence=record.sequence, document=document))


def main() -> None:
    """Parses the command line and works."""
    parser = argparse.ArgumentParser(prog="python -m orchestrator.execution.analyst")
    parser.add_argument("experiment_id")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    started = time.monotonic()
    database = open_database(database_url(layout.home()))
    analyse(database, arguments.experiment_id)
    logger.info("analysed %s in %.1f s", arguments.experiment_id, time.monotonic() - started)


if __name__ == "__main__":
    main()
