"""`python -m tests.chaos [--api 200] [--daemon 100] [--driver 100] [--trial 100] [--head 10]`; 0 leaves a kind out.

Runs are appended to tests/chaos/results.jsonl. Exit status 0 if nothing was found that must not happen.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from tests.chaos.api import kill_api
from tests.chaos.executor import kill_executors
from tests.chaos.report import Report
from tests.support import postgres
from trainer.environment import git_state

KINDS = {"api": 200, "daemon": 100, "driver": 100, "trial": 100, "head": 10}


def main() -> int:
    """Parses the command line, runs what it asks for, and returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Kills processes and checks the rest.")
    for kind, count in KINDS.items():
        parser.add_argument(f"--{kind}", type=int, default=count, help=f"kills of this kind (default {count})")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the order and the moments of the kills")
    parser.add_argument(
        "--minutes", type=float, default=120, help="no more kills of executors after this (default 120)"
    )
    parser.add_argument("--keep", action="store_true", help="leave the home folders for a look")
    options = vars(parser.parse_args())
    seed: int = options["seed"]
    reports: list[Report] = []
    with _folder(keep=options["keep"]) as folder:
        if options["api"]:
            on_postgres = options["api"] // 2 if postgres.find_binaries() else 0
            reports.append(_api(folder, "sqlite", options["api"] - on_postgres, seed))
            if on_postgres:
                reports.append(_api(folder, "postgresql", on_postgres, seed))
        kills = {kind: options[kind] for kind in ("daemon", "driver", "trial", "head") if options[kind]}
        if kills:
            report = kill_executors(folder / "home", kills=kills, seed=seed, minutes=options["minutes"], say=_say)
            report.keep(scenario="executors", seed=seed, **_about())
            reports.append(report)
    for report in reports:
        _say(f"{report.kills} in {report.duration_s:.0f} s: {report.counts}")
        for problem in report.problems:
            _say(f"  PROBLEM {problem}")
    return int(any(report.problems for report in reports))


def _api(folder: Path, engine: str, num_kills: int, seed: int) -> Report:
    home = folder / f"api-{engine}"
    if engine == "sqlite":
        report = kill_api(home, f"sqlite:///{home / 'evenload.db'}", num_kills=num_kills, seed=seed, say=_say)
    else:
        binaries = postgres.find_binaries()
        assert binaries is not None
        with postgres.cluster(binaries) as socket_folder, postgres.database(socket_folder) as url:
            report = kill_api(home, url, num_kills=num_kills, seed=seed, say=_say)
    report.keep(scenario=f"api on {engine}", seed=seed, **_about())
    return report


def _about() -> dict[str, str]:
    git = git_state()
    commit = "unknown" if git.commit is None else git.commit[:7] + ("+" if git.dirty else "")
    return {"date": datetime.now(UTC).isoformat(timespec="seconds"), "commit": commit}


@contextmanager
def _folder(*, keep: bool) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="evenload-chaos-"))
    try:
        yield folder
    finally:
        if keep:
            _say(f"left in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
